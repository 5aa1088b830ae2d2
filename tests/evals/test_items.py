"""Retrieval and zero-shot classification by a method's own items and score: token sets that are compared one by one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmcl_jax
from mmcl_jax import config as configs
from mmcl_jax import evals, items, train
from mmcl_jax.data import sources
from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.evals.embeddings import check_finite
from mmcl_jax.evals.retrieval import ranks_of_scores, summary
from mmcl_jax.losses import info_nce, unit
from mmcl_jax.method import Method
from tests.conftest import make_mesh

STEPS = 3
DATA = {"source": "synthetic", "size": 53, "split": "test", "missing": 0.1}
TEMPLATES = ("a {}", "the picture of some {}.", "{}")


def make(encoders, *, embed_dim):
    """A method of one's own: `config.method.name` is this file."""
    return Tokens(encoders=encoders, readouts={name: Linear(embed_dim) for name in encoders})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens(Method):
    """Mean over a query's tokens of the cosine with the nearest token of the other side; scaled by the step."""

    streams = ("image", "text")
    spaces = {"image-text": ("image", "text")}

    def loss(self, params, extra, batch, ctx):
        z, extra = self.project(params, extra, batch, ctx)
        present = batch["image"].is_present() & batch["text"].is_present()
        return ctx.over_batch(info_nce)(z["image"], z["text"], present, scale=10.0), (extra, {})

    def items(self, params, extra, batch, ctx):
        encoded, _ = self.encode(params, extra, batch, ctx)
        found = {}
        for name, e in encoded.items():
            tokens = self.readouts[name].apply({"params": params[f"{name}_readout"]}, e.replace(pooled=e.tokens))
            mask = jnp.ones(tokens.shape[:2], bool) if e.mask is None else e.mask
            found[name] = {"tokens": unit(tokens), "mask": mask}
        return found

    def score(self, params, extra, items_a, items_b, ctx):
        cosines = jnp.einsum("imd,jnd->ijmn", items_a["tokens"], items_b["tokens"])
        nearest = jnp.where(items_b["mask"][None, :, None], cosines, -jnp.inf).max(-1)  # [Na, Nb, m]
        own = items_a["mask"][:, None]
        return ctx.step * jnp.where(own, nearest, 0).sum(-1) / own.sum(-1)


def by_hand(a, b):
    """The same, a pair after another, without padding."""
    scores = np.empty((len(a["mask"]), len(b["mask"])))
    for i, (x, own) in enumerate(zip(a["tokens"], a["mask"], strict=True)):
        for j, (y, real) in enumerate(zip(b["tokens"], b["mask"], strict=True)):
            scores[i, j] = STEPS * (x[own].astype(float) @ y[real].T).max(1).mean()
    return scores


def trained(repository, workdir, **method):
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", [f"steps={STEPS}", "batch=16", "optim.warmup=1"])
    config.method.update(method)
    config.evals = {
        "val": {"name": "retrieval", "data": DATA},
        "zero": {"name": "zeroshot", "data": DATA, "templates": TEMPLATES},
    }
    train.train(config, workdir, jax.devices()[:1])
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from pathlib import Path

    return trained(Path(__file__).parent.parent.parent, tmp_path_factory.mktemp("run"), name=__name__)


@pytest.fixture(scope="module")
def predictor(run):
    return mmcl_jax.load(run, batch=16, mesh=make_mesh("1"))


def test_retrieval_is_by_the_score_of_each_direction(run, predictor):
    found = predictor.embed_source(sources.make(DATA), ("image", "text"), of="items")
    image, text = (found.vectors[k] for k in ("image", "text"))
    assert image["tokens"].dtype == np.float32 and text["mask"].dtype == bool
    assert items.count(image) % 16 and items.count(text) % 16 and items.count(image) != items.count(text)
    lengths = text["mask"].sum(1)
    assert lengths.min() < lengths.max() < text["mask"].shape[1], "texts of several lengths, all padded"

    i2t, t2i = predictor.score(image, text), predictor.score(text, image)
    np.testing.assert_allclose(i2t, by_hand(image, text), atol=1e-5)
    np.testing.assert_allclose(t2i, by_hand(text, image), atol=1e-5)
    owner = {k: found.owners[k] for k in ("image", "text")}
    has = {a: np.isin(owner[a], owner[b]) for a, b in (("image", "text"), ("text", "image"))}

    def metrics(scores, a, b):
        positive = owner[a][has[a], None] == owner[b]
        return summary(ranks_of_scores(scores[has[a]], positive))

    expected = {"i2t": metrics(i2t, "image", "text"), "t2i": metrics(t2i, "text", "image")}
    assert expected["i2t"] != metrics(t2i.T, "image", "text"), "which side asks makes a difference"
    assert expected["t2i"] != metrics(i2t.T, "text", "image")
    ours = evals.run(predictor, "val", {"name": "retrieval", "data": DATA})
    at_the_end = json.loads((run / "summary.json").read_text())["evals"]
    for way, of_way in expected.items():
        for key, value in of_way.items():
            assert ours[f"{way}/{key}"] == pytest.approx(value, rel=1e-6), (way, key)
            assert at_the_end[f"val/{way}/{key}"] == pytest.approx(value, rel=1e-6), "of the step that was trained"
    assert (run / "retrieval.png").stat().st_size > 5000


