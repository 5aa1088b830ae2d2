"""Sparsemax (Martins & Astudillo 2016, arXiv 1602.02068): the point of the simplex that is nearest to the logits."""

import jax
import jax.numpy as jnp

from mmcl_jax.types import Array


@jax.custom_vjp
def sparsemax(logits: Array) -> Array:
    """Weights that add up to 1, most of them exactly 0 where logits differ: max(logits - tau, 0).

    With z sorted downwards and k the largest number for which 1 + k z_(k) > z_(1) + ... + z_(k), tau is
    (z_(1) + ... + z_(k) - 1) / k. The gradient is taken in closed form: on the support g minus its mean there.

    Args:
        logits: [..., K], any float dtype; computed in float32, for sums of thousands of them.

    Returns:
        [..., K] float32.

    Example:
        >>> import jax.numpy as jnp
        >>> sparsemax(jnp.array([1.0, 0.5, -1.0])).tolist()
        [0.75, 0.25, 0.0]
    """
    z = logits.astype(jnp.float32)
    z = z - z.max(-1, keepdims=True)  # nothing is changed by it, but large logits would lose their digits in the sum
    downwards = -jnp.sort(-z, axis=-1)
    sums = jnp.cumsum(downwards, axis=-1)
    count = jnp.arange(1, z.shape[-1] + 1, dtype=jnp.float32)
    size = (1 + count * downwards > sums).sum(-1, keepdims=True)  # k, at least 1
    tau = (jnp.take_along_axis(sums, size - 1, axis=-1) - 1) / size
    return jnp.maximum(z - tau, 0)


def _forward(logits):
    weights = sparsemax(logits)
    return weights, (weights > 0, jnp.zeros((), logits.dtype))


def _backward(saved, g):
    support, like = saved
    mean = jnp.where(support, g, 0).sum(-1, keepdims=True) / support.sum(-1, keepdims=True)
    return (jnp.where(support, g - mean, 0).astype(like.dtype),)


sparsemax.defvjp(_forward, _backward)
