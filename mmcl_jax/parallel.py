"""Devices: meshes, where arrays live, and the few collectives that losses need. No other file calls lax collectives.

The collectives take `axis`: the mesh axes over which rows are spread, as `Ctx.over_batch` passes it, or None
on one device, where each of them is the obvious thing to do with the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmcl_jax.types import Array, PyTree

Axis = tuple[str, ...] | None
BATCH_AXES = ("data", "fsdp")  # rows are spread over all axes, whether or not parameters are sharded on them


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the device mesh, `data` x `fsdp`.

    Args:
        shape: sizes of the axes "data" and "fsdp"; one of them may be -1, "what is left". Default: all on "data".
        devices: default: all of them.

    Raises:
        ValueError: if the sizes don't multiply to the number of devices, with what would.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = {"data": -1, "fsdp": 1} | dict(shape or {})
    if set(sizes) != set(BATCH_AXES):
        raise ValueError(f"mesh: unknown axes {sorted(set(sizes) - set(BATCH_AXES))}; possible: {BATCH_AXES}.")
    known = 1
    for size in sizes.values():
        known *= size if size != -1 else 1
    open_axes = [a for a, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or known < 1 or len(devices) % known or (not open_axes and known != len(devices)):
        raise ValueError(
            f"mesh={sizes} does not fit {len(devices)} device(s): the sizes must multiply to {len(devices)}, "
            "and at most one may be -1 (what is left). Example: --config.mesh.fsdp=1"
        )
    if open_axes:
        sizes[open_axes[0]] = len(devices) // known
    shape_ = tuple(sizes[a] for a in BATCH_AXES)
    # Auto: the compiler shards the encoders. make_mesh's own default, Explicit, refuses much of linen.
    return jax.make_mesh(shape_, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading dimension is spread over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
    """Where each array of a train state lives: its largest dimension that divides is spread over "fsdp".

    The optimizer's state follows from its shapes like the parameters it belongs to. Scalars and what does not
    divide are replicated, and so is everything where the mesh has no fsdp axis to speak of.

    Args:
        state: arrays or `jax.eval_shape` results.
        mesh: from `make_mesh`.
    """
    size = mesh.shape["fsdp"]

    def place(x) -> NamedSharding:
        fitting = [d for d in range(x.ndim) if x.shape[d] % size == 0 and x.shape[d] >= size]
        if size == 1 or not fitting:
            return replicated(mesh)
        dim = max(fitting, key=lambda d: x.shape[d])
        return NamedSharding(mesh, P(*[None] * dim, "fsdp"))

    return jax.tree.map(place, state)


def put_rows(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows as global arrays, spread over the devices by rows."""
    sharding = by_rows(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gather(x: Array, axis: Axis) -> Array:
    """[b, ...] of each device -> [B, ...] on each device, in global row order; differentiable."""
    return x if axis is None else lax.all_gather(x, axis, tiled=True)


def total(x: Array, axis: Axis) -> Array:
    """Sum of the devices' values."""
    return x if axis is None else lax.psum(x, axis)


def maximum(x: Array, axis: Axis) -> Array:
    """Largest of the devices' values; carries no gradient."""
    x = lax.stop_gradient(x)
    return x if axis is None else lax.pmax(x, axis)


def size(axis: Axis) -> int:
    """Number of devices over which rows are spread."""
    return 1 if axis is None else lax.axis_size(axis)


def varying(x: PyTree, axis: Axis) -> PyTree:
    """Marks values that are the same on all devices as each device's own: their gradients are then summed once, here.

    Loops and custom gradients inside `over_batch` want it; without it a loop sums over the devices in every turn.
    """

    return x if axis is None else jax.tree.map(lambda x: lax.pcast(jnp.asarray(x), axis, to="varying"), x)


class Merge(NamedTuple):
    """How what several devices, or several visits, find out about a column becomes one: see `over_columns`.

    Attributes:
        start: what is known before the first visit.
        pair: (old, new) -> both.
        across: (found [B, ...] by each device, axis) -> [b, ...], this device's columns as all have found them.
    """

    start: float
    pair: Callable[[Array, Array], Array]
    across: Callable[[Array, tuple[str, ...]], Array]


def _lse_across(x: Array, axis: tuple[str, ...]) -> Array:
    peak = lax.pmax(x, axis)  # [B]; a fixed shift would underflow at scale 100
    summed = lax.psum_scatter(jnp.exp(x - peak), axis, tiled=True)  # [b]
    return jnp.log(summed) + peak[rows(len(summed), axis)]


SUM = Merge(0.0, jnp.add, lambda x, axis: lax.psum_scatter(x, axis, tiled=True))
LOGSUMEXP = Merge(-1e30, jnp.logaddexp, _lse_across)


def over_columns(
    visit: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    columns: PyTree,
    merge: Merge,
    *,
    axis: Axis,
    ring: bool,
    chunk: int,
) -> tuple[PyTree, PyTree]:
    """Visits the columns of all devices, a chunk at a time, so that no tile is larger than rows x chunk.

    Args:
        visit: (carry, chunk of columns [c, ...]) -> (carry, what was found for each of them [c, ...]).
        carry: what is found for this device's rows, before the first visit.
        columns: [b, ...] arrays, this device's. Filled up with zeros where chunks don't divide: one of them must be a
            mask that is False there.
        merge: how what is found for a column by several devices becomes one.
        axis: mesh axes of the rows.
        ring: pass the columns from device to device, instead of gathering them all on each: less memory, more hops.
        chunk: columns at a time, at most.

    Returns:
        The carry, and what was found for this device's columns by all devices, [b, ...].
    """
    devices, b = size(axis), jax.tree.leaves(columns)[0].shape[0]
    pieces = -(-b // chunk)  # of one device's columns
    c = -(-b // pieces)
    columns = jax.tree.map(lambda x: jnp.pad(x, [(0, pieces * c - b)] + [(0, 0)] * (x.ndim - 1)), columns)
    carry = varying(carry, axis)

    def sweep(carry, columns, c):
        parts = jax.tree.map(lambda x: x.reshape(-1, c, *x.shape[1:]), columns)
        carry, found = lax.scan(visit, carry, parts)
        return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    if axis is None or not ring:
        if pieces == 1:  # few columns a device: several devices' make a chunk
            c *= max(g for g in range(1, devices + 1) if devices % g == 0 and (g == 1 or g * c <= chunk))
        carry, found = sweep(carry, jax.tree.map(lambda x: gather(x, axis), columns), c)
        if axis is not None:
            found = jax.tree.map(lambda x: merge.across(x, axis), found)
        return carry, jax.tree.map(lambda x: x[:b], found)

    def pass_on(x):
        return jax.tree.map(lambda x: lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)]), x)

    def hop(state, _):
        carry, columns, found = state
        following = pass_on(columns)  # on its way while these are visited
        carry, new = sweep(carry, columns, c)
        return (carry, following, pass_on(jax.tree.map(merge.pair, found, new))), None

    shapes = jax.eval_shape(lambda *a: sweep(*a, c)[1], carry, columns)
    found = varying(jax.tree.map(lambda s: jnp.full(s.shape, merge.start, s.dtype), shapes), axis)
    (carry, columns, found), _ = lax.scan(hop, (carry, columns, found), length=devices - 1)
    carry, new = sweep(carry, columns, c)
    found = pass_on(jax.tree.map(merge.pair, found, new))  # home
    return carry, jax.tree.map(lambda x: x[:b], found)


def mean(x: Array, present: Array | None, axis: Axis) -> Array:
    """Mean of [b] values over the present rows of all devices; exactly 0, with gradient 0, if there are none."""
    present = jnp.ones(x.shape, bool) if present is None else present
    count = total(present.sum(dtype=jnp.float32), axis)
    return total(jnp.where(present, x, 0.0).sum(), axis) / jnp.maximum(count, 1.0)


def rows(b: int, axis: Axis) -> Array:
    """[b] int32: the places of this device's rows in the global batch."""
    offset = 0 if axis is None else lax.axis_index(axis) * b
    return offset + jnp.arange(b)
