"""Device ops against Pillow and colorsys."""

import colorsys

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mmcl_jax.augment import ops

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.mark.parametrize(
    "which, enhance",
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_jitter_is_that_of_pillow(which, enhance):
    changed = np.asarray(ops.jitter(IMAGES / np.float32(255), **{which: 0.8}, keys=KEYS))
    index = ("brightness", "contrast", "saturation").index(which)
    for image, new, key in zip(IMAGES, changed, KEYS, strict=True):
        factor = 1 + 0.8 * float(jax.random.uniform(key, (4,), minval=-1.0)[index])
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor))
        np.testing.assert_allclose(255 * new, expected, atol=2.1)  # Pillow rounds each step to whole numbers
    assert np.abs(changed - IMAGES / 255).max() > 0.1


def test_hue_is_that_of_colorsys():
    images = IMAGES / np.float32(255)
    images[0, 0] = 0.4  # grey has no hue, and keeps none
    changed = np.asarray(ops.turn_hue(images, np.float32(0.3)))
    for old, new in zip(images.reshape(-1, 3), changed.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*old.tolist())
        np.testing.assert_allclose(new, colorsys.hsv_to_rgb((h + 0.3) % 1, s, v), atol=1e-5)


def test_no_strength_changes_nothing():
    images = IMAGES / np.float32(255)
    np.testing.assert_allclose(ops.jitter(images, keys=KEYS), images, atol=1e-6)


def test_gray_follows_its_probability():
    images = np.repeat(IMAGES[:1], 200, 0) / np.float32(255)
    grey = np.asarray(ops.gray(images, 0.25, keys=jax.random.split(jax.random.key(1), 200)))
    turned = (grey[..., 0] == grey[..., 1]).all((1, 2))
    assert 0.15 < turned.mean() < 0.35
    np.testing.assert_allclose(grey[turned][0, ..., 0], images[0] @ np.float32([0.2989, 0.587, 0.114]), rtol=1e-5)
