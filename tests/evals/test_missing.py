"""Evaluation of subsets of modalities, and of tags: by hand, on runs of the tiny GMC."""

from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import mmcl_jax
from mmcl_jax import config as configs
from mmcl_jax import evals, train
from mmcl_jax.data import sources
from mmcl_jax.evals import affect, figures, linear, missing, tagging
from mmcl_jax.named import ConfigError

MODALITIES = ("image", "audio", "tags")
HOW = dict(source="synthetic", modalities=MODALITIES, missing=0.2)
TEST, TRAIN = HOW | dict(size=600, split="test"), HOW | dict(size=700, split="train")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    folder = Path(__file__).parent.parent.parent
    config = configs.load(f"{folder}/configs/gmc.py:tiny", ["steps=30", "batch=64", "optim.warmup=1"])
    config.evals = {}
    train.train(config, workdir, jax.devices()[:1])
    return mmcl_jax.load(workdir, batch=64)


def test_each_subset_is_what_the_method_makes_of_it(predictor):
    how = dict(data=TEST, fit=TRAIN, modalities=MODALITIES, label="label", cs=(1.0,))
    found = evals.run(predictor, "left", dict(name="missing", **how))
    vectors = {}
    for name, part in (("fit", TRAIN), ("data", TEST)):
        source = sources.make(part)
        complete = [r for r in (source[i] for i in range(len(source))) if all(m in r for m in MODALITIES)]
        z = predictor.embed(**{m: [r[m] for r in complete] for m in MODALITIES})
        labels = np.array([r["label"] for r in complete])
        vectors[name] = z, labels
    (z, labels), (_, fit_labels) = vectors["data"], vectors["fit"]
    assert found["n"] == len(labels) < 600 and found["n_fit"] == len(fit_labels) < 700
    assert set(found) == {"n", "n_fit", "classes", "majority",
                          *(f"{n}_left/{k}" for n in (1, 2) for k in ("top1", "drop", "R@1", "R@5")),
                          *(f"{'+'.join(s)}/{k}" for s in missing.subsets(MODALITIES)
                          for k in ("top1", "drop", "R@1", "R@5") if len(s) < 3 or k in ("top1", "drop"))}  # fmt: skip
    singles = [found[f"{m}/R@5"] for m in MODALITIES]
    np.testing.assert_allclose(found["1_left/R@5"], np.mean(singles), atol=1e-9)
    counts = np.bincount(fit_labels)
    shares = [(labels == c).mean() for c in np.flatnonzero(counts == counts.max())]  # any of the most frequent will do
    assert any(abs(found["majority"] - share) < 1e-9 for share in shares)
    for name in ("image", "image+tags"):
        query = np.mean([z[m] for m in name.split("+")], 0)
        others = np.mean([z[m] for m in MODALITIES if m not in name.split("+")], 0)
        cosine = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ (
            others / np.linalg.norm(others, axis=1, keepdims=True)
        ).T
        hits = (cosine >= np.diag(cosine)[:, None]).sum(1) == 1
        np.testing.assert_allclose(found[f"{name}/R@1"], hits.mean(), atol=2 / len(labels))
        np.testing.assert_allclose(
            found[f"{name}/drop"], found["image+audio+tags/top1"] - found[f"{name}/top1"], atol=1e-9
        )
    together, kept = predictor.together(sources.make(TRAIN), MODALITIES, missing._fused(MODALITIES), ("label",))
    there = np.all([*together["present"].values()], 0)
    joint = together["vectors"]["image+audio+tags"][there]
    np.testing.assert_allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-5)
    assert [kept["label"][i] for i in np.flatnonzero(there)] == fit_labels.tolist()
    x = (joint - joint.mean(0)) / np.sqrt(np.square(joint - joint.mean(0)).mean())
    own = LogisticRegression(C=1.0, max_iter=linear.ITERATIONS).fit(x, fit_labels)
    tested = (z["image"] - joint.mean(0)) / np.sqrt(np.square(joint - joint.mean(0)).mean())
    np.testing.assert_allclose(found["image/top1"], own.score(tested, labels), atol=2 / len(labels))
    assert found["image+audio+tags/top1"] > 5 / 256


def test_tags_of_frozen_features(predictor):
    how = dict(name="tagging", data=TEST, fit=TRAIN, tags="tags")
    found = evals.run(predictor, "tags", how)
    assert found["tags"] == 20 and 0.5 < found["AUC"] <= 1 and found["dprime"] > 0
    noise = tagging.tagging_metrics(np.zeros((50, 2)), np.arange(100).reshape(50, 2) % 3 == 0)
    assert noise["AUC"] == 0.5 and noise["dprime"] == 0


