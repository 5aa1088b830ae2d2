"""Devices: meshes, where arrays live, and the few collectives that losses need. No other file calls lax collectives.

The collectives take `axis`: the mesh axes over which rows are spread, as `Ctx.over_batch` passes it, or None
on one device, where each of them is the obvious thing to do with the whole batch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmcl_jax.types import Array, PyTree

Axis = tuple[str, ...] | None
# Of a path in a tree: "image/transformer/block0/mlp/in/kernel".
path_name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
BATCH_AXES = ("data", "fsdp")  # rows are spread over all axes, whether or not parameters are sharded on them


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the device mesh, `data` x `fsdp`.

    Args:
        shape: sizes of the axes "data" and "fsdp"; one of them may be -1, "what is left". Default: all on "data".
            `config.mesh` as it is: its `rules` are for `state_sharding`.
        devices: default: all of them.

    Raises:
        ValueError: if the sizes don't multiply to the number of devices, with what would.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = {"data": -1, "fsdp": 1} | {k: v for k, v in dict(shape or {}).items() if k != "rules"}
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


def mesh_or_all(shape: Mapping[str, int]) -> Mesh:
    """A run's mesh if it fits the devices that are here, else all of them with whole weights."""
    try:
        return make_mesh(shape)
    except ValueError:
        return make_mesh()


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading dimension is spread over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def state_sharding(state: PyTree, mesh: Mesh, rules: Sequence[str] = (), params: PyTree = None) -> PyTree:
    """Where each array of a train state lives: its largest dimension that divides is spread over "fsdp".

    Scalars and what does not divide are replicated, and so is everything where the mesh has no fsdp axis to speak of.
    What belongs to a parameter, its moments in the optimizer or its average, lives where the parameter does.

    Args:
        state: arrays or `jax.eval_shape` results.
        mesh: from `make_mesh`.
        rules: "path regex: 0" spreads dimension 0 of the parameters whose path it matches from its start; "path
            regex: none" replicates them. The first that matches counts.
        params: the parameters, for the rules; default: `state`.

    Raises:
        ValueError: for a rule that can't be read, matches nothing or asks for a dimension that does not divide.
    """
    size = mesh.shape["fsdp"]
    shapes = {
        path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(state if params is None else params)
    }
    ruled: dict[str, int | None] = {}
    for rule in rules:
        pattern, _, where = (part.strip() for part in rule.rpartition(":"))
        if not pattern or not re.fullmatch(r"\d+|none", where):
            raise ValueError(
                f"can't read the rule {rule!r}; write 'path regex: 0', a dimension, or 'path regex: none'."
            )
        matched = [path for path in shapes if re.match(pattern, path)]
        if not matched:
            tops = sorted({"/".join(path.split("/")[:2]) for path in shapes})
            raise ValueError(f"the rule {rule!r} matches no parameter. Paths begin with: {', '.join(tops)}.")
        for path in (p for p in matched if p not in ruled):
            dim = None if where == "none" else int(where)
            if dim is not None and (dim >= len(shapes[path]) or shapes[path][dim] % size):
                raise ValueError(f"the rule {rule!r}: dimension {dim} of {path} {shapes[path]} is not there to be "
                                 f"spread over fsdp={size}.")  # fmt: skip
            ruled[path] = dim

    def place(path, x) -> NamedSharding:
        # A moment's path ends with its parameter's: "inner/0/mu/image/patches/kernel".
        parts = path_name(path).split("/")
        own = next((p for i in range(len(parts)) if shapes.get(p := "/".join(parts[i:])) == x.shape), None)
        fitting = [d for d in range(x.ndim) if x.shape[d] % size == 0 and x.shape[d] >= size]
        dim = ruled[own] if own in ruled else max(fitting, key=lambda d: x.shape[d], default=None)
        if size == 1 or dim is None:
            return replicated(mesh)
        return NamedSharding(mesh, P(*[None] * dim, "fsdp"))

    return jax.tree_util.tree_map_with_path(place, state)


def spread(rows: PyTree, mesh: Mesh | None) -> PyTree:
    """Keeps arrays [B, ...] inside jit spread over the devices by rows, where the compiler might leave them whole.

    What does not divide stays as the compiler has it.
    """
    if mesh is None:
        return rows
    return jax.tree.map(lambda x: x if len(x) % mesh.size else lax.with_sharding_constraint(x, by_rows(mesh)), rows)


