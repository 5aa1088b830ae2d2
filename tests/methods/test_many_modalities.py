"""GMC and ImageBind: missing rows and modalities, subsets at work, frozen towers, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_jax import config as configs
from mmcl_jax import optim, parallel, step, train
from mmcl_jax.build import build
from mmcl_jax.encoders import conv, mlp
from mmcl_jax.log import read_metrics
from mmcl_jax.losses import info_nce, joint_negatives, nt_xent
from mmcl_jax.methods import gmc, imagebind, late_fusion, pairwise
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Ctx, Stream
from tests import conftest
from tests.conftest import make_mesh

B = 10  # does not divide among 8 devices
RNG = np.random.default_rng(0)
LAYERS = ((4, (3, 3), (2, 2), (1, 1)),)
THERE = {m: RNG.random(B) < 0.7 for m in "abc"}


def batch(missing=True):
    data = {"a": RNG.normal(size=(B, 6, 6, 1)), "b": RNG.normal(size=(B, 5)), "c": RNG.normal(size=(B, 3))}
    return {
        k: Stream(jnp.asarray(v, jnp.float32), present=jnp.asarray(THERE[k]) if missing else None)
        for k, v in data.items()
    }


def encoders(norm="none"):
    return {"a": conv.make(LAYERS, norm=norm), "b": mlp.make((8,)), "c": mlp.make(())}


def make_gmc(norm="none", **more):
    return gmc.make(encoders(norm), embed_dim=6, latent=7, hidden=(8,), **more)


BATCH = batch()


@pytest.mark.parametrize("negatives", gmc.NEGATIVES)
@pytest.mark.parametrize("joint", gmc.JOINTS)
def test_gmc_is_the_same_on_any_devices_whatever_stands_where_nothing_is(joint, negatives):
    method = make_gmc("batch", joint=joint, negatives=negatives)
    params, extra = method.init(jax.random.key(0), BATCH)
    broken = {k: s.replace(data=jnp.where(s.present.reshape(-1, *[1] * (s.data.ndim - 1)), s.data, 1e3))
              for k, s in BATCH.items()}  # fmt: skip

    def run(name, batch):
        ctx = Ctx(make_mesh(name), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1))
        fn = jax.jit(jax.value_and_grad(lambda p: method.loss(p, extra, batch, ctx), has_aux=True))
        (loss, (kept, metrics)), grads = fn(params)
        return loss, grads, kept, metrics

    loss, grads, kept, metrics = run("1", BATCH)
    assert np.isfinite(loss) and set(metrics) == {"a", "b", "c", "a_acc", "b_acc", "c_acc"}
    np.testing.assert_allclose(loss, sum(metrics[m] for m in "abc"), rtol=1e-6)
    for name, given in (("8", BATCH), ("4x2", broken), ("1", broken)):
        other_loss, other, other_kept, _ = run(name, given)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        for x, y in zip(jax.tree.leaves((other, other_kept)), jax.tree.leaves((grads, kept)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_gmc_leaves_out_what_is_missing():
    """With joint="all" the loss is that of the complete examples alone; with "present" others take part, too."""
    ctx, complete = Ctx(train=True, step=0), np.flatnonzero(np.all(list(THERE.values()), 0))
    only = {k: Stream(s.data[complete]) for k, s in BATCH.items()}
    losses = {}
    for joint in gmc.JOINTS:
        method = make_gmc("batch", joint=joint)  # what is left out must not get into batch statistics, either
        params, extra = method.init(jax.random.key(0), BATCH)
        losses[joint] = method.loss(params, extra, BATCH, ctx)[0]
        alone = make_gmc("batch").loss(params, extra, only, ctx)[0]
        np.testing.assert_allclose(method.loss(params, extra, only, ctx)[0], alone, rtol=1e-5)
    np.testing.assert_allclose(losses["all"], alone, rtol=1e-5)
    assert abs(losses["all"] - losses["present"]) > 1e-3


@pytest.mark.parametrize("joint", gmc.JOINTS)
def test_gmc_with_a_modality_absent_altogether(joint):
    method = make_gmc(joint=joint)
    params, extra = method.init(jax.random.key(0), BATCH)
    ctx = Ctx(train=True, step=0)
    nobody = BATCH["c"].replace(present=jnp.zeros(B, bool), data=jnp.full((B, 3), 1e3))
    without = {k: BATCH[k] for k in "ab"}
    for given in (without | {"c": nobody}, without):
        (loss, (_, metrics)), grads = jax.value_and_grad(
            lambda p, given=given: method.loss(p, extra, given, ctx), has_aux=True
        )(params)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        assert (loss == 0) == (joint == "all") and not metrics.get("c", 0)
        assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads["c"]))
        if joint == "all":
            assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads))
        else:
            np.testing.assert_allclose(metrics["a"], method.loss(params, extra, without, ctx)[1][1]["a"], rtol=1e-6)


@pytest.mark.parametrize("name", ["gmc", "imagebind"])
def test_batches_without_the_streams_that_a_source_lacks_train_the_same(name, tmp_path, repository):
    config = configs.load(
        f"{repository}/configs/{name}.py:tiny", ["steps=6", "batch=16", "log.every=1", "evals={}", "optim.warmup=2"]
    )
    others = ("text", "audio") if name == "imagebind" else ("tags", "audio")
    if name == "imagebind":
        config.optim.rules = ()
        with config.unlocked():
            config.method.scales = dict(text=10.0, audio=10.0)
    found = []
    for sparse in (False, True):
        parts = {m: dict(source="synthetic", size=64, modalities=("image", m), seed=3, missing=0.1) for m in others}
        with config.unlocked():
            config.data.mix = "batches"
            config.data.train = {m: p | (dict(streams=("image", m)) if sparse else {}) for m, p in parts.items()}
        devices = jax.devices()[: 8 if sparse else 1]
        train.train(config, tmp_path / str(sparse), devices)
        found.append(conftest.losses(tmp_path / str(sparse)))
    assert len(found[0]) == 6 and len(set(found[0].values())) > 3
    np.testing.assert_allclose([*found[1].values()], [*found[0].values()], rtol=2e-4, atol=1e-7)
    rows = [r for r in read_metrics(tmp_path / "True" / "metrics.jsonl") if "loss" in r]
    assert set(rows[0]) < set(rows[-1]), "of a term that a batch does not have, the latest value is told"
    # It goes on with the other structure first, if that is next.
    config.steps = 8
    train.train(config, tmp_path / "True", devices)
    assert len(conftest.losses(tmp_path / "True")) == 8


def test_a_method_that_needs_all_streams_refuses_batches_without(tmp_path, repository):
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", ["evals={}"])
    part = dict(source="synthetic", size=64)
    with config.unlocked():
        config.data.mix = "batches"
        config.data.train = dict(pairs=part, images=part | dict(seed=1, streams=("image",)))
    with pytest.raises(
        ConfigError, match=r"train.images.streams=\('image',\): on batches of these alone 'clip' trains"
    ):
        build(config, tmp_path, make_mesh("1"))


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (lambda: make_gmc(joint="all"), "ab"),
        (lambda: make_gmc(joint="present"), "b"),
        (lambda: make_imagebind(), "bc"),
        (lambda: make_imagebind(), "a"),
        (lambda: pairwise.make(encoders()), "c"),
        (lambda: late_fusion.make(encoders(), target="label", classes=3), "abc"),
    ],
)
def test_batches_on_which_nothing_would_be_trained(method, names):
    method = method()
    assert not method.trains_on(names), names
    assert method.trains_on(method.streams)


def test_gmc_represents_an_example_by_what_it_has():
    method = make_gmc()
    params, extra = method.init(jax.random.key(0), BATCH)
    z = method.embed(params, extra, method.with_joint(BATCH), Ctx())
    for name, vectors in z.items():
        np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, atol=1e-6, err_msg=name)
    fused, present = method.fuse(params, extra, BATCH, Ctx())
    for i in range(B):
        have = [m for m in "abc" if THERE[m][i]]
        wanted = z["joint"][i] if len(have) == 3 else np.mean([z[m][i] for m in have] or [np.zeros(6)], 0)
        np.testing.assert_allclose(fused[i], wanted, atol=1e-6)
        assert bool(present[i]) == bool(have)
    single, _ = method.fuse(params, extra, {"b": Stream(BATCH["b"].data)}, Ctx())
    np.testing.assert_allclose(single, z["b"], atol=1e-6)


def test_gmc_predicts_numbers_from_the_joint_vector():
    method = make_gmc(target="mood")
    wanted = Stream(jnp.asarray(RNG.normal(size=(B, 2)), jnp.float32))
    given = BATCH | {"mood": wanted}
    params, extra = method.init(jax.random.key(0), given)
    loss, (_, metrics) = method.loss(params, extra, given, Ctx(train=True))
    np.testing.assert_allclose(loss, sum(metrics[m] for m in ("a", "b", "c", "error")), rtol=1e-6)
    z = method.embed(params, extra, method.with_joint(BATCH), Ctx())["joint"]
    w = params["regression"]
    hidden = jax.nn.relu(z @ w["in"]["kernel"] + w["in"]["bias"])
    r = z + hidden @ w["out"]["kernel"] + w["out"]["bias"]
    said = r @ w["prediction"]["kernel"] + w["prediction"]["bias"]
    complete = np.all(list(THERE.values()), 0)
    np.testing.assert_allclose(metrics["error"], np.abs(said - wanted.data)[complete].mean(), rtol=1e-5)
    assert "mood" in method.streams and len(w) == 3
    with pytest.raises(ValueError, match="numbers \\[B, n\\]"):
        method.loss(params, extra, given | {"mood": Stream(wanted.data[:, 0])}, Ctx(train=True))


@pytest.mark.parametrize("make", [lambda **more: make_gmc(**more), lambda **more: pairwise.make(encoders(), **more)])
def test_terms_have_weights(make):
    names = ["a", "b", "c"] if "negatives" in vars(make()) else ["a_b", "a_c", "b_c"]
    ctx = Ctx(train=True, step=0)
    method = make(weights={names[0]: 0.0, names[1]: 0.25})
    params, extra = method.init(jax.random.key(0), BATCH)
    loss, (_, metrics) = method.loss(params, extra, BATCH, ctx)
    np.testing.assert_allclose(loss, 0.25 * metrics[names[1]] + metrics[names[2]], rtol=1e-6)
    with pytest.raises(ValueError, match="method.weights has 'd'"):
        make(weights={"d": 1.0})
    with pytest.raises(ValueError, match="must not be negative"):
        make(weights={names[0]: -1.0})


def test_joint_negatives_of_a_lone_example_are_nothing():
    x = jnp.eye(3)
    one = jnp.asarray([False, True, False])
    value, grad = jax.value_and_grad(lambda x: joint_negatives(x, x, one, scale=10.0))(x)
    assert value == 0 and not grad.any()
    two = jnp.asarray([True, True, False])
    np.testing.assert_allclose(joint_negatives(x, x, two, scale=10.0), -10.0, rtol=1e-6)
    assert nt_xent(x, x, two, scale=10.0) > 0


def make_imagebind(**more):
    return imagebind.make(encoders("batch"), embed_dim=6, **dict(hub="a", scales={"b": 5.0, "c": 20.0}) | more)


def test_imagebind_binds_each_to_the_hub_alone():
    assert make_imagebind(weights={"c": 0.0}).weights == {"c": 0.0}, "what gradient blending gives may be 0"
    with pytest.raises(ValueError, match="method.scales.c=0.0 must be positive"):
        make_imagebind(scales={"c": 0.0})
    method = make_imagebind(weights={"c": 0.5})
    params, extra = method.init(jax.random.key(0), BATCH)
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1))
    loss, (_, metrics) = jax.jit(lambda p: method.loss(p, extra, BATCH, ctx))(params)
    np.testing.assert_allclose(loss, metrics["b"] + 0.5 * metrics["c"], rtol=1e-6)
    z, _ = method.project(params, extra, BATCH, Ctx(train=True, step=0))
    both = THERE["a"] & THERE["c"]
    alone = info_nce(z["a"][both], z["c"][both], scale=20.0)
    np.testing.assert_allclose(metrics["c"], 2 * alone, rtol=1e-5)
    # without its key, or without the hub's, there is nothing to bind
    assert "c" not in method.loss(params, extra, {k: BATCH[k] for k in "ab"}, Ctx(train=True))[1][1]
    assert method.loss(params, extra, {k: BATCH[k] for k in "bc"}, Ctx(train=True))[0] == 0


def test_pairwise_is_clip_for_each_pair():
    method = pairwise.make(encoders(), embed_dim=6, scale_init=10.0)
    params, extra = method.init(jax.random.key(0), BATCH)
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1))
    loss, (_, metrics) = jax.jit(lambda p: method.loss(p, extra, BATCH, ctx))(params)
    z = method.embed(params, extra, BATCH, Ctx())
    alone = {}
    for a, b in ("ab", "ac", "bc"):
        both = THERE[a] & THERE[b]
        alone[f"{a}_{b}"] = info_nce(z[a][both], z[b][both], scale=10.0)
        np.testing.assert_allclose(metrics[f"{a}_{b}"], alone[f"{a}_{b}"], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(alone.values()), rtol=1e-5)
    fused, _ = method.fuse(params, extra, BATCH, Ctx())
    have = np.stack([THERE[m] for m in "abc"])
    wanted = (np.stack([z[m] for m in "abc"]) * have[..., None]).sum(0) / np.maximum(have.sum(0), 1)[:, None]
    np.testing.assert_allclose(fused, wanted, atol=1e-6)
    high, _ = method.after_update(params | {"log_scale": jnp.log(1e4)}, extra, ctx)
    np.testing.assert_allclose(jnp.exp(high["log_scale"]), 100.0, rtol=1e-5)


def test_late_fusion_learns_from_complete_examples_alone_and_averages_what_there_is():
    labels = jnp.asarray(RNG.integers(0, 4, B)).at[0].set(-1)  # of the first, the class is not known
    given = BATCH | {"label": Stream(labels)}
    method = late_fusion.make(encoders("batch"), classes=4, embed_dim=6)
    params, extra = method.init(jax.random.key(0), BATCH)

    def run(name, batch):
        ctx = Ctx(make_mesh(name), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1))
        return jax.jit(jax.value_and_grad(lambda p: method.loss(p, extra, batch, ctx), has_aux=True))(params)

    complete = np.all(list(THERE.values()), 0)
    counts = complete & (np.asarray(labels) >= 0)
    assert 2 <= counts.sum() < B
    (loss, (kept, metrics)), grads = run("1", given)
    only = {k: Stream(s.data[complete]) for k, s in given.items()}
    broken = {k: s.replace(data=jnp.where(s.is_present().reshape(-1, *[1] * (s.data.ndim - 1)), s.data, 9))
              for k, s in given.items()}  # fmt: skip
    for (other, (other_kept, other_metrics)), other_grads in (run("1", only), run("8", given), run("4x2", broken)):
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        np.testing.assert_allclose(other_metrics["acc"], metrics["acc"], rtol=1e-6)
        for x, y in zip(jax.tree.leaves((other_grads, other_kept)), jax.tree.leaves((grads, kept)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)

    fused, present = method.fuse(params, extra, BATCH, Ctx())
    alone = {m: method.fuse(params, extra, {m: Stream(BATCH[m].data)}, Ctx())[0] for m in "abc"}
    for i in range(B):
        have = [alone[m][i] for m in "abc" if THERE[m][i]]
        np.testing.assert_allclose(fused[i], np.mean(have or [np.zeros(6)], 0), atol=1e-6)
        assert bool(present[i]) == bool(have)
    counted = {k: Stream(BATCH[k].data[counts]) for k in "abc"}
    r = method.fuse(params, extra, counted, Ctx(train=True))[0]  # with the batch statistics of these rows alone
    logits = r @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    wanted = -jax.nn.log_softmax(logits)[jnp.arange(counts.sum()), labels[counts]].mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)

    few = late_fusion.make(encoders("batch"), classes=2, embed_dim=6)
    params, extra = few.init(jax.random.key(0), BATCH)
    told = few.loss(params, extra, given, Ctx(train=True))[1][1]["beyond_classes"]
    np.testing.assert_allclose(told, (np.asarray(labels)[complete] >= 2).mean(), rtol=1e-6)
    params, extra = method.init(jax.random.key(0), BATCH)

    # nothing complete, or a modality absent altogether: nothing to learn, and no NaN
    nobody = given | {"c": BATCH["c"].replace(present=jnp.zeros(B, bool))}
    for batch in (nobody, {k: given[k] for k in ("a", "b", "label")}):
        (loss, _), grads = run("1", batch)
        assert loss == 0 and all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads))


def test_late_fusion_refuses_what_is_no_class():
    method = late_fusion.make(encoders(), classes=4)
    params, extra = method.init(jax.random.key(0), BATCH)
    for label in (jnp.zeros(B), jnp.zeros((B, 4), int)):
        with pytest.raises(ConfigError, match="class's number, \\[B\\] int"):
            method.loss(params, extra, BATCH | {"label": Stream(label)}, Ctx(train=True))
    for wrong in (dict(classes=1), dict(classes=4, target="a")):
        with pytest.raises(ValueError, match="two"):
            late_fusion.make(encoders(), **wrong)


def test_frozen_towers_change_neither_by_gradient_nor_decay_nor_statistics():
    method = make_imagebind(scales={"b": 5.0})
    params, extra = method.init(jax.random.key(0), BATCH)

    config = configs.load("configs/imagebind.py:tiny", ("optim.lr=0.1", "optim.warmup=0", "optim.decay=0.5"))
    config.optim.rules = ("(a|c)(_readout)?/: lr=0",)
    config.optim.no_decay = ""
    tx, schedule, by = optim.build(config.optim, 10, B, params | {"empty": {}})
    assert optim.frozen(by) == {"a", "a_readout", "c_readout"}  # c has no parameters
    tx, schedule, by = optim.build(config.optim, 10, B, params)
    train_step = step.make_train_step(method, tx, by, schedule, lambda host: host, make_mesh("1"), config)
    state = step.TrainState(jnp.int32(0), params, tx.init(params), extra)
    new, metrics = jax.jit(train_step)(state, BATCH)
    assert not metrics["bad"]
    for name in ("a", "a_readout", "c", "c_readout"):
        for x, y in zip(jax.tree.leaves(new.params[name]), jax.tree.leaves(params[name]), strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
    for x, y in zip(jax.tree.leaves(new.extra), jax.tree.leaves(extra), strict=True):
        np.testing.assert_array_equal(x, y, err_msg="batch statistics of a frozen tower")
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, new.params["b"], params["b"]))) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gmc.make({"a": mlp.make()}), "two encoders or more"),
        (lambda: gmc.make({"a": mlp.make(), "joint": mlp.make()}), "named 'joint'"),
        (lambda: make_gmc(temperature=0), "temperature=0"),
        (lambda: make_gmc(joint="some"), "joint='some'; possible: all, present"),
        (lambda: pairwise.make({"a": mlp.make()}), "two encoders or more"),
        (lambda: pairwise.make(encoders(), scale_init=0.5), "scale_init=0.5 must lie between 1"),
        (lambda: make_imagebind(hub="image"), "hub='image' has no encoder"),
        (lambda: make_imagebind(scales={"d": 1.0}), "scales has 'd'"),
        (lambda: make_imagebind(scales={}), "scales is empty"),
        (lambda: make_imagebind(weights={"a": 1.0}), "weights has 'a'"),
        (lambda: make_imagebind(scales={"b": -1.0}), "scales.b=-1.0 must be positive"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
