"""Devices: meshes, where arrays live, and the few collectives that losses need. No other file calls lax collectives.

The collectives take `axis`: the mesh axes over which rows are spread, as `Ctx.over_batch` passes it, or None
on one device, where each of them is the obvious thing to do with the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def mean(x: Array, present: Array | None, axis: Axis) -> Array:
    """Mean of [b] values over the present rows of all devices; exactly 0, with gradient 0, if there are none."""
    present = jnp.ones(x.shape, bool) if present is None else present
    count = total(present.sum(dtype=jnp.float32), axis)
    return total(jnp.where(present, x, 0.0).sum(), axis) / jnp.maximum(count, 1.0)


def rows(b: int, axis: Axis) -> Array:
    """[b] int32: the places of this device's rows in the global batch."""
    offset = 0 if axis is None else lax.axis_index(axis) * b
    return offset + jnp.arange(b)
