"""Contrastive losses with a softmax over the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses import plan
from mmcl_jax.types import Array, PyTree

# Stands for minus infinity in logits: exp gives 0, and inf - inf cannot make NaN where a whole row is absent.
NEVER = parallel.LOGSUMEXP.start


def rows_of(x: Array, y: Array, present: Array | None, axis: parallel.Axis) -> tuple[Array, Array, Array]:
    """The rows of a loss, checked, and zero where they are absent: not even NaN there can reach a value or a gradient.

    Args:
        x: [b, D].
        y: [b, D].
        present: [b] bool, or None for all.
        axis: mesh axes of the rows.

    Returns:
        x, y and present as an array.

    Raises:
        AssertionError: if the shapes are others.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape([x, y])
    x, y = jnp.asarray(x), jnp.asarray(y)
    if present is None:
        return x, y, parallel.varying(jnp.ones(x.shape[0], bool), axis)
    chex.assert_shape(present, x.shape[:1])
    return jnp.where(present[:, None], x, 0), jnp.where(present[:, None], y, 0), jnp.asarray(present)


def wide(*arrays: Array) -> jnp.dtype:
    """The dtype of logits and losses: float32, or float64 if the vectors are."""
    return jnp.result_type(*arrays, jnp.float32)


def product(a: Array, b: Array) -> Array:
    """[n, k] @ [k, m], as `wide` says also on accelerators whose matrix products are coarser unless asked."""
    if a.dtype != b.dtype:
        a, b = a.astype(wide(a, b)), b.astype(wide(a, b))
    return jnp.dot(a, b, precision="highest", preferred_element_type=wide(a, b))


def info_nce(
    x: Array,
    y: Array,
    present: Array | None = None,
    *,
    scale: Array | float,
    both: bool = True,
    axis: parallel.Axis = None,
    impl: str = "auto",
    budget_mib: float = plan.BUDGET_MIB,
    chunk: int = plan.CHUNK,
) -> Array:
    """Symmetric InfoNCE: each x should find its own y among all of the batch, and each y its own x.

    With logits l_ij = scale * x_i . y_j over the N present rows of the *global* batch,

        L = 1 / (2 N) * sum_i [ (logsumexp_j l_ij - l_ii) + (logsumexp_j l_ji - l_ii) ].

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020.
    Both directions share one tile of logits: only y is gathered, and the log-sum-exp over columns is combined
    across devices. Logits and losses are float32 (float64 for float64 inputs) whatever the inputs are.

    Args:
        x: [b, D] unit vectors, this device's rows. A scale of each example's own: multiply x by it.
        y: [b, D] unit vectors.
        present: [b] bool; rows that are False count neither as queries nor as negatives. None = all count.
        scale: [] multiplier of the cosine, 1 / temperature; each pair of modalities may have its own.
        both: whether both directions count, or only that in which each x finds its y, without the factor 1 / 2.
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
        >>> round(float(info_nce(jnp.eye(2), jnp.eye(2), scale=1.0)), 4)
        0.3133
    """
    x, y, present = rows_of(x, y, present, axis)
    form = plan.choose("info_nce", x, axis, impl, budget_mib, chunk)
    if form.impl == "shared_tile":
        logits = scale * product(x, parallel.gather(y, axis).T)  # [b, B]
        row_lse, column_lse = lse_of_tile(logits, logits, present, axis)
    else:
        # As each device's own: the custom gradient returns each device's part of the scale's, they are summed here.
        scale = parallel.varying(jnp.asarray(scale), axis)
        row_lse, column_lse = _lse_of_chunks(x, y, present, scale, axis, form.impl == "ring", chunk)
    positive = scale * jnp.einsum("bd,bd->b", x, y, precision="highest", preferred_element_type=wide(x))  # [b]
    if not both:
        return parallel.mean(row_lse - positive, present, axis)
    return 0.5 * parallel.mean(row_lse + column_lse - 2 * positive, present, axis)


def lse_of_tile(row_logits: Array, column_logits: Array, present: Array, axis: parallel.Axis) -> tuple[Array, Array]:
    """Log-sum-exp of logits over all columns, and over all rows.

    Args:
        row_logits: [b, B], this device's rows and the columns of all.
        column_logits: [b, B], those of the other direction; the same ones, where it has none of its own.
        present: [b] bool.
        axis: mesh axes of the rows.

    Returns:
        [b] of this device's rows, and [b] of its columns.
    """
    row_lse = jax.nn.logsumexp(jnp.where(parallel.gather(present, axis)[None], row_logits, NEVER), axis=1)  # [b]
    columns = jnp.where(present[:, None], column_logits, NEVER)
    peak = parallel.maximum(columns.max(0), axis)  # [B]; a fixed shift would underflow at scale 100
    column_lse = jnp.log(parallel.total(jnp.exp(columns - peak).sum(0), axis)) + peak  # [B]
    return row_lse, column_lse[parallel.rows(len(present), axis)]


