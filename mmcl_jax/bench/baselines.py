"""The contrastive loss as it is usually distributed: what ours is measured against, and an oracle for its tests.

Called like `losses.info_nce`, without its forms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses.softmax import product, rows_of
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


def _cross_entropy(logits: Array, own: Array) -> Array:
    """[n] from logits [n, B], the right column of each row being `own` [n]."""
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
