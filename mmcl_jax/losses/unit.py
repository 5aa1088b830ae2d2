"""Unit vectors."""

import jax.numpy as jnp
from jax import lax

from mmcl_jax.types import Array


def unit(x: Array) -> Array:
    """Scales the last axis to length 1, in float32.

    The zero vector stays zero and its gradient is finite, where `x / norm(x)` would make NaN: an encoder may
    give zeros for an empty caption.

    Args:
        x: [..., D], any float dtype.

    Returns:
        [..., D] float32.

    Example:
        >>> import jax.numpy as jnp
        >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