def with_whole_weights(encode: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], mesh: Mesh | None) -> Callable:
    """Lets devices that share weights compute each with all of them, on its own rows.

    They are gathered for the forward pass and again for the backward pass, and not kept in between (FSDP; Rajbhandari
    et al., ZeRO, arXiv 1910.02054). Left alone, the compiler may split features instead and send activations around.

    Args:
        encode: (weights, rows [B, ...]) -> pytree of [B, ...], and a pytree of what belongs to no row (statistics).
        mesh: of the rows.

    Returns:
        A function like `encode`; itself, where weights are whole anyway.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return encode

    def gather_first(weights, rows):
        weights = jax.tree.map(lambda w: lax.with_sharding_constraint(w, replicated(mesh)), weights)
        out, other = encode(weights, spread(rows, mesh))
        return spread(out, mesh), other

    # Neither the gathered weights may be kept, nor what is a mere copy of them in another shape or dtype.
    copies = ("sharding_constraint", "convert_element_type", "reshape", "transpose")
    return jax.checkpoint(gather_first, policy=lambda primitive, *_, **__: primitive.name not in copies)


def in_chunks(encode: Callable[[PyTree, PyTree, Array], PyTree], n: int, mesh: Mesh | None) -> Callable:
    """Encodes n chunks of rows one after another, and again in the backward pass: memory is that of one chunk.

    GradCache (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983):
    the loss sees all rows, and gradients are exact, at the price of a second forward pass. Not for encoders that take
    statistics over rows.

    Args:
        encode: (weights, rows [B, ...], chunk's number []) -> pytree of [B, ...]. Randomness must come from the number,
            which also tells devices apart where the weights are whole on each: what dropout drops depends on the
            number of chunks and of devices, as it does not without chunks.
        n: chunks of each device's rows; they must divide.
        mesh: of the rows; None on one device.

    Returns:
        (weights, rows) -> what `encode` returns for all rows.
    """

    def one_after_another(weights, rows, first):
        def one(chunk):
            return encode(weights, *chunk)

        parts = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), rows)
        out = lax.map(jax.checkpoint(one, prevent_cse=False), (parts, first + jnp.arange(n)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    if mesh is None or mesh.size == 1:
        return lambda weights, rows: one_after_another(weights, rows, 0)
    if mesh.shape["fsdp"] == 1:

        def per_device(weights, rows):
            # Each device's own weights until the end: their gradients are summed over devices once, not per chunk.
            return one_after_another(varying(weights, BATCH_AXES), rows, n * lax.axis_index(BATCH_AXES))

        return jax.shard_map(per_device, mesh=mesh, in_specs=(P(), P(BATCH_AXES)), out_specs=P(BATCH_AXES))

    def spread_chunks(weights, rows):
        # A chunk is some of each device's rows, so that none has to move.
        def split(x):
            x = x.reshape(mesh.size, n, -1, *x.shape[1:]).swapaxes(0, 1)  # [n, devices, b / n, ...]
            x = x.reshape(n, -1, *x.shape[3:])
            return lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))

        def join(x):
            x = x.reshape(n, mesh.size, -1, *x.shape[2:]).swapaxes(0, 1)
            return lax.with_sharding_constraint(x.reshape(-1, *x.shape[3:]), by_rows(mesh))

        def one(chunk):
            return encode(weights, *chunk)

        out = lax.map(jax.checkpoint(one, prevent_cse=False), (jax.tree.map(split, rows), jnp.arange(n)))
        return jax.tree.map(join, out)

    return spread_chunks


def put_rows(batch: PyTree, mesh: Mesh, whole: bool = False) -> PyTree:
    """Rows of the host as global arrays, spread over the devices by rows.

    Args:
        batch: numpy arrays [b, ...].
        mesh: from `make_mesh`.
        whole: whether every process has all rows, [B, ...]; else each has its own, [B / processes, ...].
    """
    sharding = by_rows(mesh)

    def put(x):
        shape = x.shape if whole else None
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, batch)


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
