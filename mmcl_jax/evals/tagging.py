"""Several tags of an example at once, as of sounds: mean average precision, area under the ROC curve, d-prime.

By a logistic regression for each tag on frozen features.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.data.record import look_up
from mmcl_jax.evals.embeddings import check_choice, check_finite, check_streams, first_records
from mmcl_jax.evals.labelled import FEATURES
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor


def tagging_metrics(scores: np.ndarray, tags: np.ndarray) -> dict[str, float]:
    """Metrics of each tag, averaged over tags that some examples have and some don't.

    d' = sqrt(2) Phi^-1(AUC) (Hershey et al. 2017, arXiv 1609.09430): "dprime" is the mean of the tags', as AudioSet's
    authors have it; "dprime_of_auc" that of the mean AUC, as others do. A tag whose AUC is 1 counts as one that ranks
    half a pair wrongly.

    Args:
        scores: [N, C].
        tags: [N, C] of 0 and 1.

    Returns:
        "mAP", "AUC", "dprime", "dprime_of_auc" and "tags", how many count.

    Raises:
        ValueError: if none counts.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    check_finite(scores)
    counts = np.flatnonzero((tags.min(0) < 1) & (tags.max(0) > 0))
    if not len(counts):
        raise ValueError("Every tag is that of all examples, or of none: there is nothing to measure.")
    precision = [average_precision_score(tags[:, c], scores[:, c]) for c in counts]
    auc = [roc_auc_score(tags[:, c], scores[:, c]) for c in counts]
    pairs = [int(tags[:, c].sum()) * int((1 - tags[:, c]).sum()) for c in counts]
    dprime = [d_prime(a, n) for a, n in zip(auc, pairs, strict=True)]
    means = {"mAP": np.mean(precision), "AUC": np.mean(auc), "dprime": np.mean(dprime)}
    means["dprime_of_auc"] = d_prime(float(np.mean(auc)), sum(pairs))
    return {k: float(v) for k, v in means.items()} | {"tags": len(counts)}


def d_prime(auc: float, pairs: int) -> float:
    """sqrt(2) Phi^-1(auc), kept finite: no further from 0 or 1 than half of one of so many pairs."""
    edge = 0.5 / pairs
    return 2**0.5 * statistics.NormalDist().inv_cdf(min(max(auc, edge), 1 - edge))


def check(
    predictor: Predictor,
    where: str,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    tags: str = "tags",
    stream: str = "audio",
    features: str = "pooled",
    limit: int = 0,
    c: float = 1.0,
) -> list[Any]:
    """Refuses streams and tags that are not there; see `evals.check`."""
    check_streams(predictor.streams, (stream,), where)
    check_choice(where, "features", features, FEATURES)
    opened = []
    for key, part in (("data", data), ("fit", fit)):
        source = sources.make(part, f"{where}.{key}")
        values = [look_up(r, tags) for r in first_records(predictor.streams, source)]
        if all(v is None for v in values):
            raise ConfigError(f"{where}.{key}: the first {len(values)} records have no tags {tags!r}.")
        opened.append(source)
    return opened


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    tags: str = "tags",
    stream: str = "audio",
    features: str = "pooled",
    limit: int = 0,
    c: float = 1.0,
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`: it is tested.
        fit: a source: a logistic regression for each tag is fitted on it.
        tags: field of the tags: an array of 0 and 1, or a list of words, of which those of `fit` count.
        stream: that is embedded.
        features: "pooled" or "embedding", as for `linear`.
        limit: only so many records of each source; 0 = all.
        c: inverse of the regularisation's weight.

    Returns:
        The metrics of `tagging_metrics`, and "n" and "n_fit".

    Raises:
        ValueError: if no record has tags, or they are not of one kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, of_fit), (tested, of_tested) = (_embed(predictor, p, tags, stream, features, limit) for p in (fit, data))
    of_fit, of_tested = matrices(of_fit, of_tested)
    size = StandardScaler().fit(x)
    scores = np.zeros(of_tested.shape)  # of a tag that no fitted example has, or all have: nothing is known
    for tag in np.flatnonzero(of_fit.min(0) < of_fit.max(0)):
        model = LogisticRegression(C=c, max_iter=1000).fit(size.transform(x), of_fit[:, tag])
        scores[:, tag] = model.decision_function(size.transform(tested))
    return tagging_metrics(scores, of_tested) | {"n": len(tested), "n_fit": len(x)}


def _embed(
    predictor: Predictor, data: Mapping[str, Any], tags: str, stream: str, features: str, limit: int
) -> tuple[np.ndarray, list[Any]]:
    """Features [N, D] and tags of the records of a source that have both."""
    of = "pooled" if features == "pooled" else "embed"
    found = predictor.embed_source(sources.make(data, "evals data"), (stream,), (tags,), limit, of)
    values = [found.kept[tags][i] for i in found.owners[stream]]
    has = np.array([v is not None for v in values])
    if not has.any():
        raise ValueError(f"No record has tags: the field {tags!r} is missing from all of them.")
    check_finite(found.vectors[stream])
    return found.vectors[stream][has], [v for v in values if v is not None]


def _are_words(tags: Any) -> bool:
    return isinstance(tags, str) or isinstance(tags, list | tuple) and all(isinstance(tag, str) for tag in tags)


def matrices(fit: Sequence[Any], tested: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Tags of examples as two arrays of 0 and 1, [N, C] and [M, C].

    Example:
        >>> matrices([["dog", "bark"], ["cat"]], [["cat", "horse"]])[1]  # bark, cat, dog
        array([[0, 1, 0]])

    Raises:
        ValueError: if some are arrays and others words, or arrays have another length or other values.
    """
    words = {_are_words(v) for v in (*fit, *tested)}
    if len(words) > 1:
        raise ValueError("Some tags are arrays, others words; they must be of one kind.")
    if words == {True}:
        fit, tested = ([[v] if isinstance(v, str) else list(v) for v in values] for values in (fit, tested))
        known = sorted({word for words in fit for word in words})
        return tuple(np.array([[word in set(v) for word in known] for v in values], int) for values in (fit, tested))
    arrays = [np.asarray(v) for v in (*fit, *tested)]
    if len({a.shape for a in arrays}) > 1 or arrays[0].ndim != 1 or not np.isin(np.stack(arrays), (0, 1)).all():
        raise ValueError("Tags as arrays must all have one length, [C], and be 0 or 1.")
    whole = np.stack(arrays).astype(int)
    return whole[: len(fit)], whole[len(fit) :]
