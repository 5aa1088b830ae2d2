"""The pairwise sigmoid loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses.softmax import rows_of
from mmcl_jax.types import Array


def sigmoid(
    x: Array,
    y: Array,
    present: Array | None = None,
    *,
    scale: Array | float,
    bias: Array | float,
    axis: parallel.Axis = None,
) -> Array:
    """Every pair of the batch is a yes/no question: does this y belong to this x?

    With logits l_ij = scale * x_i . y_j + bias, and z_ij = 1 where i = j and -1 elsewhere, over the N present
    rows of the *global* batch,

        L = - 1 / N * sum_ij log sigmoid(z_ij * l_ij).

    The sum is divided by N, not by N^2. Zhai et al., Sigmoid Loss for Language Image Pre-Training,
    arXiv 2303.15343. Logits and losses are float32 whatever the inputs are.

    Args:
        x: [b, D] unit vectors, this device's rows.
        y: [b, D] unit vectors.
        present: [b] bool; rows that are False make no pairs. None = all count.
        scale: [] multiplier of the cosine.
        bias: [] added to every logit.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; 0 if nothing is present.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(sigmoid(jnp.eye(2), jnp.eye(2), scale=10.0, bias=-10.0)), 4)
        0.6932
    """
    x, y, present = rows_of(x, y, present)
    logits = (
        scale * jnp.dot(x, parallel.gather(y, axis).T, precision="highest", preferred_element_type=jnp.float32) + bias
    )  # [b, B]
    own = jnp.arange(logits.shape[1])[None] == parallel.rows(x.shape[0], axis)[:, None]
    pair_loss = -jax.nn.log_sigmoid(jnp.where(own, logits, -logits))
    pair_loss = jnp.where(parallel.gather(present, axis)[None], pair_loss, 0.0)
    return parallel.mean(pair_loss.sum(1), present, axis)
