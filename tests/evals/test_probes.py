"""Probes of frozen features, against scikit-learn, closed forms and cases whose answer is known."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import mmcl_jax
from mmcl_jax import config as configs
from mmcl_jax import evals, train
from mmcl_jax.data import sources
from mmcl_jax.evals import fewshot, figures, knn, labelled, linear
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Ctx
from tests.conftest import make_mesh

TEST = {"source": "synthetic", "size": 64, "split": "test"}
TRAIN = {"source": "synthetic", "size": 128, "split": "train"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from pathlib import Path

    folder = Path(__file__).parent.parent.parent
    workdir = tmp_path_factory.mktemp("run")
    config = configs.load(f"{folder}/configs/clip_emoji.py:tiny", ["steps=4", "batch=16", "optim.warmup=1"])
    config.evals = {"near": dict(name="knn", data=TEST, fit=dict(split="train", size=128))}
    train.train(config, workdir, jax.devices()[:1])
    return workdir


def clouds(n, classes=7, d=12, apart=1.0, seed=0):
    """Rows of classes with centres of their own: features [n, d] and labels [n], each class there."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d)) * apart
    labels = np.arange(n) % classes
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def probe(x, labels, tested, true):
    counts = {"n": len(true), "n_fit": len(labels), "classes": int(labels.max()) + 1}
    return labelled.Probe(x, labels, tested, true, counts["classes"], counts)


# ---- knn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, temperature, chunk", [(1, 0.07, 256), (20, 0.07, 16), (200, 0.5, 50)])
def test_knn_votes_like_sklearn_and_brute_force(k, temperature, chunk):
    x, labels = clouds(150)
    tested, _ = clouds(50, seed=1)
    found = knn.votes(x, labels, tested, 7, k, temperature, chunk)
    theirs = KNeighborsClassifier(
        min(k, 150), metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    shares = found / found.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.fit(x, labels).predict_proba(tested), atol=2e-5)
    for i in range(3):
        cosine = [float(tested[i] @ row / np.linalg.norm(tested[i]) / np.linalg.norm(row)) for row in x]
        by_class = np.zeros(7)
        for j in sorted(range(150), key=lambda j: -cosine[j])[:k]:
            by_class[labels[j]] += np.exp((cosine[j] - max(cosine)) / temperature)
        np.testing.assert_allclose(found[i], by_class, rtol=1e-4, atol=1e-9)


def test_knn_does_not_depend_on_the_size_of_features_nor_overflow():
    x, labels = clouds(60)
    tested, _ = clouds(20, seed=1)
    expected = knn.votes(x, labels, tested, 7, 5, 1e-4)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(knn.votes(1e-3 * x, labels, 1e3 * tested, 7, 5, 1e-4), expected, rtol=0.05)


def test_spread_of_known_features():
    rng = np.random.default_rng(0)
    even = rng.normal(size=(20_000, 32))
    assert knn.spread(even)["std"] == pytest.approx(1, abs=0.02)
    assert knn.spread(even)["effective_rank"] == pytest.approx(32, abs=0.1)
    flat = rng.normal(size=(20_000, 4)) @ np.linalg.qr(rng.normal(size=(32, 4)))[0].T
    assert knn.spread(flat + 5)["effective_rank"] == pytest.approx(4, abs=0.05), "where the centre is does not matter"
    assert knn.spread(flat[:20] + 5)["effective_rank"] <= 4, "more dimensions than rows"
    same = np.full((50, 32), 0.3, np.float32) + rng.normal(size=(50, 32)).astype(np.float32) * 1e-8
    assert knn.spread(same) == {"std": pytest.approx(0, abs=1e-6), "effective_rank": 0.0}
    one_number = np.outer([1.0, -1.0, 2.0, -2.0], np.ones(9) / 3)
    assert knn.spread(one_number)["effective_rank"] == pytest.approx(1)
    hand = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])  # singular values in the ratio 3 : 1
    assert knn.spread(hand)["effective_rank"] == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


# ---- linear ---------------------------------------------------------------------------------------------------------


def test_lbfgs_is_logistic_regression_with_the_c_of_the_held_out_part():
    x, labels = clouds(210, apart=0.6)
    tested, true = clouds(100, apart=0.6, seed=1)
    scores, c = linear.lbfgs(x, labels, tested)
    out = linear.hold_out(labels)
    assert np.bincount(labels[out]).tolist() == [6] * 7, "a fifth of each class"

    def scaled(rows):
        return (rows - x.mean(0)) / np.sqrt(np.square(x - x.mean(0)).mean())

    def fit(c, rows):
        return LogisticRegression(C=c, max_iter=1000).fit(scaled(x[rows]), labels[rows])

    accuracy = {c: fit(c, ~out).score(scaled(x[out]), labels[out]) for c in linear.CS}
    assert accuracy[c] == max(accuracy.values())
    theirs = fit(c, np.ones(210, bool))
    assert (theirs.predict(scaled(tested)) == scores.argmax(1)).mean() >= 0.99
    np.testing.assert_allclose(scores, theirs.decision_function(scaled(tested)), atol=0.02 * np.abs(scores).max())
    assert (scores.argmax(1) == true).mean() > 0.4