def lse_of_columns(
    logits: Callable[[PyTree], tuple[Array, Array]],
    columns: PyTree,
    present: Array,
    dtype: jnp.dtype,
    *,
    axis: parallel.Axis,
    ring: bool,
    chunk: int,
) -> tuple[Array, Array]:
    """The same, a chunk of columns at a time.

    Args:
        logits: columns [c, ...] -> this device's rows' logits of both directions, [b, c] each.
        columns: [b, ...] arrays, this device's.
        present: [b] bool.
        dtype: of the logits.
        axis: mesh axes of the rows.
        ring: as for `parallel.over_columns`.
        chunk: columns at a time, at most.
    """

    def visit(row_lse, part):
        columns, there = part
        row_logits, column_logits = logits(columns)
        row = jax.nn.logsumexp(jnp.where(there[None], row_logits, NEVER), axis=1)
        column = jax.nn.logsumexp(jnp.where(present[:, None], column_logits, NEVER), axis=0)
        return jnp.logaddexp(row_lse, row), column

    start = jnp.full(len(present), NEVER, dtype)
    return parallel.over_columns(
        visit, start, (columns, present), parallel.LOGSUMEXP, axis=axis, ring=ring, chunk=chunk
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _lse_of_chunks(x, y, present, scale, axis, ring, chunk) -> tuple[Array, Array]:
    """Log-sum-exps a chunk of columns at a time; the gradient computes the logits anew instead of keeping them."""
    return _lse_forward(x, y, present, scale, axis, ring, chunk)[0]


def _lse_forward(x, y, present, scale, axis, ring, chunk):
    def logits(y):
        return (scale * product(x, y.T),) * 2  # [b, c]

    lse = lse_of_columns(logits, y, present, wide(x), axis=axis, ring=ring, chunk=chunk)
    return lse, (x, y, present, scale, *lse)


def _lse_backward(axis, ring, chunk, saved, cotangents):
    x, y, present, scale, row_lse, column_lse = saved
    g_row, g_column = cotangents  # [b] each

    def visit(carry, part):
        dx, d_scale = carry
        y, there, column_lse, g_column = part
        cosine = product(x, y.T)  # [b, c]
        logits = scale * cosine
        by_row = g_row[:, None] * jnp.exp(logits - row_lse[:, None])
        by_column = g_column[None] * jnp.exp(logits - column_lse[None])
        g = jnp.where(present[:, None] & there[None], by_row + by_column, 0)  # dL / dlogits
        return (dx + product(g, y), d_scale + (g * cosine).sum()), product(g.T, x)

    start = (jnp.zeros(x.shape, wide(x)), jnp.zeros((), wide(x)))
    columns = (y, present, column_lse, g_column)
    (dx, d_scale), dy = parallel.over_columns(visit, start, columns, parallel.SUM, axis=axis, ring=ring, chunk=chunk)
    return (scale * dx).astype(x.dtype), (scale * dy).astype(y.dtype), None, d_scale.astype(scale.dtype)


_lse_of_chunks.defvjp(_lse_forward, _lse_backward)


def in_batch_accuracy(
    x: Array,
    y: Array,
    present: Array | None = None,
    *,
    axis: parallel.Axis = None,
    impl: str = "auto",
    budget_mib: float = plan.BUDGET_MIB,
    chunk: int = plan.CHUNK,
) -> Array:
    """Share of the present rows whose own y is the most similar of the global batch; ties count as misses.

    Args:
        x: [b, D] unit vectors.
        y: [b, D] unit vectors.
        present: [b] bool or None.
        axis: mesh axes of the rows.
        impl: as for `info_nce`. As "shared_tile" it shares the loss's tile; as the others it goes over the columns
            once more, a fifth of such a loss.
        budget_mib: as for `info_nce`.
        chunk: as for `info_nce`.

    Returns:
        [] float32, without gradient; 0 if nothing is present.

    Example:
        >>> import jax.numpy as jnp
        >>> float(in_batch_accuracy(jnp.eye(3), jnp.eye(3)[jnp.array([0, 2, 1])]))
        0.3333333432674408
    """
    x, y, present = jax.lax.stop_gradient(rows_of(x, y, present, axis))
    form = plan.choose("in_batch_accuracy", x, axis, impl, budget_mib, chunk)
    return share_of_hits(lambda y: product(x, y.T), y, present, wide(x), axis, form)


def share_of_hits(
    scores: Callable[[PyTree], Array],
    columns: PyTree,
    present: Array,
    dtype: jnp.dtype,
    axis: parallel.Axis,
    form: plan.Plan,
) -> Array:
    """Share of the present rows of all devices whose own column has the largest score; ties count as misses.

    Args:
        scores: columns [c, ...] -> this device's rows' scores [b, c].
        columns: [b, ...] arrays, this device's.
        present: [b] bool.
        dtype: of the scores.
        axis: mesh axes of the rows.
        form: what `plan.choose` chose.
    """
    b = len(present)
    own = parallel.rows(b, axis)

    def visit(found, part):
        positive, best = found
        columns, there, number = part
        tile = scores(columns)  # [b, c]
        mine = number[None] == own[:, None]
        # From the same product as the others, so that equal vectors tie exactly.
        positive = positive + jnp.where(mine & there[None], tile, 0).sum(1)
        return (positive, jnp.maximum(best, jnp.where(there[None] & ~mine, tile, NEVER).max(1))), ()

    columns = (columns, present, own)
    start = (jnp.zeros(b, dtype), jnp.full(b, NEVER, dtype))
    if form.impl == "shared_tile":
        (positive, best), _ = visit(start, jax.tree.map(lambda c: parallel.gather(c, axis), columns))
    else:
        ring, chunk = form.impl == "ring", form.chunk
        found = parallel.over_columns(visit, start, columns, parallel.SUM, axis=axis, ring=ring, chunk=chunk)
        positive, best = found[0]
    return parallel.mean((positive > best).astype(jnp.float32), present, axis)
