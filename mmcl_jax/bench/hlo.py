"""What a compiled program does, read from its text: which collectives, how many bytes, inside which loops.

`cost_analysis()` counts the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
          "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=(?:\{([^}]*)\}|(%?[\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
        kind: one of `COLLECTIVES`.
        output_bytes: of what it makes on a device, each time.
        times: how often it runs.
        in_loop: whether it is inside a loop.
    """

    kind: str
    output_bytes: int
    times: int
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program: `collectives(jitted.lower(...).compile().as_text())`.

    Those of a loop whose length the compiler does not know count once.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            computations[name].append(line)
    return list(_walk(computations, entry, 1, False))


def _walk(computations: dict[str, list[str]], name: str, times: int, in_loop: bool) -> Iterator[Collective]:
    for line in computations.get(name, ()):
        operation = _OPERATION.match(line)
        if not operation:
            continue
        # Where one begins and ends in two operations, the second one has the output, and only that.
        output, kind = operation[1], operation[2].removesuffix("-done")
        if kind in COLLECTIVES:
            yield Collective(kind, _size(output), times, in_loop)
            continue  # what it calls is the sum of two numbers
        trips = _TRIPS.search(line) if kind == "while" else None
        for several, one in _CALLED.findall(line):
            for other in (several or one).split(", "):
                turns = times * int(trips[1]) if trips else times
                yield from _walk(computations, other.lstrip("%"), turns, in_loop or kind == "while")


def _size(shapes: str) -> int:
    total = 0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        n = _BYTES.get(dtype, 0)
        for d in filter(None, dims.split(",")):
            n *= int(d)
        total += n
    return total


def mib(found: list[Collective]) -> float:
    """MiB that collectives make on a device in one run of the program."""
    return sum(c.output_bytes * c.times for c in found) / 2**20