def test_c_does_not_depend_on_the_size_of_features():
    x, labels = clouds(140, apart=0.6)
    tested, _ = clouds(30, apart=0.6, seed=1)
    (small, c_small), (large, c_large) = (linear.lbfgs(f * x, labels, f * tested) for f in (1e-4, 1e3))
    assert c_small == c_large
    np.testing.assert_allclose(small, large, atol=1e-3 * np.abs(large).max())


def layers():
    """Two classes in thin layers: only a weakly regularised classifier tells them apart."""
    labels = np.arange(400) % 2
    x = np.random.default_rng(0).normal(size=(400, 1)) * 10
    return np.hstack([x, x + 0.05 * (2 * labels[:, None] - 1)]), labels


def test_the_c_that_is_right_is_found():
    """One good dimension among many of noise, and some wrong labels: without regularisation these are learnt."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    x = rng.normal(size=(120, 100)).astype(np.float32)
    x[:, 0] += 3 * (2 * labels - 1)
    wrong = np.where(rng.random(120) < 0.15, 1 - labels, labels)
    assert linear.lbfgs(x, wrong, x)[1] <= 0.1
    x, labels = layers()
    scores, c = linear.lbfgs(x, labels, x)
    assert c >= 100 and (scores.argmax(1) == labels).mean() == 1


def test_a_c_on_the_edge_is_told_and_classes_with_one_record_are_fitted(capsys):
    x, labels = layers()
    assert linear.lbfgs(x, labels, x, cs=(100, 1e-4))[1] == 100
    assert "C=100 lies on the edge of the sweep, 0.0001 to 100" in capsys.readouterr().out
    x, labels = clouds(141, apart=0.6)
    x, labels = np.concatenate([x, np.full((1, 12), 30, np.float32)]), np.append(labels, 7)
    assert not linear.hold_out(labels)[-1]
    assert linear.lbfgs(x, labels, x[-2:])[0].shape == (2, 8)
    with pytest.raises(ValueError, match="give one C"):
        linear.lbfgs(x[:7], labels[:7], x)
    assert linear.lbfgs(x[:7], labels[:7], x, cs=(1.0,))[0].shape == (142, 7)


@pytest.mark.parametrize("schedule, lr", [("cosine", 0.5), ("steps", 0.5)])
def test_sgd_reaches_what_lbfgs_reaches(schedule, lr):
    x, labels = clouds(280, apart=3)
    tested, true = clouds(100, apart=3, seed=1)
    scores = linear.sgd(x, labels, tested, 7, lr=lr, batch=64, epochs=40, schedule=schedule)
    best = (linear.lbfgs(x, labels, tested)[0].argmax(1) == true).mean()
    assert best > 0.98 and (scores.argmax(1) == true).mean() >= best - 0.02
    again = linear.sgd(x, labels, tested, 7, lr=lr, batch=64, epochs=40, schedule=schedule)
    np.testing.assert_array_equal(scores, again)
    with pytest.raises(ValueError, match="diverges with lr=1e"):
        linear.sgd(1e20 * x, labels, tested, 7, lr=1e30, batch=64, epochs=40, schedule=schedule)


def test_one_step_of_sgd_by_hand():
    """From zero the gradient is that of equal probabilities; the learning rate is lr x batch / 256."""
    x, labels = clouds(32, classes=4)
    scores = linear.sgd(x, labels, x, 4, lr=0.1, batch=32, epochs=1)
    gradient = x.T @ (0.25 - np.eye(4)[labels]) / 32
    bias = (0.25 - np.eye(4)[labels]).mean(0)
    step = 0.1 * 32 / 256 * 1.9  # Nesterov: the gradient, and 0.9 times the momentum, which is the gradient
    np.testing.assert_allclose(scores, -step * (x @ gradient + bias), atol=1e-5)


# ---- few shots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, d", [(14, 30), (60, 10)])
def test_fewshot_is_ridge_regression_in_closed_form(n, d):
    x, labels = clouds(n, d=d)
    tested, _ = clouds(20, d=d, seed=1)
    x64, t64 = x.astype(float), tested.astype(float)
    mean, std = x64.mean(0), x64.std(0) + 1e-5
    a = np.hstack([(x64 - mean) / std, np.full((n, 1), 100)])
    b = np.hstack([(t64 - mean) / std, np.full((20, 1), 100)])
    y = np.full((n, 7), -1.0)
    y[np.arange(n), labels] = 1
    expected = b @ np.linalg.inv(a.T @ a + 50 * np.eye(d + 1)) @ a.T @ y
    np.testing.assert_allclose(fewshot.ridge_scores(x, labels, tested, 7, 50.0), expected, atol=1e-6)


def test_examples_are_drawn_from_each_class():
    labels = np.array([0] * 10 + [1] * 3 + [2])
    rows = fewshot.draw(labels, 5, seed=0)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 1] and len(set(rows)) == 9
    assert set(fewshot.draw(labels, 2, seed=0)) <= set(rows), "few are among many"
    assert set(fewshot.draw(labels, 5, seed=1)) != set(rows)


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_classes_are_known_by_name_and_what_is_not_fitted_on_is_a_miss():
    names = ["cat", "dog", "eel"]
    assert [labelled.class_of(v, names, "f") for v in (np.int64(2), "dog", -1, "", None)] == [
        "eel", "dog", None, None, None]  # fmt: skip
    assert labelled.class_of(True, None, "is_flag") == 1
    with pytest.raises(ValueError, match="label 3, but only 3 classes"):
        labelled.class_of(3, names, "f")
    with pytest.raises(ValueError, match="whole number or a name"):
        labelled.class_of(0.5, None, "f")
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    fit = labelled.Labelled(x, {"f": ["dog", "cat", None, "cat"]}, np.arange(4), 5, 0)
    tested = labelled.Labelled(x[:3], {"f": ["cat", "eel", "dog"]}, np.arange(3), 3, 0)
    found = labelled.pair(fit, tested, "f")
    assert found.fit_labels.tolist() == [1, 0, 0] and found.labels.tolist() == [0, 2, 1] and found.classes == 2
    assert found.counts == {"n": 3, "n_fit": 3, "classes": 2, "left_out_fit": 2, "unknown_class": 1}
    assert found.metrics(np.array([[1.0, 0], [1, 0], [0, 1]]))["top1"] == pytest.approx(2 / 3)
    other = labelled.Labelled(x[:1], {"f": ["owl"]}, np.arange(1), 1, 0)
    with pytest.raises(ValueError, match="tested is 'owl', fitted on are 'cat', 'dog'"):
        labelled.pair(fit, other, "f")


# ---- with a model ---------------------------------------------------------------------------------------------------


def test_pooled_features_are_those_of_the_encoder(run):
    predictor = mmcl_jax.load(run, batch=64, mesh=make_mesh("1"))
    found = predictor.embed_source(sources.make(TEST), ("image", "text"), of="pooled")
    source = sources.make(TEST)
    host = [predictor.streams.one("image", source[i]["image"]) for i in range(3)]
    rows = {"image": {k: np.stack([h[k] for h in host]) for k in host[0]} | {"present": np.ones(3, bool)}}
    batch = predictor.device({"streams": rows, "position": np.zeros((3, 2), np.uint32)})
    encoded, _ = predictor.method.encode(predictor.params, predictor.extra, batch, Ctx())
    np.testing.assert_allclose(found.vectors["image"][:3], encoded["image"].pooled, atol=1e-5)
    assert found.vectors["image"].dtype == np.float32
    for size, mesh in ((16, "1"), (24, "4x2")):
        other = mmcl_jax.load(run, batch=size, mesh=make_mesh(mesh))
        again = other.embed_source(source, ("image",), of="pooled").vectors["image"]
        np.testing.assert_allclose(again, found.vectors["image"], atol=1e-5)


@pytest.mark.parametrize("features", ["pooled", "embedding"])
def test_evaluators_run(run, features):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    common = {"data": {"split": "test", "size": 64}, "fit": {"size": 128}, "features": features}
    parts = {
        "knn": common | {"name": "knn"},
        "linear": common | {"name": "linear", "cs": (0.1, 1.0)},
        "sgd": common | {"name": "linear", "protocol": "sgd", "epochs": 2},
        "fewshot": common | {"name": "fewshot", "shots": (1, 2), "draws": 2},
    }
    evals.check(predictor, parts, TRAIN)
    found = {}
    for name, part in parts.items():
        if name == "linear":  # a class has one record here
            with pytest.raises(ConfigError, match="give one C"):
                evals.run(predictor, name, part, TRAIN)
            part = part | {"cs": (1.0,)}
        found[name] = evals.run(predictor, name, part, TRAIN)
        assert found[name]["n"] == 64 and found[name]["n_fit"] == found[name]["classes"] == 128
        assert all(np.isfinite(v) for v in found[name].values())
    assert {"top1", "top5", "mean_per_class", "std", "effective_rank"} <= set(found["knn"])
    assert found["linear"]["C"] == 1 and "2shot/top5" in found["fewshot"]
    assert found["fewshot"]["2shot/short"] == 128 and "1shot/short" not in found["fewshot"]
    tested, bank = (labelled.embed(predictor, d, features=features) for d in (TEST, TRAIN))
    task = labelled.pair(bank, tested, "label")
    expected = task.metrics(knn.votes(task.fit_features, task.fit_labels, task.features, task.classes))
    assert expected["top1"] == found["knn"]["top1"]


def make(split: str):
    """A source of one's own: synthetic records with shape and colour as labels, some without, some without image."""
    return ManyLabels(sources.make({"source": "synthetic", "size": 96, "split": split}))


