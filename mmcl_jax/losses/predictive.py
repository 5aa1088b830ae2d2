"""Losses that predict rather than compare with all of the batch: a view from the other, a word from its context."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses.softmax import wide
from mmcl_jax.types import Array

PLACES = 8  # whose logits are in memory at a time


def simsiam(
    p0: Array, p1: Array, z0: Array, z1: Array, present: Array | None = None, *, axis: parallel.Axis = None
) -> Array:
    """The prediction made from each of two views should point to where the other view lies.

        L = -1 / (2 N) * sum_i [ p0_i . z1_i + p1_i . z0_i ], with no gradient through z: -1 at best.

    Chen & He, Exploring Simple Siamese Representation Learning, arXiv 2011.10566, equations 1 to 4.

    Args:
        p0: [b, D] unit vectors, predictions made from the first view.
        p1: [b, D] unit vectors, from the second.
        z0: [b, D] unit vectors, the first view's.
        z1: [b, D] unit vectors, the second's.
        present: [b] bool, examples of which both views are there; None = all.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; 0 if nothing is present.
    """
    chex.assert_rank(p0, 2)
    chex.assert_equal_shape([p0, p1, z0, z1])
    z0, z1 = jax.lax.stop_gradient((z0, z1))

    def cosine(p, z):
        return jnp.einsum("bd,bd->b", p, z, precision="highest", preferred_element_type=wide(p))

    both = cosine(p0, z1) + cosine(p1, z0)
    both = both if present is None else jnp.where(present, both, 0)
    return -0.5 * parallel.mean(both, present, axis)


def masked_tokens(
    tokens: Array,
    labels: Array,
    present: Array | None = None,
    *,
    kernel: Array,
    bias: Array,
    axis: parallel.Axis = None,
) -> Array:
    """Cross entropy of the tokens that were hidden, a mean over all of them in the global batch.

    Devlin et al., BERT, arXiv 1810.04805, section 3.1. Logits of all places, [b, N, V], would be the largest array of
    a step: they are made a few places at a time, and once more for the gradient.

    Args:
        tokens: [b, N, D] of each place.
        labels: [b, N] int, the token that belongs there; negative where none was hidden.
        present: [b] bool; None = all.
        kernel: [D, V] of the head that makes logits of tokens.
        bias: [V] of the head.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; 0 if nothing is hidden.
    """
    chex.assert_equal_shape_prefix([tokens, labels], 2)
    hidden = labels >= 0
    hidden = hidden if present is None else hidden & present[:, None]
    tokens = jnp.where(hidden[..., None], tokens, 0).astype(wide(tokens))
    kernel, bias = parallel.varying((kernel, bias), axis)  # their gradients are summed once, not for each part

    def nll(part):
        tokens, labels = part  # [p, b, D], [p, b]
        logits = tokens @ kernel + bias
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - own

    places = (tokens.swapaxes(0, 1), jnp.where(hidden, labels, 0).T)
    each = jax.lax.map(jax.checkpoint(nll), places, batch_size=PLACES) if labels.shape[1] > PLACES else nll(places)
    return parallel.mean(each.T.reshape(-1), hidden.reshape(-1), axis)
