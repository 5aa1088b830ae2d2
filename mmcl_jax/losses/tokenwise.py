"""The contrastive loss of sets of tokens: each token looks for the one that is nearest to it on the other side."""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses import plan
from mmcl_jax.losses.softmax import NEVER, lse_of_columns, lse_of_tile, product, share_of_hits, wide
from mmcl_jax.types import Array


class _Side(NamedTuple):
    """One side of the pairs: tokens [b, n, D], which are real [b, n] and which are keys [b, k]; None = all."""

    tokens: Array
    real: Array | None
    keys: Array | None = None

    def selected(self) -> tuple[Array, Array | None]:
        """The keys [b, k, D], and which of them are real [b, k]."""
        if self.keys is None:
            return self.tokens, self.real
        real = None if self.real is None else jnp.take_along_axis(self.real, self.keys, axis=1)
        return jnp.take_along_axis(self.tokens, self.keys[..., None], axis=1), real


def tokenwise_nce(
    x: Array,
    y: Array,
    x_mask: Array | None = None,
    y_mask: Array | None = None,
    present: Array | None = None,
    *,
    scale: Array | float,
    top: int = 0,
    axis: parallel.Axis = None,
    impl: str = "auto",
    budget_mib: float = plan.BUDGET_MIB,
    chunk: int = plan.CHUNK,
) -> Array:
    """FILIP's loss: InfoNCE whose similarities are means over tokens of the largest product with the other's tokens.

    With s_x and s_y as `similarities` has them, over the N present rows of the *global* batch,

        L = 1 / (2 N) * sum_i [ (logsumexp_j scale s_x(i, j) - scale s_x(i, i))
                              + (logsumexp_j scale s_y(i, j) - scale s_y(i, i)) ].

    Yao et al., FILIP: Fine-grained Interactive Language-Image Pre-Training, arXiv 2111.07783. Logits and losses are
    float32 (float64 for float64 inputs) whatever the inputs are. Where several tokens are equally near, they share
    the gradient.

    `top` is the selection of DeCLIP's repository (Sense-GVT/DeCLIP, its FILIP): of each row the tokens with the
    largest sums of products with its own pair's tokens are those that others may find; all tokens still look for
    theirs. FILIP's paper selects by the part of the batch that a device holds; that depends on the number of devices,
    and so is not to be had here.

    Args:
        x: [b, n1, D] unit vectors, this device's rows.
        y: [b, n2, D] unit vectors.
        x_mask: [b, n1] bool, which tokens are real; None = all. A row without any has similarities of 0.
        y_mask: [b, n2] bool.
        present: [b] bool; rows that are False count neither as queries nor as negatives. None = all count.
        scale: [] multiplier of the similarity, 1 / temperature.
        top: tokens of each row that can be found, chosen without gradient and real ones first; 0 = all.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.
        impl: "auto", or a form of `losses.plan`; value and gradients are the same up to rounding.
        budget_mib: of temporary memory a device, for "auto" and for the chunks.
        chunk: columns of a tile at most, for "chunked" and "ring"; fewer where the budget has no room for them.

    Returns:
        [] float32, the same on all devices; 0 if nothing is present.

    Raises:
        ValueError: for an unknown impl, or a negative top.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.stack([jnp.eye(4)[:2], jnp.eye(4)[2:]])  # two rows of two tokens
        >>> round(float(tokenwise_nce(x, x[:, ::-1], scale=1.0)), 4)
        0.3133
    """
    x, y, present = _sides(x, y, x_mask, y_mask, present, top, axis)
    form = _form("tokenwise_nce", x, y, axis, impl, budget_mib, chunk)
    # As each device's own: see `info_nce`.
    scale = parallel.varying(jnp.asarray(scale), axis)
    if form.impl == "shared_tile":
        s_x, s_y = _similarities(x, jax.tree.map(lambda c: parallel.gather(c, axis), y))  # [b, B]
        row_lse, column_lse = lse_of_tile(scale * s_x, scale * s_y, present, axis)
    else:
        row_lse, column_lse = _lse_of_chunks(x, y, present, scale, axis, form.impl == "ring", form.chunk)
    own_x, own_y = jax.vmap(_similarities)(*jax.tree.map(lambda c: c[:, None], (x, y)))  # [b, 1, 1]
    positive = scale * (own_x + own_y)[:, 0, 0]  # [b]
    return 0.5 * parallel.mean(row_lse + column_lse - positive, present, axis)


