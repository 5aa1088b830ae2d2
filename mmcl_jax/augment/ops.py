"""Device ops. Every public function here is an op by its name, called on a whole batch inside jit.

Images are float [B, H, W, 3] in [0, 1] until `normalize`. An op that asks for `keys` [B] is random, with a key per
example that depends on the seed, the name of the draw and the example's position in the global stream, never on the
row it happens to be in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax.types import Array

STATISTICS = {  # mean and standard deviation of RGB in [0, 1]
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to [-1, 1], as SigLIP
}


def normalize(images: Array, statistics: str = "half") -> Array:
    """Takes the mean off and divides by the deviation.

    Args:
        images: [B, H, W, 3] in [0, 1].
        statistics: a name of `STATISTICS`.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"normalize({statistics!r}); possible: {', '.join(STATISTICS)}.")
    mean, std = (jnp.array(s, jnp.float32) for s in STATISTICS[statistics])
    return (images - mean) / std


def gray(images: Array, p: float = 0.2, *, keys: Array) -> Array:
    """Turns an image grey with probability p."""
    turn = jax.vmap(lambda k: jax.random.bernoulli(k, p))(keys)
    return jnp.where(turn[:, None, None, None], _luma(images), images)


def jitter(
    images: Array,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    *,
    keys: Array,
) -> Array:
    """Changes colours as torchvision's ColorJitter does, but always in this order.

    Args:
        images: [B, H, W, 3] in [0, 1].
        brightness: b; the image is multiplied by a factor from [max(0, 1 - b), 1 + b].
        contrast: the same of the difference to the image's mean grey.
        saturation: the same of the difference to each pixel's grey.
        hue: h up to 0.5; hues turn by a share of the circle from [-h, h].
        keys: [B].
    """
    u = jax.vmap(lambda k: jax.random.uniform(k, (4,), minval=-1.0))(keys)[..., None, None, None]  # [B, 4, 1, 1, 1]
    b, c, s = (_factor(strength, u[:, i]) for i, strength in enumerate((brightness, contrast, saturation)))
    x = jnp.clip(images * b, 0, 1)
    x = _blend(x, _luma(x).mean((1, 2), keepdims=True), c)
    x = _blend(x, _luma(x), s)
    return turn_hue(x, hue * u[:, 3]) if hue else x


def turn_hue(images: Array, turn: Array) -> Array:
    """Turns hues, by way of HSV.

    Args:
        images: [B, H, W, 3] in [0, 1].
        turn: share of the circle, broadcast against images.
    """
    r, g, b = jnp.moveaxis(images, -1, 0)
    top, low = images.max(-1), images.min(-1)
    spread = jnp.where(top > low, top - low, 1.0)
    sixth = jnp.where(top == r, (g - b) / spread, jnp.where(top == g, (b - r) / spread + 2, (r - g) / spread + 4))
    k = (jnp.array([5.0, 3.0, 1.0]) + sixth[..., None] + 6 * turn) % 6
    return top[..., None] - (top - low)[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def _luma(images: Array) -> Array:
    """Grey [B, H, W, 1] of ITU-R 601, as torchvision's."""
    return (images @ jnp.array([0.2989, 0.587, 0.114], jnp.float32))[..., None]


def _factor(strength: float, u: Array) -> Array:
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + (high - low) * (u + 1) / 2


def _blend(images: Array, base: Array, factor: Array) -> Array:
    return jnp.clip(base + factor * (images - base), 0, 1)
