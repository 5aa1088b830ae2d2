"""Device ops. Every public function here is an op by its name, called on a whole batch inside jit.

Images are float [B, H, W, 3] in [0, 1] until `normalize`, sounds float [B, T] in [-1, 1] until `log_mel`. An op that
asks for `keys` [B] is random, with a key per example that depends on the seed, the name of the draw and the example's
position in the global stream, never on the row it happens to be in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax.augment import mel
from mmcl_jax.augment.resample import draw_boxes, gaussian_blur, resized_crop
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


def crop(
    images: Array,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bicubic",
    *,
    keys: Array,
) -> Array:
    """Random resized crop to a square (Szegedy et al. 2015), boxes and resampling as in torchvision on Pillow images.

    For small images that all have one size; full-size photos are cropped on the host.

    Args:
        images: [B, H, W, 3] in [0, 1].
        size: of the square, pixels.
        scale: share of the image's area, uniform between these.
        ratio: width / height of the box, log-uniform between these.
        method: "bicubic" or "bilinear".
        keys: [B].
    """
    boxes = draw_boxes(keys, *images.shape[1:3], scale, ratio)
    return jnp.clip(resized_crop(images, boxes, size, method), 0, 1)


def flip(images: Array, p: float = 0.5, *, keys: Array) -> Array:
    """Mirrors an image left and right with probability p."""
    return jnp.where(_chosen(p, keys), images[:, :, ::-1], images)


def gray(images: Array, p: float = 0.2, *, keys: Array) -> Array:
    """Turns an image grey with probability p."""
    return jnp.where(_chosen(p, keys), _luma(images), images)


def solarize(images: Array, p: float = 0.2, threshold: float = 0.5, *, keys: Array) -> Array:
    """With probability p, turns values from the threshold on into their negative, 1 - value (Grill et al. 2020)."""
    return jnp.where(_chosen(p, keys) & (images >= threshold), 1 - images, images)


def blur(
    images: Array,
    p: float = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
    taps: int = 0,
    pad: str = "zero",
    *,
    keys: Array,
) -> Array:
    """Blurs an image by a Gaussian with probability p (Chen et al. 2020, SimCLR).

    Args:
        images: [B, H, W, 3] in [0, 1].
        p: probability.
        sigma: standard deviation, uniform between these, pixels.
        taps: length of the kernel, odd; 0 for SimCLR's rule, 2 * (H // 10 // 2) + 1: 23 at 224, 3 at 32.
        pad: what lies beyond the image: "zero" (black, as SimCLR) or "edge" (the nearest pixel, as Pillow).
        keys: [B].
    """
    u = _uniform(keys, 2)
    taps = taps or 2 * (images.shape[1] // 10 // 2) + 1
    blurred = gaussian_blur(images, sigma[0] + (sigma[1] - sigma[0]) * u[:, 1], taps, pad)
    return jnp.where(_per_example(u[:, 0] < p), blurred, images)


def jitter(
    images: Array,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    shuffled: bool = True,
    *,
    keys: Array,
) -> Array:
    """Changes colours as torchvision's ColorJitter does.

    Args:
        images: [B, H, W, 3] in [0, 1].
        brightness: b; the image is multiplied by a factor from [max(0, 1 - b), 1 + b].
        contrast: the same of the difference to the image's mean grey.
        saturation: the same of the difference to each pixel's grey.
        hue: h up to 0.5; hues turn by a share of the circle from [-h, h].
        shuffled: whether every example has an order of these four of its own; else it is the one above for all.
        keys: [B].
    """
    u = 2 * _uniform(keys, 8 if shuffled else 4) - 1
    factors = jnp.stack([_factor(s, u[:, i]) for i, s in enumerate((brightness, contrast, saturation))], 1)
    blends, before_hue = (0, 1, 2), 3
    if shuffled:  # the order is that of four random numbers, the last of them for hue
        order = jnp.argsort(u[:, 4:7], 1)
        factors = jnp.take_along_axis(factors, order, 1)
        blends = [_per_example(which) for which in order.T]
        before_hue = _per_example((u[:, 4:7] < u[:, 7:]).sum(1)) if hue else 3
    factors = [_per_example(factor) for factor in factors.T]

    def blend(x, active):
        for i in range(3):
            x = _blend(x, blends[i], jnp.where(active(i), factors[i], 1.0))
        return x

    # Hue is by far the costliest, so it is evaluated once: what comes before it in an example's order, hue, the rest.
    x = blend(images, lambda i: i < before_hue)
    if hue:
        x = turn_hue(x, _per_example(hue * u[:, 3]))
        x = blend(x, lambda i: i >= before_hue) if shuffled else x
    return x


def turn_hue(images: Array, turn: Array) -> Array:
    """Turns hues, by way of HSV.

    Args:
        images: [B, H, W, 3] in [0, 1].
        turn: share of the circle, broadcast against images.
    """
    r, g, b = (images[..., i : i + 1] for i in range(3))
    top, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
    spread = jnp.where(top > low, top - low, 1.0)
    # Not top == r: when XLA computes r twice, fused in two ways, the last bit may differ and the hue would be another.
    of_green, of_blue = (b - r) / spread + 2, (r - g) / spread + 4
    sixth = jnp.where((r >= g) & (r >= b), (g - b) / spread, jnp.where(g >= b, of_green, of_blue))
    k = jnp.array([5.0, 3.0, 1.0]) + (sixth + 6 * turn)
    k = k - 6 * jnp.floor(k / 6)  # on a CPU much faster than k % 6
    return top - (top - low) * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def one_channel(images: Array) -> Array:
    """The first of equal channels, [B, H, W, 3] -> [B, H, W, 1]: of depth and heat that came as grey images."""
    return images[..., :1]


def log_mel(
    waves: Array, rate: int = 16_000, mels: int = 128, frames: int = 0, window_ms: float = 25.0, hop_ms: float = 10.0
) -> Array:
    """Sounds to log-mel spectrograms, which encoders take as images of one channel; see `mel.log_mel`.

    Args:
        waves: [B, T] in [-1, 1].
        rate: Hz.
        mels: number of bands.
        frames: columns of the result: cut off, or filled up with zeros, as ImageBind's 204 are; 0 = as many as there
            are, 198 of two seconds.
        window_ms: length of a window.
        hop_ms: from one window to the next.

    Returns:
        [B, mels, frames, 1] float32.
    """
    x = mel.log_mel(waves, rate, mels, window_ms, hop_ms)
    frames = frames or x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, max(0, frames - x.shape[2]))))[:, :, :frames, None]


def standardize(x: Array, mean: float = 0.0, std: float = 1.0) -> Array:
    """(x - mean) / std. Of spectrograms (Gong et al. 2021, AST, arXiv 2104.01778) ImageBind's are -4.268 and 9.138."""
    return (x - mean) / std