def tokenwise_accuracy(
    x: Array,
    y: Array,
    x_mask: Array | None = None,
    y_mask: Array | None = None,
    present: Array | None = None,
    *,
    top: int = 0,
    axis: parallel.Axis = None,
    impl: str = "auto",
    budget_mib: float = plan.BUDGET_MIB,
    chunk: int = plan.CHUNK,
) -> Array:
    """Share of the present rows whose own y is the most similar, by s_x, of the global batch; ties count as misses.

    Args:
        x: [b, n1, D] unit vectors.
        y: [b, n2, D] unit vectors.
        x_mask: [b, n1] bool or None.
        y_mask: [b, n2] bool or None.
        present: [b] bool or None.
        top: as for `tokenwise_nce`.
        axis: mesh axes of the rows.
        impl: as for `tokenwise_nce`, whose tile it shares as "shared_tile".
        budget_mib: as for `tokenwise_nce`.
        chunk: as for `tokenwise_nce`.

    Returns:
        [] float32, without gradient; 0 if nothing is present.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.stack([jnp.eye(4)[:2], jnp.eye(4)[2:]])
        >>> float(tokenwise_accuracy(x, x[:, ::-1]))
        1.0
    """
    x, y, present = jax.lax.stop_gradient(_sides(x, y, x_mask, y_mask, present, top, axis))
    form = _form("tokenwise_accuracy", x, y, axis, impl, budget_mib, chunk)
    return share_of_hits(lambda y: _similarities(x, y)[0], y, present, wide(x.tokens), axis, form)


def similarities(x: Array, y: Array, x_mask: Array | None = None, y_mask: Array | None = None) -> tuple[Array, Array]:
    """How similar each x is to each y, as seen from either side.

        s_x(i, j) = mean over i's tokens p of max over j's tokens q of x_ip . y_jq
        s_y(i, j) = mean over j's tokens q of max over i's tokens p of x_ip . y_jq

    over tokens that are real. They are not the same; both are 0 where a side has no real token.

    Args:
        x: [a, n1, D] unit vectors.
        y: [c, n2, D] unit vectors.
        x_mask: [a, n1] bool, which tokens are real; None = all.
        y_mask: [c, n2] bool.

    Returns:
        s_x and s_y, [a, c] float32 each. They take memory for a x n1 x c x n2 numbers.
    """
    return _similarities(_Side(x, x_mask), _Side(y, y_mask))


def _sides(x, y, x_mask, y_mask, present, top, axis) -> tuple[_Side, _Side, Array]:
    """Both sides, checked, and zero where tokens are not real or rows absent: see `softmax.rows_of`."""
    chex.assert_rank([x, y], 3)
    chex.assert_equal_shape_prefix([x, y], 1)
    chex.assert_equal(x.shape[2], y.shape[2])
    if top < 0:
        raise ValueError(f"top={top} must be positive, or 0 for all tokens.")
    if present is not None:
        chex.assert_shape(present, x.shape[:1])

    def side(tokens, mask):
        if mask is not None:
            chex.assert_shape(mask, tokens.shape[:2])
        for real in (mask, present):
            if real is not None:
                tokens = jnp.where(jnp.expand_dims(real, range(real.ndim, 3)), tokens, 0)
        return _Side(jnp.asarray(tokens), mask)

    x, y = side(x, x_mask), side(y, y_mask)
    present = parallel.varying(jnp.ones(len(x.tokens), bool), axis) if present is None else jnp.asarray(present)
    if top:
        x, y = x._replace(keys=_best_for(x, y, top)), y._replace(keys=_best_for(y, x, top))
    return x, y, present


def _best_for(x: _Side, y: _Side, top: int) -> Array:
    """Which tokens of x have the largest sums of products with those of their own y, [b, k], best first."""
    tokens = jax.lax.stop_gradient(x.tokens)
    whole = jax.lax.stop_gradient(y.tokens).sum(1, dtype=wide(y.tokens))  # [b, D]; tokens that aren't real are 0
    scores = jnp.einsum("bnd,bd->bn", tokens.astype(whole.dtype), whole, precision="highest")
    if x.real is not None:
        scores = jnp.where(x.real, scores, NEVER)
    return jax.lax.top_k(scores, min(top, scores.shape[1]))[1]


