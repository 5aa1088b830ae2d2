"""The little language of streams: `"image: decode|crop(64, @a)|flip || normalize"`.

    stream  =  [field ":"] host ops ["||" device ops]
    ops     =  op "|" op "|" ...
    op      =  name ["(" literal arguments [", @tie"] [";" probability] ")"]

The stream starts from the record's field (default: the stream's name before "/"; "labels/en" looks into a dict).
`@tie` makes ops of several streams draw the same random numbers (aligned crops), `;.8` applies an op with
probability .8.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import inspect
import re
import zlib
from collections.abc import Callable, Hashable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mmcl_jax.named import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Op:
    """One op of a chain, as written.

    Attributes:
        name: name of the function, in the module of ops or a dotted path.
        args: positional arguments.
        kwargs: keyword arguments.
        p: probability of applying it.
        draw: name of its random draw: its tie, or stream, name and number of that name in the chain. Ops added
            to a chain leave the draws of the others as they were.
        tied: whether the draw is shared with other streams.
    """

    name: str
    args: tuple
    kwargs: tuple[tuple[str, Any], ...]
    p: float | None
    draw: str
    tied: bool


@dataclasses.dataclass(frozen=True)
class Chain:
    """A parsed stream: where it starts, and what happens to it on the host and on the device."""

    field: str
    host: tuple[Op, ...]
    device: tuple[Op, ...]


def parse_stream(name: str, text: str) -> Chain:
    """Parses a stream of the config.

    Args:
        name: the stream's name, "image/v0".
        text: what the config says, see the module's docstring.

    Raises:
        ConfigError: if the text is not of the form, showing the part that is not.

    Example:
        >>> chain = parse_stream("image/v0", "photo: decode|crop(64, scale=(.5, 1), @a) || jitter(.4;.8)")
        >>> chain.field, [op.name for op in chain.host], chain.host[1].draw, chain.device[0].p
        ('photo', ['decode', 'crop'], '@a', 0.8)
    """
    start = re.match(r"^\s*([\w/.-]+)\s*:(?!:)", text)
    field = start.group(1) if start else name.split("/")[0]
    rest = text[start.end() :] if start else text
    host, _, device = rest.partition("||")
    if "||" in device:
        raise ConfigError(f"data.streams.{name}={text!r}: at most one '||' (host ops || device ops).")
    return Chain(field, parse_ops(name, host), parse_ops(name, device))


def parse_ops(name: str, text: str) -> tuple[Op, ...]:
    """Parses `op|op|...`; `name` is the stream's, for the draws."""
    ops: list[Op] = []
    for part in filter(None, (p.strip() for p in text.split("|"))):
        match = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", part, re.DOTALL)
        if not match:
            raise ConfigError(f"data.streams.{name}: can't read the op {part!r}; write name or name(arguments).")
        op, arguments = match.group(1), match.group(2) or ""
        arguments, _, p = arguments.partition(";")
        tie = re.search(r",?\s*@(\w+)", arguments)
        if tie:
            arguments = arguments.replace(tie.group(0), "").lstrip(", ")
        try:
            call = ast.parse(f"f({arguments})", mode="eval").body
            args = tuple(ast.literal_eval(a) for a in call.args)
            kwargs = tuple((k.arg, ast.literal_eval(k.value)) for k in call.keywords)
            p = float(p) if p.strip() else None
        except (SyntaxError, ValueError) as e:
            raise ConfigError(
                f"data.streams.{name}: can't read the arguments of {part!r} ({e}); they must be plain numbers, "
                "strings or tuples."
            ) from None
        count = sum(o.name == op for o in ops)
        draw = f"@{tie.group(1)}" if tie else f"{name}|{op}|{count}"
        ops.append(Op(op, args, kwargs, p, draw, bool(tie)))
    return tuple(ops)