class ManyLabels:
    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        record = dict(self.inner[i])
        shape = np.int64(record["label"] % 8)
        if i % 16 == 3:
            record.pop("image")
        return record | {"shape": None if i % 16 == 5 else shape, "colour": record["text"].split()[1], "size": 0.5}

    def class_names(self, field):
        return [f"shape {i}" for i in range(8)] if field == "shape" else None


MANY = {"source": __name__, "split": "train"}


def test_several_labels_and_shift(run):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    part = {"name": "knn", "data": {"split": "test"}, "fit": {}, "label": ("shape", "colour"), "k": 5}
    evals.check(predictor, {"near": part}, MANY)
    both = evals.run(predictor, "near", part, MANY)
    alone = evals.run(predictor, "near", part | {"label": "shape"}, MANY)
    assert both["shape/top1"] == alone["top1"] and both["std"] == alone["std"]
    assert both["shape/n"] == 84 and both["shape/left_out"] == 12 and both["colour/n"] == 90
    over = {"a": MANY | {"split": "test"}, "b": MANY | {"split": "other"}}
    shift = {"name": "shift", "of": "knn", "over": over, "fit": {}, "label": "shape", "k": 5}
    evals.check(predictor, {"s": shift}, MANY)
    found = evals.run(predictor, "s", shift, MANY)
    assert found["a/top1"] == alone["top1"] and "b/top1" in found
    with pytest.raises(ConfigError, match=r"evals.s.over.b.data: .* no label 'shap'; did you mean 'shape'"):
        evals.check(predictor, {"s": shift | {"over": {"b": over["b"]}, "label": "shap"}}, MANY)
    with pytest.raises(ConfigError, match="fit is the same as data"):
        evals.check(predictor, {"s": shift | {"over": over | {"c": MANY}}}, MANY)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": "colours"}, r"no label 'colours'; did you mean 'colour'"),
        ({"label": ()}, "label is empty"),
        ({"label": "size"}, "'size' has the value 0.5; a label is a whole number or a name"),
        ({"stream": "imag"}, "no stream 'imag'; did you mean 'image'"),
        ({"features": "poled"}, "features='poled' does not exist; did you mean 'pooled'"),
        ({"data": {}}, "fit is the same as data"),
        ({"k": 0}, "k=0 and temperature"),
        ({"name": "linear", "protocol": "adam"}, "protocol='adam' does not exist. Possible: lbfgs, sgd"),
        ({"name": "linear", "schedule": "step"}, "did you mean 'steps'"),
        ({"name": "linear", "cs": (0.0, 1.0)}, "must be positive numbers"),
        ({"name": "linear", "batch": 0}, "batch=0"),
        ({"name": "fewshot", "shots": (0, 5)}, r"shots=\(0, 5\)"),
        ({"name": "fewshot", "draw": 5}, "no argument 'draw'; did you mean"),
    ],
)
def test_check_refuses_before_training(run, change, message):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    part = {"name": "knn", "data": {"split": "test"}, "fit": {}, "label": "colour"} | change
    with pytest.raises(ConfigError, match=message):
        evals.check(predictor, {"near": part}, MANY)


def test_neighbours_are_drawn_at_the_end(run, tmp_path):
    assert (run / "neighbours.png").stat().st_size > 5000 and not (run / "retrieval.png").exists()
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    figures.neighbours(predictor, TEST, tmp_path / "own.png", rows=2)
    assert (tmp_path / "own.png").exists()
    with pytest.raises(ValueError, match="only images"):
        figures.neighbours(predictor, TEST, tmp_path / "text.png", stream="text")
    with pytest.raises(ConfigError, match="no encoder"):
        predictor.embed_source(sources.make(TEST), ("label",))
