"""What momentum methods keep in `extra`: a slowly moving copy of the encoders, and queues of what it gave before."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from mmcl_jax import parallel
from mmcl_jax.losses import unit
from mmcl_jax.losses.softmax import product
from mmcl_jax.types import Array, Ctx, PyTree, Stream


def twin(params: PyTree, extra: PyTree) -> PyTree:
    """A copy of parameters and batch statistics, in the form of a method's `extra`, to follow the original."""
    # Copies: the same buffers as the parameters could not be donated.
    return jax.tree.map(jnp.copy, {"params": params, "batch_stats": extra.get("batch_stats", {})})


def follow(key: PyTree, params: PyTree, momentum: float) -> PyTree:
    """Moves the twin's parameters a little towards the present ones: key <- m key + (1 - m) params; no gradient.

    Its batch statistics are those of its own forward passes and don't follow.

    Args:
        key: from `twin`.
        params: those that are trained, as they were before this step's update.
        momentum: m.
    """
    params = jax.lax.stop_gradient({name: params[name] for name in key["params"]})
    moved = jax.tree.map(lambda k, p: momentum * k + (1 - momentum) * p, key["params"], params)
    return key | {"params": moved}


def shuffled(stream: Stream, ctx: Ctx) -> tuple[Stream, Array]:
    """The stream with its rows in another order, and the order that undoes it: `out[back]`.

    Batch statistics of groups of rows would otherwise tell a query's group which keys are its own (He et al.,
    arXiv 1911.05722, section 3.3). One permutation of the global batch, the same on all devices; after it, rows are
    spread over the devices again.
    """
    order = jax.random.permutation(ctx.key("shuffle"), stream.rows)
    other = jax.tree.map(lambda x: jnp.asarray(x)[order], stream)
    return parallel.spread(other, ctx.mesh), jnp.argsort(order)


@struct.dataclass
class Queue:
    """The newest K examples, first in, first out; several arrays of them that can't drift apart.

    Attributes:
        rows: name -> [K, ...].
        valid: name -> [K] bool, which slots hold something.
        pointer: [] int32, the slot that is written next.
    """

    rows: dict[str, Array]
    valid: dict[str, Array]
    pointer: Array


def empty_queue(size: int, widths: Mapping[str, int]) -> Queue:
    """A queue in which nothing is valid: name -> zeros [size, width]."""
    rows = {name: jnp.zeros((size, width)) for name, width in widths.items()}
    return Queue(rows, {name: jnp.zeros(size, bool) for name in widths}, jnp.zeros((), jnp.int32))


def noise_queue(size: int, widths: Mapping[str, int], rng: Array) -> Queue:
    """A queue full of random unit vectors, all of them valid, as MoCo starts with."""
    queue = empty_queue(size, widths)
    keys = jax.random.split(rng, len(widths))
    rows = {
        name: unit(jax.random.normal(key, (size, width)))
        for key, (name, width) in zip(keys, sorted(widths.items()), strict=True)
    }
    return queue.replace(rows=rows, valid={name: jnp.ones(size, bool) for name in widths})


def nearest(queue: Queue, name: str, vectors: Array, ctx: Ctx) -> Array:
    """The valid row of a queue's array that is most similar to each vector, [B, D] -> [B, D]; no gradient.

    A row's own device looks it up: memory is O(rows of a device x K).

    Args:
        queue: of unit vectors.
        name: of the array.
        vectors: [B, D] unit vectors.
        ctx: the surroundings.
    """
    rows, valid = queue.rows[name], queue.valid[name]
    cosines = jnp.where(valid[None], product(jax.lax.stop_gradient(vectors), rows.T), -jnp.inf)
    return parallel.spread(rows[cosines.argmax(1)], ctx.mesh)


def push(queue: Queue, rows: Mapping[str, Array], present: Mapping[str, Array], wrap: bool = True) -> Queue:
    """Writes a batch over the oldest examples, in global row order; no gradient.

    The queue's size need not be a multiple of the batch: writing goes on at its start, and of a batch that is larger
    than the queue the last rows stay.

    Args:
        queue: the old one.
        rows: name -> [B, ...], for all of the queue's arrays; others are left out.
        present: name -> [B] bool; what is absent takes its slot, but is not valid there.
        wrap: False as in DeCLIP's code: rows beyond the queue's end are dropped, and the next batch is written from its
            start. It's the same where the size is a multiple of the batch.
    """
    size, b = len(next(iter(queue.valid.values()))), len(next(iter(rows.values())))
    kept = min(size, b) if wrap else b
    slots = queue.pointer + (b - kept) + jnp.arange(kept)
    slots, pointer = slots % size if wrap else slots, queue.pointer + b
    pointer = pointer % size if wrap else jnp.where(pointer < size, pointer, 0)

    def write(old, new):
        new = jax.lax.stop_gradient(new[b - kept :]).astype(old.dtype)
        return old.at[slots].set(new, unique_indices=True, mode="drop")

    def there(name):
        x = rows[name]
        return jnp.where(present[name].reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    return Queue(
        {name: write(old, there(name)) for name, old in queue.rows.items()},
        {name: write(old, present[name]) for name, old in queue.valid.items()},
        pointer,
    )
