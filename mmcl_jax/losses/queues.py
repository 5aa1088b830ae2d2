"""Losses against a queue of keys from earlier batches: the queue is shared by all examples, and so by all devices.

All of them take

    q: [b, D] unit vectors, this device's queries.
    k: [b, D] unit vectors, the key of each query's own example.
    present: [b] bool; rows that are False count for nothing. None = all count.
    queue: [K, D] unit vectors, keys of other examples.
    valid: [K] bool; slots of the queue that are False count for nothing. None = all count.
    axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

and return [] float32, the same on all devices; 0 if nothing is present. Keys and queue come without gradient: the
method stops it, where it makes them.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses.softmax import NEVER, product, rows_of, wide
from mmcl_jax.types import Array


def queue_nce(
    q: Array,
    k: Array,
    present: Array | None = None,
    *,
    queue: Array,
    valid: Array | None = None,
    scale: Array | float,
    axis: parallel.Axis = None,
) -> Array:
    """InfoNCE in which the negatives are the queue's: each query should find its own key among them.

        L = 1 / N * sum_i [ log( exp(scale q_i . k_i) + sum_j exp(scale q_i . queue_j) ) - scale q_i . k_i ].

    He et al., Momentum Contrast for Unsupervised Visual Representation Learning, arXiv 1911.05722, equation 1.

    Args:
        q: see the module's docstring, as for the others that are not named here.
        k: likewise.
        present: likewise.
        queue: likewise.
        valid: likewise.
        scale: [] multiplier of the cosine, 1 / temperature.
        axis: likewise.

    Example:
        >>> import jax.numpy as jnp
        >>> e = jnp.eye(2)
        >>> round(float(queue_nce(e[:1], e[:1], queue=e[1:], scale=1.0)), 4)
        0.3133
    """
    positive, negatives, present = _logits(q, k, present, queue, valid, scale, axis)
    lse = jax.nn.logsumexp(jnp.concatenate([positive[:, None], negatives], axis=1), axis=1)  # [b]
    return parallel.mean(lse - positive, present, axis)


def queue_tag_nce(
    q: Array,
    k: Array,
    tags: Array,
    present: Array | None = None,
    *,
    queue: Array,
    queue_tags: Array,
    valid: Array | None = None,
    scale: Array | float,
    threshold: float,
    axis: parallel.Axis = None,
) -> Array:
    """As `queue_nce`, but keys whose examples share more than `threshold` tags with the query's are positives, too.

    With P_i the query's own key and those keys, and l the logits,

        L = 1 / N * sum_i [ logsumexp over own key and queue (l_i) - 1 / |P_i| * sum_{p in P_i} l_ip ].

    Yuan et al., Multimodal Contrastive Training for Visual Representation Learning, arXiv 2104.12836; the form with
    the sum outside of the logarithm of Khosla et al., Supervised Contrastive Learning, arXiv 2004.11362.

    Args:
        q: see the module's docstring, as for the others that are not named here.
        k: likewise.
        tags: [b, T], 1 for the tags that an example has and 0 for others.
        present: likewise.
        queue: likewise.
        queue_tags: [K, T], those of the queue's examples.
        valid: likewise.
        scale: [] multiplier of the cosine, 1 / temperature.
        threshold: number of shared tags that is not enough yet.
        axis: likewise.
    """
    chex.assert_rank([tags, queue_tags], 2)
    positive, negatives, present = _logits(q, k, present, queue, valid, scale, axis)
    lse = jax.nn.logsumexp(jnp.concatenate([positive[:, None], negatives], axis=1), axis=1)  # [b]
    shared = product(tags.astype(q.dtype), queue_tags.T.astype(q.dtype)) > threshold  # [b, K]
    also = shared if valid is None else shared & valid[None]
    mean = (positive + jnp.where(also, negatives, 0).sum(1)) / (1 + also.sum(1))
    return parallel.mean(lse - mean, present, axis)


def queue_margin(
    q: Array,
    k: Array,
    present: Array | None = None,
    *,
    queue: Array,
    valid: Array | None = None,
    margin: float,
    axis: parallel.Axis = None,
) -> Array:
    """Each query's own key should be closer than every key of the queue, by a margin of the cosine.

        L = 1 / N * sum_i sum_j max(0, q_i . queue_j - q_i . k_i + margin),

    a mean over queries, but a sum over the queue. Yuan et al., arXiv 2104.12836.

    Args:
        q: see the module's docstring, as for the others that are not named here.
        k: likewise.
        present: likewise.
        queue: likewise.
        valid: likewise.
        margin: difference of cosines.
        axis: likewise.
    """
    positive, negatives, present = _logits(q, k, present, queue, valid, 1.0, axis)
    return parallel.mean(jax.nn.relu(negatives - positive[:, None] + margin).sum(1), present, axis)


def queue_accuracy(
    q: Array,
    k: Array,
    present: Array | None = None,
    *,
    queue: Array,
    valid: Array | None = None,
    axis: parallel.Axis = None,
) -> Array:
    """Share of the present queries whose own key is closer than all of the queue; ties count as misses.

    Args:
        q: see the module's docstring, as for the others.
        k: likewise.
        present: likewise.
        queue: likewise.
        valid: likewise.
        axis: likewise.
    """
    positive, negatives, present = _logits(*jax.lax.stop_gradient((q, k, present, queue, valid)), 1.0, axis)
    return parallel.mean((positive > negatives.max(1)).astype(jnp.float32), present, axis)


def _logits(q, k, present, queue, valid, scale, axis) -> tuple[Array, Array, Array]:
    """Logits of the own keys [b], of the queue [b, K], far below all others where it is not valid, and present [b]."""
    q, k, present = rows_of(q, k, present, axis)
    chex.assert_shape(queue, (None, q.shape[1]))
    positive = scale * jnp.einsum("bd,bd->b", q, k, precision="highest", preferred_element_type=wide(q))
    negatives = scale * product(q, queue.T)
    return positive, negatives if valid is None else jnp.where(valid[None], negatives, NEVER), present
