"""Contrastive losses with a softmax over the batch."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.types import Array

# Stands for minus infinity in logits: exp gives 0, and inf - inf cannot make NaN where a whole row is absent.
_NEVER = -1e30


def rows_of(x: Array, y: Array, present: Array | None) -> tuple[Array, Array, Array]:
    """The rows of a loss, checked, and zero where they are absent: not even NaN there can reach a value or a gradient.

    Args:
        x: [b, D].
        y: [b, D].
        present: [b] bool, or None for all.

    Returns:
        x, y and present as an array.

    Raises:
        AssertionError: if the shapes are others.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape([x, y])
    if present is None:
        return x, y, jnp.ones(x.shape[0], bool)
    chex.assert_shape(present, x.shape[:1])
    return jnp.where(present[:, None], x, 0), jnp.where(present[:, None], y, 0), present


def info_nce(
    x: Array, y: Array, present: Array | None = None, *, scale: Array | float, axis: parallel.Axis = None
) -> Array:
    """Symmetric InfoNCE: each x should find its own y among all of the batch, and each y its own x.

    With logits l_ij = scale * x_i . y_j over the N present rows of the *global* batch,

        L = 1 / (2 N) * sum_i [ (logsumexp_j l_ij - l_ii) + (logsumexp_j l_ji - l_ii) ].

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020.
    Both directions share one tile of logits: only y is gathered, and the log-sum-exp over columns is combined
    across devices. Logits and losses are float32 whatever the inputs are,
    also on accelerators whose matrix products are coarser unless asked.

    Args:
        x: [b, D] unit vectors, this device's rows.
        y: [b, D] unit vectors.
        present: [b] bool; rows that are False count neither as queries nor as negatives. None = all count.
        scale: [] multiplier of the cosine, 1 / temperature.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; 0 if nothing is present.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(info_nce(jnp.eye(2), jnp.eye(2), scale=1.0)), 4)
        0.3133
    """
    x, y, present = rows_of(x, y, present)
    present_all = parallel.gather(present, axis)  # [B]
    logits = scale * jnp.dot(
        x, parallel.gather(y, axis).T, precision="highest", preferred_element_type=jnp.float32
    )  # [b, B]
    positive = scale * jnp.einsum("bd,bd->b", x, y, precision="highest", preferred_element_type=jnp.float32)  # [b]

    row_lse = jax.nn.logsumexp(jnp.where(present_all[None], logits, _NEVER), axis=1)  # [b]
    columns = jnp.where(present[:, None], logits, _NEVER)
    peak = parallel.maximum(columns.max(0), axis)  # [B]; a fixed shift would underflow at scale 100
    column_lse = jnp.log(parallel.total(jnp.exp(columns - peak).sum(0), axis)) + peak  # [B]
    column_lse = column_lse[parallel.rows(x.shape[0], axis)]  # [b], this device's columns

    return 0.5 * parallel.mean(row_lse + column_lse - 2 * positive, present, axis)


def in_batch_accuracy(x: Array, y: Array, present: Array | None = None, *, axis: parallel.Axis = None) -> Array:
    """Share of the present rows whose own y is the most similar of the global batch; ties count as misses.

    Args:
        x: [b, D] unit vectors.
        y: [b, D] unit vectors.
        present: [b] bool or None.
        axis: mesh axes of the rows.

    Returns:
        [] float32, without gradient; 0 if nothing is present.

    Example:
        >>> import jax.numpy as jnp
        >>> float(in_batch_accuracy(jnp.eye(3), jnp.eye(3)[jnp.array([0, 2, 1])]))
        0.3333333432674408
    """
    x, y, present = jax.lax.stop_gradient(rows_of(x, y, present))
    scores = jnp.dot(x, parallel.gather(y, axis).T, precision="highest", preferred_element_type=jnp.float32)  # [b, B]
    own = jnp.arange(scores.shape[1])[None] == parallel.rows(x.shape[0], axis)[:, None]
    positive = jnp.where(own, scores, 0).sum(1)
    others = jnp.where(parallel.gather(present, axis)[None] & ~own, scores, _NEVER)
    return parallel.mean((positive > others.max(1)).astype(jnp.float32), present, axis)