def spec_augment(spectrograms: Array, freq: int = 12, time: int = 48, times: int = 1, *, keys: Array) -> Array:
    """Sets stretches of bands and of frames to 0, the mean once standardized (Park et al. 2019, arXiv 1904.08779).

    Args:
        spectrograms: [B, mels, frames, 1], after `standardize`.
        freq: bands of a stretch, at most.
        time: frames of a stretch, at most.
        times: stretches of either kind.
        keys: [B].
    """

    def hidden(key):
        bands, frames = (
            jnp.stack([mel.masks(k, length, longest) for k in ks]).any(0)
            for ks, length, longest in zip(
                jax.random.split(key, (2, times)), spectrograms.shape[1:3], (freq, time), strict=True
            )
        )
        return bands[:, None] | frames[None]

    return jnp.where(jax.vmap(hidden)(keys)[..., None], 0, spectrograms)


def gain(waves: Array, decibels: float = 6.0, *, keys: Array) -> Array:
    """Makes sounds louder or softer by up to so many decibels, uniform on both sides."""
    u = 2 * _uniform(keys, 1) - 1
    return waves * 10 ** (u * decibels / 20)


def _luma(images: Array) -> Array:
    """Grey [B, H, W, 1] of ITU-R 601, as torchvision's."""
    # Channel by channel: a product with a vector would be in bfloat16 on a TPU, a sum over an axis is slow on a CPU.
    return 0.2989 * images[..., :1] + 0.587 * images[..., 1:2] + 0.114 * images[..., 2:]


def _factor(strength: float, u: Array) -> Array:
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + (high - low) * (u + 1) / 2


def _blend(images: Array, which: int | Array, factor: Array) -> Array:
    """Brightness (0), contrast (1) or saturation (2): away from black, the mean grey or each pixel's, or towards it."""
    grey = _luma(images)
    base = jnp.where(which == 0, 0.0, jnp.where(which == 1, grey.mean((1, 2), keepdims=True), grey))
    return jnp.clip(base + factor * (images - base), 0, 1)


def _chosen(p: float, keys: Array) -> Array:
    """Which examples an op of probability p changes, [B, 1, 1, 1] bool."""
    return _per_example(jax.vmap(lambda k: jax.random.bernoulli(k, p))(keys))


def _uniform(keys: Array, count: int) -> Array:
    """Random numbers [B, count] from [0, 1)."""
    return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)


def _per_example(values: Array) -> Array:
    """[B] -> [B, 1, 1, 1], to go with images."""
    return values[:, None, None, None]