def test_zero_shot_averages_the_scores_of_prompts(predictor):
    source = sources.make(DATA)
    classes = [name.replace("-", " ") for name in source.class_names("label")]
    found = predictor.embed_source(source, ("image",), ("label",), of="items")
    prompts = [t.format(c) for c in classes for t in TEMPLATES]
    scores = by_hand(found.vectors["image"], predictor.items(text=prompts)["text"])
    scores = scores.reshape(len(scores), len(classes), len(TEMPLATES)).mean(2)
    ours = predictor.class_scores(found.vectors["image"], classes, TEMPLATES)
    np.testing.assert_allclose(ours, scores, atol=1e-5)
    labels = np.array([found.kept["label"][i] for i in found.owners["image"]])
    rank = (ours >= ours[np.arange(len(labels)), labels, None]).sum(1)
    ours = evals.run(predictor, "zero", {"name": "zeroshot", "data": DATA, "templates": TEMPLATES})
    assert ours["top1"] == pytest.approx((rank == 1).mean())
    assert ours["top5"] == pytest.approx((rank <= 5).mean())

    with_image = [r["image"] for r in (source[i] for i in range(7)) if r.get("image") is not None]
    names, told = predictor.zero_shot(with_image, classes, TEMPLATES)
    np.testing.assert_allclose(told, scores[: len(with_image)], atol=1e-5)
    assert names == [classes[i] for i in told.argmax(1)]


def test_scores_do_not_depend_on_batch_or_devices(run, predictor):
    found = predictor.embed_source(sources.make(DATA), ("image", "text"), of="items")
    image, text = (found.vectors[k] for k in ("image", "text"))
    expected = predictor.score(image, text)
    for batch, mesh in ((64, "1"), (8, "8"), (24, "4x2")):
        other = mmcl_jax.load(run, batch=batch, mesh=make_mesh(mesh))
        np.testing.assert_allclose(other.score(image, text), expected, atol=1e-5)
    np.testing.assert_allclose(predictor.score(items.take(image, slice(0, 3)), text), expected[:3], atol=1e-5)
    assert predictor.score(items.take(image, slice(0, 0)), text).shape == (0, expected.shape[1])


def test_another_step_is_another_score_of_the_same_program(run):
    predictor = mmcl_jax.load(run, batch=16, mesh=make_mesh("1"))
    assert predictor.step == STEPS
    two = predictor.items(text=["a red square", "a disc"])["text"]
    before = predictor.score(two, two)
    predictor.step = 2 * STEPS
    again = predictor.items(text=["a red square", "a disc"])["text"]
    np.testing.assert_allclose(predictor.score(again, again), 2 * before, rtol=1e-6)
    assert predictor._embed._cache_size() == predictor._score._cache_size() == 1


def test_not_finite_tokens_are_refused():
    tokens = np.zeros((6, 3, 2), np.float32)
    tokens[4, 1, 0] = np.inf
    with pytest.raises(ValueError, match="1 of 6 embeddings are not finite"):
        check_finite({"tokens": tokens, "mask": np.ones((6, 3), bool)})


def test_dual_encoders_are_compared_as_vectors_to_the_last_bit(repository, tmp_path):
    predictor = mmcl_jax.load(trained(repository, tmp_path), batch=16, mesh=make_mesh("1"))
    source = sources.make(DATA)
    found, asked = (predictor.embed_source(source, ("image", "text"), of=of) for of in ("embed", "items"))
    image, text = (found.vectors[k] for k in ("image", "text"))
    np.testing.assert_array_equal(asked.vectors["image"], image)
    np.testing.assert_array_equal(predictor.score(image, text), image @ text.T)
    classes = source.class_names("label")[:9]
    prompts = predictor.embed(text=[t.format(c) for c in classes for t in TEMPLATES])["text"]
    mean = prompts.reshape(9, len(TEMPLATES), -1).mean(1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
    np.testing.assert_array_equal(predictor.class_scores(image, classes, TEMPLATES), image @ mean.T)
    # On accelerators, too, the method's own score is that of float32.
    own = predictor.method.score(predictor.params, predictor.extra, jnp.asarray(image), jnp.asarray(text), None)
    np.testing.assert_allclose(own, image @ text.T, atol=1e-6)


def test_first_rows_of_the_records_that_have_all_streams():
    rows = {"image": np.arange(4) + 0.5, "text": np.arange(5) + 10.0, "sound": np.arange(2) + 20.0}
    owners = {"image": np.array([0, 2, 3, 5]), "text": np.array([5, 0, 0, 3, 3]), "sound": np.array([3, 5])}
    found = items.Embeddings(rows, owners, {}, {}, 6, 0)
    records, (image, text) = found.pairs("image", "text")
    assert records.tolist() == [0, 3, 5] and image.tolist() == [0.5, 2.5, 3.5] and text.tolist() == [11, 13, 10]
    assert found.pairs("image", "text", "sound")[0].tolist() == [3, 5]
    records, (text,) = found.pairs("text")
    assert records.tolist() == [0, 3, 5] and text.tolist() == [11, 13, 10]