def resolve(op: Op, module: ModuleType) -> Callable:
    """The function that an op names: of the given module, or anywhere by its dotted path.

    Raises:
        ConfigError: if there is none, with what there is; or if its arguments don't fit.
    """
    if "." in op.name:
        where, _, attribute = op.name.rpartition(".")
        try:
            function = getattr(importlib.import_module(where), attribute)
        except (ImportError, AttributeError) as e:
            raise ConfigError(f"There is no op {op.name!r}: {e}. A dotted path names a function of a module.") from e
    else:
        function = vars(module).get(op.name)
        if op.name.startswith("_") or getattr(function, "__module__", "") != module.__name__:
            possible = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
            possible = sorted(k for k in possible if not k.startswith("_"))
            raise ConfigError(f"There is no op {op.name!r}{did_you_mean(op.name, possible)}")
    try:
        given = {k for k in ("rng", "keys", "tokenizer") if k in inspect.signature(function).parameters}
        inspect.signature(function).bind(None, *op.args, **dict(op.kwargs), **dict.fromkeys(given))
    except TypeError as e:
        raise ConfigError(f"Op {op.name}: {e}; its signature is {inspect.signature(function)}.") from None
    return function


class Memory:
    """Keeps arrays up to a number of bytes; what comes after that is made anew each time.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int):
        self.left, self.kept = limit, {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept of `key`, or what `make` makes; an array can't be written to, as the next one gets the same."""
        if key in self.kept:
            return self.kept[key]
        value = make()
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
            if value.nbytes <= self.left:
                self.left -= value.nbytes
                self.kept[key] = value
        return value


class HostOps:
    """A chain of host ops, ready to run.

    Args:
        ops: parsed ops.
        module: where their names are looked up.
        seed: of the run.
        resources: what ops may ask for by the name of a parameter: the tokenizer.
        memory: keeps what the ops before the first random one make of encoded values.
    """

    def __init__(
        self,
        ops: tuple[Op, ...],
        module: ModuleType,
        seed: int,
        resources: Mapping[str, Any],
        memory: Memory | None = None,
    ):
        self.ops, self.seed, self.memory = ops, seed, memory
        self.functions = [resolve(op, module) for op in ops]
        parameters = [inspect.signature(f).parameters for f in self.functions]
        self.draws = ["rng" in p for p in parameters]
        self.resources = [{k: v for k, v in resources.items() if k in p} for p in parameters]
        random = [draws or op.p is not None for op, draws in zip(ops, self.draws, strict=True)]
        self.fixed = random.index(True) if True in random else len(ops)

    @property
    def shareable(self) -> bool:
        """Whether two streams with this chain get the same result, so that it need be made only once."""
        return all(op.tied or not (draws or op.p is not None) for op, draws in zip(self.ops, self.draws, strict=True))

    def __call__(self, value: Any, position: int) -> Any:
        """Runs the chain on a value of the record at `position` of the global stream."""
        if self.memory is None or not self.fixed or not isinstance(value, bytes | str):
            return self._run(0, len(self.ops), value, position)
        # By what the ops do, not by whose they are: two views of one image share what is decoded.
        ops = tuple((op.name, op.args, op.kwargs) for op in self.ops[: self.fixed])
        key = (ops, hashlib.sha256(value).digest() if isinstance(value, bytes) else value)
        value = self.memory.get(key, lambda: self._run(0, self.fixed, value, position))
        return self._run(self.fixed, len(self.ops), value, position)

    def _run(self, first: int, last: int, value: Any, position: int) -> Any:
        for i in range(first, last):
            op, draws = self.ops[i], self.draws[i]
            rng = generator(self.seed, op.draw, position) if draws or op.p is not None else None
            if op.p is not None and rng.random() >= op.p:
                continue
            more = {"rng": rng} if draws else {}
            value = self.functions[i](value, *op.args, **dict(op.kwargs), **self.resources[i], **more)
        return value


def generator(seed: int, draw: str, position: int) -> np.random.Generator:
    """Random numbers that depend on the seed, the name of the draw and the record's position, and on nothing else."""
    key = (zlib.crc32(draw.encode()) << 32) + (seed & 0xFFFFFFFF)
    return np.random.Generator(np.random.Philox(key=np.array([key, position], np.uint64)))
