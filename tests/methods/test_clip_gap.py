"""CLIP with what opens or closes the gap: each choice by itself, none of them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.analysis import modality_gap
from mmcl_jax.encoders import mlp
from mmcl_jax.losses import easy_nce, info_nce, nt_xent, uniformity
from mmcl_jax.methods import clip, clip_gap
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Ctx, Stream

RNG = np.random.default_rng(0)
BATCH = {m: Stream(jnp.asarray(RNG.normal(size=(20, 6)), jnp.float32), None, jnp.arange(20) % 7 != i)
         for i, m in enumerate(("image", "text"))}  # fmt: skip
THERE = np.flatnonzero(np.arange(20) % 7 > 1)


def encoders():
    return {m: mlp.make((8,)) for m in ("image", "text")}


def make(**more):
    method = clip_gap.make(encoders(), embed_dim=5, **more)
    return method, *method.init(jax.random.key(0), BATCH)


def vectors(method, params, extra, ctx):
    z, _ = clip.Clip.project(method, params, extra | {"turn": jnp.eye(5)}, BATCH, ctx)
    return z["image"][THERE], z["text"][THERE]


def at(ctx, step):
    return ctx.__class__(ctx.mesh, ctx.batch_axes, train=True, step=jnp.int32(step), rng=jax.random.key(0))


def test_without_any_choice_it_is_clip(ctx):
    method, params, extra = make()
    plain = clip.make(encoders(), embed_dim=5)
    for ours, theirs in zip(
        jax.tree.leaves(params), jax.tree.leaves(plain.init(jax.random.key(0), BATCH)[0]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (jax.jit(lambda p, m=m: m.loss(p, extra, BATCH, ctx)[0])(params) for m in (method, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("negatives", "loss"), [("all", nt_xent), ("easy", easy_nce), ("across", info_nce)])
def test_negatives_and_uniformity(ctx, negatives, loss):
    method, params, extra = make(negatives=negatives, uniformity=0.3)
    x, y = vectors(method, params, extra, ctx)
    expected = loss(x, y, scale=1 / 0.07) + 0.3 * (uniformity(x) + uniformity(y)) / 2
    found = jax.jit(lambda p: method.loss(p, extra, BATCH, ctx)[0])(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_texts_are_turned_at_the_first_step_and_stay_so(ctx):
    method, params, extra = make(turn=True)
    x, y = vectors(method, params, extra, ctx)
    value, (after, _) = method.loss(params, extra, BATCH, at(ctx, 0))
    np.testing.assert_allclose(after["turn"], modality_gap.aligned(x, y), atol=1e-4)
    np.testing.assert_allclose(value, info_nce(x, y @ after["turn"], scale=1 / 0.07), rtol=1e-4)
    other = jax.tree.map(lambda p: p + 0.1, params)
    _, (later, _) = method.loss(other, after, BATCH, at(ctx, 1))
    np.testing.assert_array_equal(later["turn"], after["turn"])
    z = method.embed(params, method.to_embed(after), BATCH, ctx)
    np.testing.assert_allclose(z["text"][THERE], y @ after["turn"], atol=1e-5)
    np.testing.assert_allclose(z["image"][THERE], x, atol=1e-6)


def test_a_rotation_is_not_made_of_too_few_rows():
    method = clip_gap.make(encoders(), embed_dim=21, turn=True)
    with pytest.raises(ConfigError, match="the batch has 20 rows, embed_dim=21"):
        method.loss(*method.init(jax.random.key(0), BATCH), BATCH, at(Ctx(), 0))


def test_a_temperature_that_moves():
    method, params, _ = make(scale_init=1.0, scale_end=50.0, scale_steps=10)
    found = [1 / float(method.scale_at(params, step)) for step in (0, 5, 10, 100)]
    np.testing.assert_allclose(found, [1, 0.51, 0.02, 0.02], rtol=1e-6)
    fixed, params, extra = make(scale_init=20.0, scale_min=20.0, scale_max=20.0)
    moved, _ = fixed.after_update(params | {"log_scale": params["log_scale"] + 1}, extra, None)
    np.testing.assert_allclose(fixed.scale_at(moved, 3), 20, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(negatives="al"), "negatives='al'; did you mean 'all'"),
        (dict(uniformity=-1), "must not be negative"),
        (dict(scale_end=50.0), "a schedule needs both"),
        (dict(scale_steps=50), "a schedule needs both"),
        (dict(scale_init=0.5), "must lie between"),
    ],
)
def test_what_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        make(**more)
