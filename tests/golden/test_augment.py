"""Device and host ops against Pillow, torchvision and SimCLR's blur; factors are read out of the arrays' names."""

import re

import jax
import numpy as np
import pytest

from mmcl_jax.augment import ops as device
from mmcl_jax.augment.resample import gaussian_blur, resized_crop
from mmcl_jax.data import ops as host
from tests.golden.reference import load

G = load("augment_ops")
SMALL = G["in_small_HWC_u8"]
FLOATS = SMALL[None] / np.float32(255)
KEYS = jax.random.split(jax.random.key(0), 1)
BLENDS = ("brightness", "contrast", "saturation")
METHODS = ("bilinear", "bicubic")


class Fixed:
    """A generator of random numbers whose `uniform` is known and whose `random` is below every probability."""

    def __init__(self, value=0.0):
        self.uniform, self.random = lambda low, high: value, lambda: 0.0


def arrays(pattern):
    """[(matched groups, array)] of the file's names that fit; "m0p1" is -0.1."""
    found = [(re.fullmatch(pattern, name), array) for name, array in G.items()]
    found = [(match.groups(), array) for match, array in found if match]
    assert found, f"no array is named {pattern}"
    return found


def number(text):
    return float(text.replace("m", "-").replace("p", "."))


def channels_last(array):
    return array.transpose(1, 2, 0)


def close_in_levels(found, expected):
    np.testing.assert_allclose(np.round(np.asarray(found, np.float64)), expected.astype(np.float64), atol=1)


@pytest.mark.parametrize("method", METHODS)
def test_device_crop(method):
    image, box, size = G["in_image_HWC_u8"], G["crop_top_left_h_w"], int(G["out_size"])
    # The same box twice, and once the whole image.
    boxes = np.stack([box, [0, 0, *image.shape[:2]], box])
    crop = jax.jit(resized_crop, static_argnums=(2, 3))
    found = np.asarray(crop(np.stack([image / np.float32(255)] * 3), boxes, size, method))
    levels = np.abs(np.round(255 * found[0].clip(0, 1)) - G[f"resized_crop_{method}_PIL_antialias_u8"])
    # Pillow clips between its passes, so bicubic's overshoots may differ at a few hard edges; bilinear has none.
    assert (levels <= 1).mean() >= (0.995 if method == "bicubic" else 1) and levels.max() <= 5
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[1] - found[0]).max() > 0.1


@pytest.mark.parametrize("which", BLENDS)
def test_device_blends(which):
    for (factor,), expected in arrays(f"{which}_(.*)_float01_CHW"):
        found = jax.jit(device._blend)(FLOATS, BLENDS.index(which), number(factor))
        np.testing.assert_allclose(found[0], channels_last(expected), atol=2e-6)


def test_device_hue():
    turn_hue = jax.jit(device.turn_hue)
    for (turn,), expected in arrays("hue_(.*)_float01_CHW"):
        np.testing.assert_allclose(turn_hue(FLOATS, number(turn))[0], channels_last(expected), atol=1e-5)


def test_device_gray():
    for _, expected in arrays("grayscale3_float01_CHW.*"):
        np.testing.assert_allclose(device.gray(FLOATS, 1.0, keys=KEYS)[0], channels_last(expected), atol=2e-6)


def test_device_blur():
    blur = jax.jit(gaussian_blur, static_argnums=(2, 3))
    for (sigma, taps), expected in arrays(r"blur_sigma(.*)_float01_CHW_simclr_tf_(\d+)taps_zero_padding"):
        found = blur(FLOATS, np.float32([number(sigma)]), int(taps), "zero")
        np.testing.assert_allclose(found[0], channels_last(expected), atol=2e-6)


def test_device_flip_and_normalize():
    np.testing.assert_allclose(255 * device.flip(FLOATS, 1.0, keys=KEYS)[0], G["hflip_u8"], atol=1e-4)
    expected = channels_last(G["imagenet_normalized_CHW"])
    np.testing.assert_allclose(device.normalize(FLOATS, "imagenet")[0], expected, atol=2e-6)


@pytest.mark.parametrize("which", (*BLENDS, "hue"))
def test_host_jitter(which):
    for (factor,), expected in arrays(f"{which}_(.*)_PIL_u8"):
        found = host.jitter(SMALL, **{which: 0.5}, shuffled=False, rng=Fixed(number(factor)))
        close_in_levels(found, expected)


def test_host_gray_blur_and_flip():
    for _, expected in arrays("grayscale3_PIL_u8"):
        close_in_levels(host.gray(SMALL, 1.0, rng=Fixed()), expected)
    for (sigma,), expected in arrays("blur_sigma(.*)_PIL_u8.*"):
        close_in_levels(host.blur(SMALL, 1.0, rng=Fixed(number(sigma))), expected)
    np.testing.assert_array_equal(host.flip(SMALL, 1.0, rng=Fixed()), G["hflip_u8"])
