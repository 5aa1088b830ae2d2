"""Towers: padding, pooling, positions, scan and remat, sizes against the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.encoders import text, vit
from mmcl_jax.optim import count
from mmcl_jax.types import Stream

TINY = dict(width=16, depth=3, heads=2, mlp=32)
IMAGES = Stream(jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32))


def test_padding_does_not_change_the_pooled_text():
    tower = text.make("mu", vocab=50, **TINY)
    ids = jnp.array([[1, 7, 9, 2, 0, 0], [1, 2, 0, 0, 0, 0]])
    mask = ids > 0
    params = tower.init(jax.random.key(0), Stream(ids, mask))
    other = tower.apply(params, Stream(jnp.where(mask, ids, 33), mask)).pooled
    np.testing.assert_allclose(tower.apply(params, Stream(ids, mask)).pooled, other, rtol=1e-6)
    last = text.make("mu", vocab=50, pool="last", **TINY)
    assert not np.allclose(last.apply(params, Stream(ids, mask)).pooled, other), "SigLIP's sees its padding"


@pytest.mark.parametrize("pool", vit.POOLS)
@pytest.mark.parametrize("positions", vit.POSITIONS)
def test_vit_outputs(pool, positions):
    tower = vit.make("mu", patch=4, pool=pool, positions=positions, **TINY)
    out, variables = tower.init_with_output(jax.random.key(0), IMAGES)
    assert out.pooled.shape == (2, 16) and out.tokens.shape == (2, 16, 16) and out.mask is None
    assert ("positions" in variables["params"]) == (positions == "learned")
    assert ("class_token" in variables["params"]) == (pool == "class")


def test_scan_and_remat_change_nothing():
    plain = vit.make("mu", patch=4, pool="mean", **TINY)
    params = plain.init(jax.random.key(0), IMAGES)["params"]
    blocks = [params["transformer"][f"block{i}"] for i in range(3)]
    stacked = params | {"transformer": {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}}

    def gradient(tower, params):
        return jax.grad(lambda p: tower.apply({"params": p}, IMAGES).pooled.sum())(params)["patches"]["kernel"]

    expected = gradient(plain, params)
    for options in (dict(remat="full"), dict(remat="dots"), dict(scan=True), dict(scan=True, remat="dots")):
        tower = vit.make("mu", patch=4, pool="mean", **TINY, **options)
        actual = gradient(tower, stacked if "scan" in options else params)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_keeps_float32_parameters():
    tower = vit.make("mu", patch=4, dtype="bfloat16", **TINY)
    out, variables = tower.init_with_output(jax.random.key(0), IMAGES)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert out.pooled.dtype == jnp.bfloat16


def test_positions_are_resized():
    table = np.random.default_rng(0).normal(size=(1 + 16, 8)).astype(np.float32)
    np.testing.assert_allclose(vit.resize_positions(table, 17), table, atol=1e-6)
    larger = vit.resize_positions(table, 1 + 64)
    np.testing.assert_array_equal(larger[0], table[0])
    flat = np.ones((16, 8), np.float32)
    np.testing.assert_allclose(vit.resize_positions(flat, 36), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="must be h\\*h"):
        vit.resize_positions(flat, 7)


# Image tower and its projection, in millions, as open_clip counts them: B/32 87.85, L/14 303.97; SigLIP B/16 92.88.
@pytest.mark.parametrize("make, pixels, millions", [
    (lambda: vit.make("B", patch=32, pre_norm=True, patch_bias=False), 224, 87.85 - 0.39),
    (lambda: vit.make("L", patch=14, pre_norm=True, patch_bias=False), 224, 303.97 - 0.79),
    (lambda: vit.make("B", patch=16, pool="attention"), 224, 92.88),
])  # fmt: skip
def test_sizes_are_those_of_the_papers(make, pixels, millions):
    shapes = jax.eval_shape(lambda: make().init(jax.random.key(0), Stream(jnp.zeros((1, pixels, pixels, 3)))))
    assert count(shapes) / 1e6 == pytest.approx(millions, abs=0.01)


def test_text_tower_of_clip():
    """OpenAI's text tower has 37.83 M parameters without its projection (512 x 512)."""
    shapes = jax.eval_shape(lambda: text.make().init(jax.random.key(0), Stream(jnp.zeros((1, 77), int))))
    assert count(shapes) / 1e6 == pytest.approx(63.43 - 0.26, abs=0.01)


WRONG = [dict(pool="max"), dict(size="XXL"), dict(heads=5), dict(widht=3), dict(activation="softplus")]


@pytest.mark.parametrize("arguments", WRONG)
def test_choices_that_do_not_exist(arguments):
    with pytest.raises(ValueError, match="possible|Possible|does not divide"):
        vit.make(**({"size": "mu"} | arguments))


def test_wrong_image_size_is_told():
    with pytest.raises(ValueError, match="multiples of patch=5"):
        vit.make("mu", patch=5).init(jax.random.key(0), IMAGES)
