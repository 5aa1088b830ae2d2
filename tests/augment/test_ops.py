"""Device ops against Pillow, colorsys, scipy and the host's ops of the same names."""

import colorsys
import itertools
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from mmcl_jax.augment import DeviceStreams, ops, resample
from mmcl_jax.data import ops as host
from mmcl_jax.data.chain import generator, parse_stream, resolve

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.mark.parametrize(
    "which, enhance",
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_jitter_is_that_of_pillow(which, enhance):
    changed = np.asarray(
        jax.jit(partial(ops.jitter, **{which: 0.8}, shuffled=False))(IMAGES / np.float32(255), keys=KEYS)
    )
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
    np.testing.assert_allclose(jax.jit(ops.jitter)(images, keys=KEYS), images, atol=1e-6)


MANY = 96
PHOTOS = np.random.default_rng(1).random((MANY, 20, 15, 3), np.float32)
MANY_KEYS = jax.random.split(jax.random.key(1), MANY)


def name_of(op):
    return getattr(op, "func", op).__name__


CHAIN = "crop(16)|flip|jitter(.4,.4,.4,.1;.8)|gray|blur|solarize|normalize('imagenet')"


def test_gray_follows_its_probability():
    grey = np.asarray(ops.gray(PHOTOS, 0.25, keys=MANY_KEYS))
    turned = (grey[..., 0] == grey[..., 1]).all((1, 2))
    np.testing.assert_allclose(
        grey[turned][0, ..., 0], PHOTOS[turned][0] @ np.float32([0.2989, 0.587, 0.114]), rtol=1e-5
    )


@pytest.mark.parametrize("op", [ops.flip, ops.gray, partial(ops.blur, sigma=(1, 2)), ops.solarize], ids=name_of)
def test_probabilities(op):
    share = {}
    op = jax.jit(op)
    for p in (0.0, 0.3, 1.0):
        changed = np.asarray(op(PHOTOS, p=p, keys=MANY_KEYS))
        same = (changed == PHOTOS).all((1, 2, 3))
        share[p] = 1 - same.mean()
        assert changed.shape == PHOTOS.shape and 0 <= changed.min() and changed.max() <= 1
    assert share[0] == 0 and share[1] == 1 and 0.15 < share[0.3] < 0.45


@pytest.mark.parametrize(
    "op",
    [
        partial(ops.crop, size=8),
        ops.flip,
        partial(ops.jitter, brightness=0.4, hue=0.1),
        ops.gray,
        ops.blur,
        ops.solarize,
    ],
    ids=name_of,
)
def test_examples_do_not_depend_on_their_rows(op):
    op = jax.jit(op)
    order = np.random.default_rng(2).permutation(MANY)
    straight, permuted = op(PHOTOS, keys=MANY_KEYS), op(PHOTOS[order], keys=MANY_KEYS[order])
    np.testing.assert_allclose(permuted, straight[order], atol=1e-6)
    same_image = op(np.repeat(PHOTOS[:1], MANY, 0), keys=MANY_KEYS)
    assert not np.allclose(same_image, same_image[:1])  # but on their keys


def test_a_chain_of_all_ops():
    chain = [(op, resolve(op, ops)) for op in parse_stream("image", f"|| {CHAIN}").device]
    streams = jax.jit(DeviceStreams({"image": chain}, {"image": "image"}, seed=0))
    images = (255 * PHOTOS[:8]).astype(np.uint8)
    position = np.stack([np.zeros(8), np.arange(8)], 1).astype(np.uint32)

    def run(rows):
        return streams({"streams": {"image": {"data": images[rows], "present": None}}, "position": position[rows]})

    made, order = run(np.arange(8))["image"].data, np.random.default_rng(3).permutation(8)
    assert made.shape == (8, 16, 16, 3) and np.isfinite(made).all()
    np.testing.assert_allclose(run(order)["image"].data, made[order], atol=1e-5)
    clips = {"data": np.stack([images] * 3, 1), "present": np.ones((8, 3), bool)}
    made = np.asarray(streams({"streams": {"image": clips}, "position": position})["image"].data)
    assert made.shape == (8, 3, 16, 16, 3), "clips of an example"
    assert (np.abs(made - made[:, [1, 2, 0]]).max((2, 3, 4)) > 0.01).all(), "each is changed by draws of its own"


def changed_in_order(images, factors, order):
    """Brightness (0), contrast (1), saturation (2) and hue (3), one after another in numpy; factors: [4, B]."""
    for which in order:
        factor = factors[which][:, None, None, None]
        grey = (images @ np.float32([0.2989, 0.587, 0.114]))[..., None]
        if which == 3:
            images = np.asarray(TURN_HUE(images, factor))
        else:
            base = (0.0, grey.mean((1, 2), keepdims=True), grey)[which]
            images = np.clip(base + factor * (images - base), 0, 1)
    return images


TURN_HUE = jax.jit(ops.turn_hue)
jitter_strongly = jax.jit(
    partial(ops.jitter, brightness=0.8, contrast=0.8, saturation=0.8), static_argnames=("hue", "shuffled")
)


def factors(count):
    """What an example's key draws for strengths of .8 and a hue of .2, [4, B]; `count` numbers are drawn in all."""
    draw = jax.jit(jax.vmap(lambda k: jax.random.uniform(k, (count,), minval=-1.0)))
    u = np.asarray(draw(MANY_KEYS)).T
    return np.concatenate([1 + 0.8 * u[:3], 0.2 * u[3:4]])


def test_jitter_in_the_order_of_its_arguments():
    expected = changed_in_order(PHOTOS, factors(4), range(4))
    changed = jitter_strongly(PHOTOS, hue=0.2, shuffled=False, keys=MANY_KEYS)
    np.testing.assert_allclose(changed, expected, atol=1e-5)


@pytest.mark.parametrize("hue", [0.2, 0.0], ids=["hue", "no hue"])
def test_jitter_in_random_orders(hue):
    changed = np.asarray(jitter_strongly(PHOTOS, hue=hue, keys=MANY_KEYS))
    orders = list(itertools.permutations(range(4 if hue else 3)))
    fits = [np.abs(changed_in_order(PHOTOS, factors(8), o) - changed).max((1, 2, 3)) < 1e-5 for o in orders]
    assert np.any(fits, 0).all(), "some images were changed in none of the possible orders"
    shares = np.mean(fits, 1)
    assert shares.min() > 0 and shares.max() < 6 / len(orders), shares  # every order, and none much too often


RATIO = (3 / 4, 4 / 3)
draw_boxes = jax.jit(resample.draw_boxes, static_argnums=(1, 2, 3, 4))


def test_boxes_are_those_of_the_host(monkeypatch):
    monkeypatch.setattr(host, "_resample", lambda image, box, *size: box)
    image, n = np.zeros((40, 30, 3), np.uint8), 2000
    left, top, right, bottom = np.array([host.crop(image, 8, rng=generator(0, "crop", i)) for i in range(n)]).T
    by_host = np.stack([top, left, bottom - top, right - left], 1)
    by_device = np.asarray(draw_boxes(jax.random.split(jax.random.key(2), n), 40, 30, (0.08, 1), RATIO))
    summaries = []
    for top, left, height, width in (by_host.T, by_device.T):
        assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 40 and (left + width).max() <= 30
        values = height * width / 1200, np.log(width / height), (top + height / 2) / 40, (left + width / 2) / 30
        summaries.append([f(v) for v in values for f in (np.mean, np.std)])
    np.testing.assert_allclose(*summaries, atol=0.03)


@pytest.mark.parametrize("shape", [(4, 40), (40, 4), (12, 12)])
def test_boxes_that_never_fit_are_in_the_middle(shape, monkeypatch):
    monkeypatch.setattr(host, "_resample", lambda image, box, *size: box)
    x0, y0, x1, y1 = host.crop(np.zeros((*shape, 3), np.uint8), 8, (1.5, 2), rng=np.random.default_rng(0))
    boxes = draw_boxes(KEYS, *shape, (1.5, 2), RATIO)
    np.testing.assert_array_equal(boxes, [[y0, x0, y1 - y0, x1 - x0]] * 2)


def test_crop_is_that_of_pillow():
    images = (255 * PHOTOS[:16]).astype(np.uint8)
    boxes = np.asarray(draw_boxes(MANY_KEYS[:16], 20, 15, (0.2, 1), RATIO))
    crop = jax.jit(partial(ops.crop, size=10, scale=(0.2, 1), method="bilinear"))
    for image, new, (y, x, h, w) in zip(
        images, crop(images / np.float32(255), keys=MANY_KEYS[:16]), boxes, strict=True
    ):
        expected = Image.fromarray(image[y : y + h, x : x + w]).resize((10, 10), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(255 * new, np.asarray(expected), atol=1.1)  # Pillow rounds twice


def test_blur_is_that_of_scipy():
    sigmas = np.float32([0.5, 1, 2])
    for pad, mode in (("zero", "constant"), ("edge", "nearest")):
        blurred = jax.jit(partial(resample.gaussian_blur, taps=9, pad=pad))(PHOTOS[:3], sigmas)
        for image, new, sigma in zip(PHOTOS[:3], blurred, sigmas, strict=True):
            expected = ndimage.gaussian_filter(image, (sigma, sigma), axes=(0, 1), mode=mode, radius=4)
            np.testing.assert_allclose(new, expected, atol=2e-6)


@pytest.mark.parametrize("height, taps", [(15, 1), (32, 3), (224, 23)])
def test_length_of_the_kernel_follows_simclr(height, taps):
    dot = np.zeros((1, height, 31, 3), np.float32)
    dot[:, height // 2, 15] = 1
    found = np.asarray(jax.jit(partial(ops.blur, p=1.0, sigma=(9.0, 9.0)))(dot, keys=KEYS[:1]))
    assert [(found > 0).any(axis).sum() for axis in ((0, 2, 3), (0, 1, 3))] == [taps, taps]


@pytest.mark.parametrize(
    "call, message",
    [
        (partial(ops.blur, taps=4), "odd"),
        (partial(ops.blur, pad="mirror"), "possible: zero, edge"),
        (partial(ops.crop, size=8, method="lanczos"), "possible: bicubic, bilinear"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, PHOTOS, keys=MANY_KEYS)


class Draws:
    """A generator of random numbers on the host whose numbers from `uniform` are known."""

    def __init__(self, *values):
        self.values = iter(values)

    def uniform(self, low, high):
        return next(self.values)

    def random(self):
        return 0.0


def test_host_and_device_agree():
    y, x = np.mgrid[:24, :32] / np.float32(32)
    image = (255 * np.stack([y, x, 1 - (x + y) / 2], -1)).astype(np.uint8)
    floats = image[None] / np.float32(255)
    drawn = np.float32([[0.7], [1.2], [1.4], [40 / 255]])  # host hues turn in steps of 1 / 255
    by_host = host.jitter(image, 1, 1, 1, shuffled=False, rng=Draws(*drawn[:3, 0], 0.0))
    turned = host.jitter(image, hue=0.5, shuffled=False, rng=Draws(1, 1, 1, drawn[3, 0] + 1e-4))
    pairs = {
        "jitter": (by_host, changed_in_order(floats, drawn, range(3)), 4),
        "hue": (turned, TURN_HUE(floats, drawn[3]), 8),  # and are rounded to them before
        "blur": (
            host.blur(image, 1.0, rng=Draws(1.5)),
            jax.jit(partial(resample.gaussian_blur, taps=23, pad="edge"))(floats, np.float32([1.5])),
            3,
        ),
    }
    for name in ("gray", "solarize", "flip"):
        pairs[name] = getattr(host, name)(image, 1.0, rng=Draws()), getattr(ops, name)(floats, 1.0, keys=KEYS[:1]), 1
    for name, (expected, found, levels) in pairs.items():
        np.testing.assert_allclose(255 * found[0], expected, atol=levels, err_msg=name)


def test_host_ops_follow_their_draws():
    image = np.random.default_rng(4).integers(0, 256, (9, 7, 3), np.uint8)
    ops_of_host = [partial(host.jitter, hue=0.2, contrast=0.5), host.gray, host.blur, host.solarize]
    for op in ops_of_host:
        made = [op(image, rng=generator(0, "op", i)) for i in range(100)]
        again = op(image, rng=generator(0, "op", 5))
        assert all(m.dtype == np.uint8 and m.shape == image.shape for m in made)
        np.testing.assert_array_equal(made[5], again)
        changed = np.mean([(m != image).any() for m in made])
        p = {"gray": 0.2, "blur": 0.5, "solarize": 0.2}.get(getattr(op, "__name__", ""), 1)
        assert abs(changed - p) < 0.15


def test_host_jitter_has_random_orders():
    image = np.random.default_rng(5).integers(0, 256, (9, 7, 3), np.uint8)

    def jitter(order):
        rng = Draws(0.5, 1.5, 1.5, 0.2)
        rng.permutation = lambda n: order
        return host.jitter(image, 0.5, 0.5, 0.5, 0.2, rng=rng)

    made = [jitter(order) for order in itertools.permutations(range(4))]
    assert len({m.tobytes() for m in made}) > 12
    np.testing.assert_array_equal(
        jitter(range(4)), host.jitter(image, 0.5, 0.5, 0.5, 0.2, shuffled=False, rng=Draws(0.5, 1.5, 1.5, 0.2))
    )
