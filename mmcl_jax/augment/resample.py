"""Resized crops and blurs: separable filters with weights per example, applied as two batched matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax.types import Array

TRIES = 10  # boxes drawn per example, as torchvision does


def draw_boxes(keys: Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Array:
    """Draws boxes as torchvision's RandomResizedCrop: share of the area uniform, aspect log-uniform.

    The first of ten boxes that lies within the image is taken; if none does, the largest in the middle that has an
    aspect within `ratio`.

    Args:
        keys: [B].
        height: of the images, pixels.
        width: of the images, pixels.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height.

    Returns:
        [B, 4] int32: top, left, height, width.
    """

    def draw(key):
        # Drawn in one row, which compiles in a fourth of the time of [4, TRIES].
        u_area, u_aspect, u_top, u_left = jax.random.uniform(key, (4 * TRIES,)).reshape(4, TRIES)
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** u_aspect
        w, h = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top, left = jnp.floor(u_top * (height - h + 1)), jnp.floor(u_left * (width - w + 1))
        fits = (0 < w) & (w <= width) & (0 < h) & (h <= height)
        return jnp.where(fits.any(), jnp.stack([top, left, h, w])[:, fits.argmax()], jnp.array(middle))

    h, w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    middle = (height - h) // 2, (width - w) // 2, h, w
    return jax.vmap(draw)(keys).astype(jnp.int32)


def resized_crop(images: Array, boxes: Array, size: int, method: str = "bicubic") -> Array:
    """Cuts a box out of every image and resizes it to a square, antialiased, as Pillow resizes the image cut out.

    Unlike Pillow, nothing is rounded or clipped between the two passes: with bicubic some values at hard edges differ
    by a few grey levels, in pure noise by twenty. `jax.image.scale_and_translate` has the same filters, but pixels
    outside a box would seep in at its edges.

    Args:
        images: [B, H, W, C] float.
        boxes: [B, 4] int: top, left, height, width, within the image.
        size: of the square, pixels.
        method: "bicubic" or "bilinear".

    Returns:
        [B, size, size, C]; bicubic overshoots at sharp edges, so clip it.
    """
    if method not in FILTERS:
        raise ValueError(f"method={method!r}; possible: {', '.join(FILTERS)}.")
    top, left, height, width = boxes.T
    rows = _resizing(top, height, size, images.shape[1], method)
    columns = _resizing(left, width, size, images.shape[2], method)
    return _separable(images, rows, columns)


def gaussian_blur(images: Array, sigma: Array, taps: int, pad: str = "zero") -> Array:
    """Blurs by a Gaussian cut off after some pixels, horizontally and vertically.

    Args:
        images: [B, H, W, C] float.
        sigma: [B] standard deviations, pixels.
        taps: length of the kernel, odd.
        pad: what lies beyond the image: "zero" (black) or "edge" (the nearest pixel).
    """
    if taps < 1 or taps % 2 == 0:
        raise ValueError(f"taps={taps}; must be odd.")
    if pad not in ("zero", "edge"):
        raise ValueError(f"pad={pad!r}; possible: zero, edge.")
    radius = taps // 2
    beyond = radius if pad == "edge" else 0  # zeros need not be multiplied
    rows, columns = (_blurring(n, sigma, radius, beyond) for n in images.shape[1:3])
    images = jnp.pad(images, ((0, 0), (beyond, beyond), (beyond, beyond), (0, 0)), mode="edge")
    return _separable(images, rows, columns)


def _separable(images: Array, rows: Array, columns: Array) -> Array:
    """Weights [B, h, H] and [B, w, W], images [B, H, W, C] -> [B, h, w, C].

    A blur's matrices are mostly zeros; still, on a CPU they take a quarter of the time of adding up 23 shifted copies
    at 32 pixels and nine tenths at 224, and matrix products are what accelerators are made for.
    """
    images = jnp.einsum("bij,bjwc->biwc", rows, images, precision="highest")  # bfloat16 would be off by a grey level
    return jnp.einsum("bij,bhjc->bhic", columns, images, precision="highest")


def _resizing(start: Array, length: Array, size: int, pixels: int, method: str) -> Array:
    """Weights [B, size, pixels] that resize the part [start, start + length) of a row of pixels; start, length: [B]."""
    start, length = start[:, None, None], length[:, None, None]
    kernel, shrink = FILTERS[method], jnp.maximum(length / size, 1.0)  # when shrinking, the filter covers more pixels
    centres = start + (jnp.arange(size)[:, None] + 0.5) * (length / size)
    at = jnp.arange(pixels)
    weights = kernel(jnp.abs(at + 0.5 - centres) / shrink) * ((start <= at) & (at < start + length))
    return weights / weights.sum(-1, keepdims=True)


def _blurring(pixels: int, sigma: Array, radius: int, beyond: int) -> Array:
    """Weights [B, pixels, beyond + pixels + beyond] of a Gaussian; sigma: [B]."""
    sigma = sigma[:, None, None]
    distance = jnp.arange(pixels)[:, None] - jnp.arange(-beyond, pixels + beyond)
    total = jnp.exp(-((jnp.arange(-radius, radius + 1) / sigma) ** 2) / 2).sum(-1, keepdims=True)
    return jnp.where(jnp.abs(distance) <= radius, jnp.exp(-((distance / sigma) ** 2) / 2), 0.0) / total


def _triangle(distance: Array) -> Array:
    return jnp.maximum(1 - distance, 0)


def _keys_cubic(distance: Array) -> Array:
    """The cubic of Keys (1981) with a = -1/2."""
    d = distance
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))


FILTERS = {"bicubic": _keys_cubic, "bilinear": _triangle}  # weight by distance in pixels of the result
