"""Evaluators against scikit-learn, brute force and hand-computed cases."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mmcl_jax.evals.embeddings import booleans
from mmcl_jax.evals.retrieval import directions, ranks, retrieval_metrics, summary
from mmcl_jax.evals.zeroshot import classification_metrics


def vectors(n, d=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_several_captions_by_brute_force():
    images, texts = vectors(30), vectors(90, seed=1)
    owner = np.repeat(np.arange(30), 3)
    metrics = retrieval_metrics(images, texts, np.arange(30), owner)
    order = np.argsort(-(images @ texts.T), axis=1)
    best = np.array([min(np.flatnonzero(owner[order[i]] == i)) + 1 for i in range(30)])
    # items of the same owner don't push each other down: rank among the others
    best = np.array([1 + sum(owner[j] != i for j in order[i][: b - 1]) for i, b in enumerate(best)])
    for k in (1, 5, 10):
        assert metrics[f"a2b/R@{k}"] == pytest.approx((best <= k).mean())
    assert metrics["a2b/MedR"] == np.median(best)
    recalls = [metrics[f"{w}/R@{k}"] for w in ("a2b", "b2a") for k in (1, 5, 10)]
    assert metrics["rsum"] == pytest.approx(100 * sum(recalls))


def test_a_collapsed_model_gets_the_worst_rank_not_the_best():
    same = np.ones((50, 4), np.float32) / 2
    metrics = retrieval_metrics(same, same, np.arange(50), np.arange(50))
    assert metrics["a2b/R@1"] == 0 and metrics["a2b/MedR"] == 50


def test_not_finite_is_refused():
    bad = vectors(10)
    bad[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 10 embeddings are not finite"):
        retrieval_metrics(bad, vectors(10), np.arange(10), np.arange(10))


def test_chunks_and_absent_partners():
    images, texts = vectors(40), vectors(40, seed=1)
    own = np.arange(40)
    np.testing.assert_array_equal(ranks(images, texts, own, own, chunk=7), ranks(images, texts, own, own))
    lonely = retrieval_metrics(images, texts[:30], np.arange(40), np.arange(30))
    assert lonely["a2b/R@1"] == summary(ranks(images[:30], texts[:30], own[:30], own[:30]))["R@1"]
    with pytest.raises(ValueError, match="No pair"):
        retrieval_metrics(images, texts, np.arange(40), np.arange(40) + 100)


def test_directions_keep_their_names_apart():
    assert directions("image", "text") == {"a2b": "i2t", "b2a": "t2i"}
    assert directions("image", "image/v1") == {"a2b": "image2image_v1", "b2a": "image_v12image"}


def test_truth_values_of_tables():
    assert booleans([True, np.bool_(False), 1, "true", "False", "0"], "f").tolist() == [1, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="'is_flag' has the value 'maybe'"):
        booleans(["maybe"], "is_flag")


def test_classification_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 12)), rng.integers(0, 11, 200)
    scores[np.arange(200), labels] += 1
    ours = classification_metrics(scores, labels)
    assert ours["top1"] == pytest.approx((scores.argmax(1) == labels).mean())
    assert ours["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(12)))
    assert ours["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert classification_metrics(np.zeros((4, 3)), np.arange(4) % 3)["top1"] == 0, "ties are misses"
