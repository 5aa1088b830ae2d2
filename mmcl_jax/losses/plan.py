"""Which of a loss's forms to take: the fastest one whose temporary memory fits the budget.

    shared_tile   one tile [b, B] of logits for both directions; one tower gathered; gradients by plain autodiff
    chunked       the same a chunk of columns at a time, with a gradient of its own: memory is O(b x chunk + B x D)
    ring          the columns travel round the devices instead of being gathered: O(b x chunk + b x D)

b rows a device, B in the global batch, D features. All of them have the value and the gradients of the whole batch.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import NamedTuple

from mmcl_jax import parallel
from mmcl_jax.types import Array

BUDGET_MIB = 512
CHUNK = 1024
IMPLS = ("shared_tile", "chunked", "ring")
ALIVE = 3  # numbers for each pair that are alive at once: logit, exponential and gradient; as compiled by XLA


class Plan(NamedTuple):
    """What was chosen for one call of a loss, and what it costs each device beside its inputs.

    Attributes:
        loss: its name.
        impl: one of `IMPLS`.
        rows: b.
        columns: B.
        chunk: columns of a tile.
        temp_mib: temporary memory, estimated.
    """

    loss: str
    impl: str
    rows: int
    columns: int
    chunk: int
    temp_mib: float

    def __str__(self) -> str:
        form = self.impl if self.impl == "shared_tile" else f"{self.impl} by {self.chunk}"
        return f"{self.loss}: {form}, logits {self.rows} x {self.columns} a device, some {self.temp_mib:.3g} MiB"


_heard: contextvars.ContextVar[list[Plan] | None] = contextvars.ContextVar("heard", default=None)


@contextlib.contextmanager
def listen() -> Iterator[list[Plan]]:
    """Collects the plans that are made while something is traced: `with plan.listen() as plans:`, then trace."""
    token = _heard.set([])
    try:
        yield _heard.get()
    finally:
        _heard.reset(token)


def estimate(impl: str, b: int, devices: int, dim: int, chunk: int, itemsize: int = 4, pair: int = ALIVE) -> float:
    """Temporary MiB per device of a form with its gradient.

    Args:
        impl: one of `IMPLS`.
        b: rows a device.
        devices: number of them.
        dim: numbers of a row of the tower that is gathered: D, or tokens x D.
        chunk: columns of a tile.
        itemsize: bytes of a logit.
        pair: numbers that are alive at once for each pair of a row and a column of a tile; some times tokens x tokens.
    """
    columns = b * devices
    tile = b * (columns if impl == "shared_tile" else min(chunk, columns if impl == "chunked" else b))
    # A gathered tower and its gradient, or the block that travels with its gradient, each beside the one that follows.
    towers = 4 * b * dim if impl == "ring" else 2 * columns * dim if devices > 1 else 0
    return (pair * tile + towers) * itemsize / 2**20


def choose(
    loss: str, x: Array, axis: parallel.Axis, impl: str, budget_mib: float, chunk: int, pair: int = ALIVE
) -> Plan:
    """Settles the form of a loss.

    Args:
        loss: its name, for the record.
        x: [b, D] or [b, n, D], this device's rows of the tower that is gathered.
        axis: mesh axes of the rows.
        impl: "auto" or one of `IMPLS`.
        budget_mib: of temporary memory, for "auto": the first of `IMPLS` that fits, else the last.
        chunk: columns of a tile; at most, where a pair is more than a logit.
        pair: as for `estimate`.

    Raises:
        ValueError: if there is no such form, or the chunk is not positive.
    """
    if impl not in ("auto", *IMPLS):
        raise ValueError(f"loss.impl={impl!r}; possible: auto, {', '.join(IMPLS)}.")
    if chunk < 1:
        raise ValueError(f"loss.chunk={chunk} must be positive.")
    devices, b, dim = parallel.size(axis), x.shape[0], math.prod(x.shape[1:])
    itemsize = max(4, x.dtype.itemsize)

    def cost(impl, chunk):
        return estimate(impl, b, devices, dim, chunk, itemsize, pair)

    def fitting(impl):
        if pair == ALIVE:
            return chunk  # a thousand columns of logits are little memory
        left, column = budget_mib - cost(impl, 0), pair * b * itemsize / 2**20
        return max(1, min(chunk, int(left / column)))

    possible = IMPLS if devices > 1 else IMPLS[:-1]  # one device is no ring
    if impl == "auto":
        impl = next((i for i in possible if cost(i, fitting(i)) <= budget_mib), possible[-1])
    impl = impl if impl in possible else "chunked"
    columns = chunk if impl == "shared_tile" else fitting(impl)
    plan = Plan(loss, impl, b, b * devices, columns, cost(impl, columns))
    if (heard := _heard.get()) is not None and plan not in heard:
        heard.append(plan)
    return plan