def _form(name, x, y, axis, impl, budget_mib, chunk) -> plan.Plan:
    n1, n2 = x.tokens.shape[1], y.tokens.shape[1]
    # Numbers for each pair as compiled by XLA: one tile that is searched from both sides, or one for each of them.
    pair = 4 * n1 * n2 if x.keys is None else 3 * (n1 * y.keys.shape[1] + x.keys.shape[1] * n2)
    return plan.choose(f"{name} of {n1} x {n2} tokens", y.tokens, axis, impl, budget_mib, chunk, pair)


def _similarities(x: _Side, y: _Side) -> tuple[Array, Array]:
    """As `similarities`, where only keys can be found."""
    y_seen, x_seen = y.selected(), x.selected()
    t = _products(x.tokens, y_seen[0])  # [a, n1, c, k]
    s_x = _mean_of_best(t, x.real, y_seen[1])
    if x.keys is not None:
        t = _products(x_seen[0], y.tokens)  # [a, k, c, n2]
    return s_x, _mean_of_best(t.transpose(2, 3, 0, 1), y.real, x_seen[1]).T


def _products(x: Array, y: Array) -> Array:
    """[a, p, D], [c, q, D] -> [a, p, c, q]."""
    return product(x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2]).T).reshape(*x.shape[:2], *y.shape[:2])


def _mean_of_best(t: Array, looking: Array | None, seen: Array | None) -> Array:
    """[a, p, c, q] -> [a, c]: the largest of the q that are seen [c, q], and its mean over p that look [a, p]."""
    if seen is None:
        best = t.max(3)  # [a, p, c]
    else:
        best = jnp.where(seen.any(1), jnp.where(seen, t, NEVER).max(3), 0)
    if looking is None:
        return best.mean(1)
    return jnp.where(looking[..., None], best, 0).sum(1) / jnp.maximum(looking.sum(1), 1)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _lse_of_chunks(x, y, present, scale, axis, ring, chunk) -> tuple[Array, Array]:
    """Log-sum-exps a chunk of columns at a time; the gradient computes the products anew instead of keeping them."""
    return _lse_forward(x, y, present, scale, axis, ring, chunk)[0]


def _lse_forward(x, y, present, scale, axis, ring, chunk):
    def logits(y):
        s_x, s_y = _similarities(x, y)  # [b, c]
        return scale * s_x, scale * s_y

    lse = lse_of_columns(logits, y, present, wide(x.tokens), axis=axis, ring=ring, chunk=chunk)
    return lse, (x, y, present, scale, *lse)


def _lse_backward(axis, ring, chunk, saved, cotangents):
    x, y, present, scale, row_lse, column_lse = saved
    g_row, g_column = cotangents  # [b] each

    def visit(carry, part):
        dx, d_scale = carry
        y, there, column_lse, g_column = part

        def of_tokens(x_tokens, y_tokens):
            return _similarities(x._replace(tokens=x_tokens), y._replace(tokens=y_tokens))

        (s_x, s_y), pull = jax.vjp(of_tokens, x.tokens, y.tokens)
        counts = present[:, None] & there[None]
        by_row = jnp.where(counts, g_row[:, None] * jnp.exp(scale * s_x - row_lse[:, None]), 0)  # [b, c]
        by_column = jnp.where(counts, g_column[None] * jnp.exp(scale * s_y - column_lse[None]), 0)
        dx_here, dy = pull((scale * by_row, scale * by_column))
        d_scale = d_scale + (by_row * s_x + by_column * s_y).sum()
        return (dx + dx_here, d_scale), dy.astype(dx.dtype)

    start = (jnp.zeros(x.tokens.shape, wide(x.tokens)), jnp.zeros((), wide(x.tokens)))
    columns = (y, present, column_lse, g_column)
    (dx, d_scale), dy = parallel.over_columns(visit, start, columns, parallel.SUM, axis=axis, ring=ring, chunk=chunk)
    dx, dy = (_Side(d.astype(side.tokens.dtype), None) for d, side in ((dx, x), (dy, y)))
    return dx, dy, None, d_scale.astype(scale.dtype)


_lse_of_chunks.defvjp(_lse_forward, _lse_backward)
