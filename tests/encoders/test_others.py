"""Encoders of sounds, series, vectors and of several modalities together; what blocks have for ImageBind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.encoders import conv, gru, mlp, series, vit
from mmcl_jax.encoders.joint import Joint
from mmcl_jax.types import Stream

SMALL = dict(size="mu", patch=4, stem_norm=True, bias_kv=True, patch_bias=False)


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def started(module, stream):
    return {"params": module.init(jax.random.key(0), stream)["params"]}


def test_the_extra_key_is_seen_by_all_queries_and_learns():
    stream = Stream(values(2, 8, 8, 1))
    model = vit.make(**SMALL)
    variables = started(model, stream)
    attention = variables["params"]["transformer"]["block0"]["attention"]
    assert attention["bias_k"].shape == attention["bias_v"].shape == (2, 16)
    grads = jax.grad(lambda v: jnp.square(model.apply(v, stream).tokens).sum())(variables)
    grads = grads["params"]["transformer"]["block1"]["attention"]
    assert all(float(jnp.abs(grads[k]).max()) > 0 for k in ("bias_k", "bias_v"))
    # far away in the keys' space it takes all of the weight: every token gets its value
    attention["bias_k"] = 1e4 * jnp.ones_like(attention["bias_k"])
    attention["query"]["kernel"] = jnp.zeros_like(attention["query"]["kernel"])
    attention["query"]["bias"] = jnp.ones_like(attention["query"]["bias"])
    changed = jax.tree.map(lambda x: x, variables)
    changed["params"]["transformer"]["block0"]["attention"]["value"] = jax.tree.map(lambda x: 5 * x, attention["value"])
    np.testing.assert_allclose(model.apply(variables, stream).pooled, model.apply(changed, stream).pooled, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_leaves_out_whole_blocks_of_examples_in_training_only(scan):
    stream = Stream(jnp.repeat(values(1, 8, 8, 1), 400, 0))
    model = vit.make(**SMALL | dict(depth=2), drop_path=0.5, scan=scan)
    variables = started(model, stream)
    calm = model.apply(variables, stream).tokens
    assert float(jnp.ptp(calm, axis=0).max()) < 1e-5
    drawn = model.apply(variables, stream, train=True, rngs={"dropout": jax.random.key(1)}).tokens
    # The first block is always there. The second adds attention, MLP, both or nothing, twice as much for the halves.
    kinds, counts = np.unique(np.asarray(drawn[:, 0, 0]).round(4), return_counts=True)
    assert len(kinds) == 4 and counts.min() > 60
    plain = vit.make(**SMALL | dict(depth=2), scan=scan).apply(variables, stream).tokens
    np.testing.assert_allclose(calm, plain, atol=1e-6)


def test_patches_may_overlap():
    stream = Stream(values(2, 16, 21, 1))
    model = vit.make(**SMALL, stride=3)
    assert model.apply(started(model, stream), stream).tokens.shape == (2, 5 * 6, 32)
    with pytest.raises(ValueError, match="multiples of patch=4"):
        vit.make(**SMALL).init(jax.random.key(0), stream)
    with pytest.raises(ValueError, match="multiples of patch=4"):
        model.init(jax.random.key(0), Stream(values(2, 3, 21, 1)))


def test_a_window_of_a_series_is_one_token():
    model = series.make("mu", window=4, head_dropout=0.5)
    x = values(3, 6, 20)
    variables = started(model, Stream(x))
    first, other = (model.apply(variables, Stream(v)) for v in (x, x.at[:, :, 4:].add(1)))
    assert first.tokens.shape == (3, 5, 32) and first.pooled.shape == (3, 32)
    kernel = variables["params"]["windows"]["kernel"]
    assert kernel.shape == (6 * 4, 32)
    assert float(jnp.abs(first.pooled - other.pooled).max()) > 1e-4
    dropped = model.apply(variables, Stream(x), train=True, rngs={"dropout": jax.random.key(0)}).pooled
    assert 0.3 < float((dropped == 0).mean()) < 0.7
    with pytest.raises(ValueError, match="multiple of window=4"):
        model.init(jax.random.key(0), Stream(values(3, 6, 18)))


def test_convolutions_have_the_papers_sizes():
    """Of MHD: 6272 features of a digit, 2048 of its sound."""
    digit = Stream(values(2, 28, 28, 1))
    assert conv.make().apply(started(conv.make(), digit), digit).pooled.shape == (2, 6272)
    layers = ((128, (1, 128), (1, 1), (0, 0)), (128, (4, 1), (2, 1), (1, 0)), (256, (4, 1), (2, 1), (1, 0)))
    sound, model = Stream(values(2, 32, 128, 1)), conv.make(layers, norm="batch", activation="relu")
    variables = model.init(jax.random.key(0), sound)
    assert model.apply(variables, sound).pooled.shape == (2, 2048)
    assert set(variables["batch_stats"]) == {"norm0", "norm1", "norm2"}
    mean = conv.make(pool="mean")
    assert mean.apply(started(mean, digit), digit).pooled.shape == (2, 128)


def test_vectors():
    tags = Stream(jnp.asarray([[0, 1, 1], [1, 0, 0]], jnp.uint8))
    np.testing.assert_array_equal(mlp.make(()).apply({}, tags).pooled, tags.data)
    model = mlp.make((5, 7))
    assert model.apply(started(model, tags), tags).pooled.shape == (2, 7)


@pytest.mark.parametrize("pool", ["flat", "last"])
def test_a_recurrent_unit_does_not_see_padding_and_is_torchs(pool):
    x, mask = values(2, 5, 3), jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    model = gru.make(4, pool=pool)
    variables = started(model, Stream(x))
    found = model.apply(variables, Stream(x, mask))
    padded = model.apply(variables, Stream(jnp.where(mask[..., None], x, 9.0), mask))
    np.testing.assert_array_equal(found.pooled, padded.pooled)
    w = variables["params"]["cell"]

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    h, states = np.zeros((2, 4)), []
    for t in range(5):  # r, z, n as in PyTorch's documentation
        i = {k: x[:, t] @ w[f"i{k}"]["kernel"] + w[f"i{k}"].get("bias", 0) for k in "rzn"}
        hid = {k: h @ w[f"h{k}"]["kernel"] + w[f"h{k}"].get("bias", 0) for k in "rzn"}
        r, z = sigmoid(i["r"] + hid["r"]), sigmoid(i["z"] + hid["z"])
        h = (1 - z) * np.tanh(i["n"] + r * hid["n"]) + z * h
        states.append(h)
    states = np.where(mask[..., None], np.stack(states, 1), 0)
    wanted = np.stack([states[0, 2], states[1, 4]]) if pool == "last" else states.reshape(2, -1)
    np.testing.assert_allclose(found.pooled, wanted, atol=1e-6)


def test_a_joint_encoder_adds_what_is_there():
    joint = Joint({"a": mlp.make((5,)), "b": mlp.make(())}, 4)
    a, b = Stream(values(3, 2)), Stream(values(3, 6, seed=1))
    variables = started(joint, Stream({"a": a, "b": b}))
    names = {"trunks_a", "dense_a", "dense_b", "bias"}
    assert set(variables["params"]) == names, "trunks of its own"

    def apply(**parts):
        return joint.apply(variables, Stream(parts)).pooled

    both, only_a = apply(a=a, b=b), apply(a=a)
    there = jnp.asarray([True, False, True])
    mixed = apply(a=a, b=b.replace(present=there))
    np.testing.assert_allclose(mixed, jnp.where(there[:, None], both, only_a), atol=1e-6)
    broken = Stream(b.data.at[1].set(jnp.nan), present=there)
    np.testing.assert_array_equal(apply(a=a, b=broken), mixed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv.make(((3, 4, 2, 1),)), "is not \\(channels"),
        (lambda: conv.make(activation="tanhh"), "activation='tanhh'"),
        (lambda: conv.make(pool="max"), "pool='max'"),
        (lambda: mlp.make((3,), activation="x"), "activation='x'"),
        (lambda: gru.make(pool="mean"), "pool='mean'"),
        (lambda: series.make(pool="max"), "pool='max'"),
        (lambda: vit.make(drop_path=1.0), "drop_path=1.0"),
    ],
)
def test_choices_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()