def test_perfect_tags_have_a_finite_d_prime():
    tags = np.eye(10, dtype=int)[:, :3]
    found = tagging.tagging_metrics(tags.astype(float), tags)
    assert found["mAP"] == found["AUC"] == 1 and 2 < found["dprime"] < 4
    with pytest.raises(ValueError, match="nothing to measure"):
        tagging.tagging_metrics(np.zeros((4, 1)), np.ones((4, 1), int))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(modalities=("image", "sound")), "no stream 'sound'"),
        (dict(modalities=("image",)), "two different streams"),
        (dict(modalities=("image", "image")), "two different streams"),
        (dict(modalities=MODALITIES, label="lable"), "no label 'lable'"),
        (dict(modalities=MODALITIES, data=TRAIN), "fit is the same as data"),
    ],
)
def test_what_is_refused_before_training(predictor, given, message):
    part = dict(name="missing", data=TEST, fit=TRAIN) | given
    with pytest.raises(ConfigError, match=message):
        evals.check(predictor, {"left": part})


def test_an_image_plus_a_sound_finds_both(predictor, tmp_path):
    how = dict(data=TEST, added="audio", to="image", label="label", title="label")
    evals.check(predictor, {"sum": dict(name="arithmetic", **how)})
    found = evals.run(predictor, "sum", dict(name="arithmetic", **how))
    source = sources.make(TEST)
    both = [r for r in (source[i] for i in range(600)) if {"image", "audio"} <= set(r)]
    n = len(both)
    z = predictor.embed(image=[r["image"] for r in both], audio=[r["audio"] for r in both])
    other = [(i + n // 2) % n for i in range(n)]
    hits, same = [], []
    for i in range(n):
        order = [j for j in np.argsort(-(z["image"] @ (z["image"][i] + z["audio"][other[i]])), kind="stable") if j != i]
        hits.append(other[i] in order[:5])
        same.append(np.mean([both[j]["label"] == both[i]["label"] for j in order[:5]]))
    assert found["n"] == n < 600
    np.testing.assert_allclose(found["R@5"], np.mean(hits), atol=2 / n)
    np.testing.assert_allclose(found["class@5"], np.mean(same), atol=2 / n)
    assert found["image/class@5"] > found["class@5"] > found["audio/class@5"] and found["R@5"] > found["image/R@5"]
    heavy = evals.run(predictor, "sum", dict(name="arithmetic", weight=1e6, **how))
    assert heavy["R@5"] == heavy[f"{how['added']}/R@5"], "an image without weight is none"
    with pytest.raises(ConfigError, match="sum.weight=0 must be positive"):
        evals.check(predictor, {"sum": dict(name="arithmetic", weight=0, **how)})
    part = {"sum": dict(name="arithmetic", limit=60, **how)}
    assert figures.of_evaluations(predictor, part, TRAIN, tmp_path) == ["arithmetic.png"]
    assert (tmp_path / "arithmetic.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="need.* seven"):
        evals.run(predictor, "sum", dict(name="arithmetic", limit=5, **how))
    with pytest.raises(ConfigError, match="no field 'name'"):
        evals.check(predictor, {"sum": dict(name="arithmetic", **how | dict(title="name"))})


def test_numbers_from_each_subset(tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 400), ("test", 90)):
        mood = rng.normal(size=(n, 1)).astype(np.float32)
        text, audio = (
            (mood * w + rng.normal(size=(n, len(w))) * 0.3).astype(np.float32) for w in (np.ones(6), np.ones(3) * 0.5)
        )
        audio[::10] = np.nan  # missing
        np.savez(tmp_path / f"{split}.npz", text=text, audio=audio, mood=mood)
    config = configs.load("configs/gmc.py:tiny", ["steps=150", "batch=64", "optim.warmup=1", "method.joint=all"])
    with config.unlocked():
        config.method.target = "mood"
        config.encoders = {m: dict(name="mlp", hidden=(16,)) for m in ("text", "audio")}
        config.data.train = dict(source="arrays", path=str(tmp_path / "{split}.npz"))
        config.data.streams = config.data.eval_streams = {"text": "", "audio": "", "mood": ""}
        part = dict(name="affect", data=dict(split="test"), modalities=("text", "audio"), target="mood")
        config.evals = {"mood": part}
    train.train(config, tmp_path / "run", jax.devices()[:1])
    model = mmcl_jax.load(tmp_path / "run")
    found = evals.run(model, "mood", part, config.data.train)
    assert found["n"] == 81
    assert found["text+audio/corr"] > 0.8 and found["text/corr"] > 0.5 and found["text+audio/acc2"] > 0.75
    source = sources.make(dict(source="arrays", path=str(tmp_path / "test.npz")))
    records = [source[i] for i in range(90) if "audio" in source[i]]
    z = model.embed(text=[r["text"] for r in records])["text"]
    w = model.params["regression"]
    r = z + np.maximum(z @ w["in"]["kernel"] + w["in"]["bias"], 0) @ w["out"]["kernel"] + w["out"]["bias"]
    said = (r @ w["prediction"]["kernel"] + w["prediction"]["bias"])[:, 0]
    truth = np.array([r["mood"][0] for r in records])
    for name, value in affect.affect_metrics(np.asarray(said), truth).items():
        np.testing.assert_allclose(found[f"text/{name}"], value, rtol=1e-4, err_msg=name)


def test_what_predicts_no_numbers_is_refused(predictor):
    with pytest.raises(ConfigError, match="predicts no numbers"):
        evals.check(predictor, {"m": dict(name="affect", data=TEST, modalities=MODALITIES, target="label")})
    assert affect.affect_metrics(np.zeros(4), np.ones(4))["corr"] == 0


def test_losses_need_their_streams_and_a_whole_batch(predictor):
    with pytest.raises(ConfigError, match="limit=9, don't fill a batch of 64"):
        evals.check(predictor, {"held": dict(name="losses", data=TEST, limit=9)})


def test_examples_are_represented_by_what_they_have(predictor):
    source = sources.make(TEST)
    records = [source[i] for i in range(130)]  # more than a batch
    values = {m: [r.get(m) for r in records] for m in MODALITIES}
    found = predictor.fuse(**values)
    together, _ = predictor.together(source, MODALITIES, missing._fused(MODALITIES), limit=130)
    np.testing.assert_allclose(found, together["vectors"]["image+audio+tags"], atol=1e-6)
    alone = predictor.fuse(audio=values["audio"])
    there = [v is not None for v in values["audio"]]
    z = predictor.embed(audio=[v for v in values["audio"] if v is not None])["audio"]
    np.testing.assert_allclose(alone[there], z, atol=1e-6)
    assert not alone[~np.array(there)].any() and not all(there)
    with pytest.raises(ValueError, match="as many values of each stream"):
        predictor.fuse(image=values["image"], audio=values["audio"][:3])
    with pytest.raises(ValueError, match="no stream 'sound'; possible here: \\['audio', 'image', 'tags'\\]"):
        predictor.fuse(sound=values["audio"])


def test_subsets_are_of_encoders(predictor):
    predictor.streams.chains["audio/v1"] = predictor.streams.chains["audio"]
    try:
        with pytest.raises(ConfigError, match="'audio/v1' has no encoder"):
            evals.check(predictor, {"m": dict(name="missing", data=TEST, fit=TRAIN, modalities=("image", "audio/v1"))})
    finally:
        del predictor.streams.chains["audio/v1"]


def test_pairs_are_counted_where_records_lack_a_side(predictor):
    found = evals.run(predictor, "r", dict(name="retrieval", data=TEST, a="image", b="audio"))
    source = sources.make(TEST)
    pairs = sum({"image", "audio"} <= set(source[i]) for i in range(600))
    assert found["pairs"] == pairs < found["n"] == 600


def test_tags_must_be_of_one_kind():
    with pytest.raises(ValueError, match="one kind"):
        tagging.matrices([["a"]], [np.zeros(3)])
    with pytest.raises(ValueError, match="0 or 1"):
        tagging.matrices([np.zeros(3)], [np.full(3, 2)])
    fit, tested = tagging.matrices([np.array([0, 1])], [[1, 1]])
    assert fit.tolist() == [[0, 1]] and tested.tolist() == [[1, 1]]


def test_the_heat_map_of_a_run(tmp_path):
    results = {"left/a/top1": 0.2, "left/b/top1": 0.3, "left/a+b/top1": 0.4, "left/a/R@1": 0.1, "left/b/R@1": 0.2,
               "left/n": 10, "left/majority": 0.25}  # fmt: skip
    part = {"left": dict(name="missing", modalities=["a", "b"])}
    assert figures.of_numbers(part, results, tmp_path) == "missing.png"
    assert (tmp_path / "missing.png").stat().st_size > 5000
    assert figures.of_numbers(part, {}, tmp_path) == "" and figures.of_numbers({}, results, tmp_path) == ""
