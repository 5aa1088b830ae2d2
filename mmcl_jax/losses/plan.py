"""Which of a loss's forms to take: the fastest one whose temporary memory fits the budget.

    shared_tile   one tile [b, B] of logits for both directions; one tower gathered; gradients by plain autodiff
    chunked       the same a chunk of columns at a time, with a gradient of its own: memory is O(b x chunk + B x D)
    ring          the columns travel round the devices instead of being gathered: O(b x chunk + b x D)

b rows a device, B in the global batch, D features. All of them have the value and the gradients of the whole batch.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

from mmcl_jax import parallel
from mmcl_jax.types import Array

BUDGET_MIB = 512
CHUNK = 1024
IMPLS = ("shared_tile", "chunked", "ring")
_TILES = 3  # tiles of logits, exponentials and gradients that are alive at once; as compiled by XLA


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


def estimate(impl: str, b: int, devices: int, dim: int, chunk: int, itemsize: int = 4) -> float:
    """Temporary MiB per device of a form with its gradient.

    Args:
        impl: one of `IMPLS`.
        b: rows a device.
        devices: number of them.
        dim: D.
        chunk: columns of a tile.
        itemsize: bytes of a logit.
    """
    columns = b * devices
    tile = b * (columns if impl == "shared_tile" else min(chunk, columns if impl == "chunked" else b))
    # A gathered tower and its gradient, or the block that travels with its gradient, each beside the one that follows.
    towers = 4 * b * dim if impl == "ring" else 2 * columns * dim if devices > 1 else 0
    return (_TILES * tile + towers) * itemsize / 2**20


def choose(loss: str, x: Array, axis: parallel.Axis, impl: str, budget_mib: float, chunk: int) -> Plan:
    """Settles the form of a loss.

    Args:
        loss: its name, for the record.
        x: [b, D], this device's rows.
        axis: mesh axes of the rows.
        impl: "auto" or one of `IMPLS`.
        budget_mib: of temporary memory, for "auto": the first of `IMPLS` that fits, else the last.
        chunk: columns of a tile.

    Raises:
        ValueError: if there is no such form, or the chunk is not positive.
    """
    if impl not in ("auto", *IMPLS):
        raise ValueError(f"loss.impl={impl!r}; possible: auto, {', '.join(IMPLS)}.")
    if chunk < 1:
        raise ValueError(f"loss.chunk={chunk} must be positive.")
    devices = parallel.size(axis)

    def cost(impl):
        return estimate(impl, x.shape[0], devices, x.shape[1], chunk, max(4, x.dtype.itemsize))

    possible = IMPLS if devices > 1 else IMPLS[:-1]  # one device is no ring
    if impl == "auto":
        impl = next((i for i in possible if cost(i) <= budget_mib), possible[-1])
    impl = impl if impl in possible else "chunked"
    plan = Plan(loss, impl, x.shape[0], x.shape[0] * devices, chunk, cost(impl))
    if (heard := _heard.get()) is not None and plan not in heard:
        heard.append(plan)
    return plan
