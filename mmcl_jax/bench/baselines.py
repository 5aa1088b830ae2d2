"""The contrastive loss as it is usually distributed: what ours is measured against, and an oracle for its tests.

Called like `losses.info_nce` or `losses.tokenwise_nce`, without their forms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses.softmax import product, rows_of, wide
from mmcl_jax.types import Array


def naive(x: Array, y: Array, present: Array | None = None, *, scale: Array | float, axis: parallel.Axis = None):
    """Both towers gathered, the whole B x B problem solved on every device: open_clip without `local_loss`."""
    x, y, present = (parallel.gather(a, axis) for a in rows_of(x, y, present, axis))
    own = jnp.arange(len(x))
    there = jnp.where(present, 0, -1e30)[None]
    rows = _cross_entropy(scale * product(x, y.T) + there, own)
    columns = _cross_entropy(scale * product(y, x.T) + there, own)
    # Each device has the same; the mean over devices is that, and lets the gradient of each count once.
    devices = parallel.size(axis)
    return parallel.total(parallel.mean(rows + columns, present, None) / 2, axis) / devices


def local_rows(x: Array, y: Array, present: Array | None = None, *, scale: Array | float, axis: parallel.Axis = None):
    """Both towers gathered, each device's rows of both directions: open_clip's `local_loss` and `gather_with_grad`."""
    x, y, present = rows_of(x, y, present, axis)
    own = parallel.rows(len(x), axis)
    there = jnp.where(parallel.gather(present, axis), 0, -1e30)[None]
    rows = _cross_entropy(scale * product(x, parallel.gather(y, axis).T) + there, own)
    columns = _cross_entropy(scale * product(y, parallel.gather(x, axis).T) + there, own)
    return parallel.mean(rows + columns, present, axis) / 2


def naive_tokenwise(
    x: Array,
    y: Array,
    x_mask: Array | None = None,
    y_mask: Array | None = None,
    present: Array | None = None,
    *,
    scale: Array | float,
    axis: parallel.Axis = None,
):
    """Like `naive`, of `losses.tokenwise_nce`: all B x B x n1 x n2 products on every device."""
    b, (n1, n2) = len(x), (v.shape[1] for v in (x, y))
    present = parallel.varying(jnp.ones(b, bool), axis) if present is None else present
    x_mask = jnp.broadcast_to(present[:, None], (b, n1)) if x_mask is None else x_mask & present[:, None]
    y_mask = jnp.broadcast_to(present[:, None], (b, n2)) if y_mask is None else y_mask & present[:, None]
    x, y, x_mask, y_mask, present = (parallel.gather(a, axis) for a in (x, y, x_mask, y_mask, present))
    x, y = jnp.where(x_mask[..., None], x, 0), jnp.where(y_mask[..., None], y, 0)
    t = jnp.einsum("ipd,jqd->ipjq", x, y, precision="highest", preferred_element_type=wide(x))
    best_x = jnp.where(y_mask.any(1), jnp.where(y_mask, t, -1e30).max(3), 0)  # [i, p, j]
    s_x = jnp.where(x_mask[..., None], best_x, 0).sum(1) / jnp.maximum(x_mask.sum(1), 1)[:, None]
    best_y = jnp.where(x_mask.any(1)[:, None, None], jnp.where(x_mask[..., None, None], t, -1e30).max(1), 0)
    s_y = (jnp.where(y_mask, best_y, 0).sum(2) / jnp.maximum(y_mask.sum(1), 1)).T  # [j, i]
    own, there = jnp.arange(len(x)), jnp.where(present, 0, -1e30)[None]
    rows = _cross_entropy(scale * s_x + there, own) + _cross_entropy(scale * s_y + there, own)
    devices = parallel.size(axis)
    return parallel.total(parallel.mean(rows, present, None) / 2, axis) / devices


def _cross_entropy(logits: Array, own: Array) -> Array:
    """[n] from logits [n, B], the right column of each row being `own` [n]."""
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
