"""The pairwise sigmoid loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses import plan
from mmcl_jax.losses.softmax import product, rows_of, wide
from mmcl_jax.types import Array


def sigmoid(
    x: Array,
    y: Array,
    present: Array | None = None,
    *,
    scale: Array | float,
    bias: Array | float,
    axis: parallel.Axis = None,
    impl: str = "auto",
    budget_mib: float = plan.BUDGET_MIB,
    chunk: int = plan.CHUNK,
) -> Array:
    """Every pair of the batch is a yes/no question: does this y belong to this x?

    With logits l_ij = scale * x_i . y_j + bias, and z_ij = 1 where i = j and -1 elsewhere, over the N present
    rows of the *global* batch,

        L = - 1 / N * sum_ij log sigmoid(z_ij * l_ij).

    The sum is divided by N, not by N^2. Zhai et al., Sigmoid Loss for Language Image Pre-Training,
    arXiv 2303.15343. Logits and losses are float32 (float64 for float64 inputs) whatever the inputs are.

    Args:
        x: [b, D] unit vectors, this device's rows.
        y: [b, D] unit vectors.
        present: [b] bool; rows that are False make no pairs. None = all count.
        scale: [] multiplier of the cosine.
        bias: [] added to every logit.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.
        impl: "auto", or a form of `losses.plan`; value and gradients are the same up to rounding.
        budget_mib: of temporary memory a device, for "auto".
        chunk: columns of a tile at most, for "chunked" and "ring".

    Returns:
        [] float32, the same on all devices; 0 if nothing is present.

    Raises:
        ValueError: for an unknown impl.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(sigmoid(jnp.eye(2), jnp.eye(2), scale=10.0, bias=-10.0)), 4)
        0.6932
    """
    x, y, present = rows_of(x, y, present, axis)
    form = plan.choose("sigmoid", x, axis, impl, budget_mib, chunk)
    number = parallel.rows(x.shape[0], axis)
    if form.impl == "shared_tile":
        columns = jax.tree.map(lambda c: parallel.gather(c, axis), (y, present, number))
        logits = scale * product(x, columns[0].T) + bias
        total = parallel.total(_pair_losses(logits, present, number, *columns[1:])[0].sum(), axis)
    else:
        shared = parallel.varying((jnp.asarray(scale), jnp.asarray(bias)), axis)
        total = _total_of_chunks(x, y, present, number, *shared, axis, form.impl == "ring", chunk)
    count = parallel.total(present.sum(dtype=jnp.float32), axis)
    return total / jnp.maximum(count, 1.0)


def _pair_losses(logits, present, number, there, numbers) -> tuple[Array, Array]:
    """Losses of the pairs and their gradients by the logits, both [b, c]; 0 where a side is absent."""
    own = number[:, None] == numbers[None]
    counts = present[:, None] & there[None]
    signed = jnp.where(own, logits, -logits)
    gradient = jnp.where(own, -1, 1) * jax.nn.sigmoid(-signed)
    return jnp.where(counts, -jax.nn.log_sigmoid(signed), 0), jnp.where(counts, gradient, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _total_of_chunks(x, y, present, number, scale, bias, axis, ring, chunk) -> Array:
    """Sum of all pair losses of all devices, a chunk of columns at a time."""

    def visit(loss, part):
        y, there, numbers = part
        return loss + _pair_losses(scale * product(x, y.T) + bias, present, number, there, numbers)[0].sum(), ()

    start = jnp.zeros((), wide(x))
    columns = (y, present, number)
    loss, _ = parallel.over_columns(visit, start, columns, parallel.SUM, axis=axis, ring=ring, chunk=chunk)
    return parallel.total(loss, axis)


def _total_forward(x, y, present, number, scale, bias, axis, ring, chunk):
    # A sum's gradient needs nothing that the first pass over the logits does not know, so there is no second one.
    def visit(carry, part):
        loss, dx, d_scale, d_bias = carry
        y, there, numbers = part
        cosine = product(x, y.T)  # [b, c]
        losses, g = _pair_losses(scale * cosine + bias, present, number, there, numbers)
        carry = (loss + losses.sum(), dx + product(g, y), d_scale + (g * cosine).sum(), d_bias + g.sum())
        return carry, product(g.T, x)

    zero = jnp.zeros((), wide(x))
    start = (zero, jnp.zeros(x.shape, wide(x)), zero, zero)
    (loss, dx, d_scale, d_bias), dy = parallel.over_columns(
        visit, start, (y, present, number), parallel.SUM, axis=axis, ring=ring, chunk=chunk
    )
    dx, dy = (scale * dx).astype(x.dtype), (scale * dy).astype(y.dtype)
    return parallel.total(loss, axis), (dx, dy, d_scale.astype(scale.dtype), d_bias.astype(bias.dtype))


def _total_backward(axis, ring, chunk, gradients, g):
    dx, dy, d_scale, d_bias = ((g * d).astype(d.dtype) for d in gradients)
    return dx, dy, None, None, d_scale, d_bias


_total_of_chunks.defvjp(_total_forward, _total_backward)
