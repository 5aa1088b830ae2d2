"""Cross-modal retrieval: which texts belong to this image, which images to this text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.data.record import look_up
from mmcl_jax.evals.embeddings import booleans, check_finite, check_streams, first_records
from mmcl_jax.items import Items, count, take
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor

KS = (1, 5, 10)
Score = Callable[[Items, Items], np.ndarray]  # (queries, items) -> [Q, I]


def dot(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The dot products [Q, I] of vectors, in their own dtype."""
    return queries @ items.T


def ranks(
    queries: Items,
    items: Items,
    query_owner: np.ndarray,
    item_owner: np.ndarray,
    chunk: int = 1024,
    score: Score = dot,
) -> np.ndarray:
    """Rank of the best positive item of each query, 1 is best; ties count against it.

    A collapsed model, whose scores are all equal, gets the worst rank rather than the best.

    Args:
        queries: [Q, D], or a pytree with leading rows Q.
        items: [I, D], or a pytree with leading rows I.
        query_owner: [Q] int; the items with the same owner are a query's positives, and every query has at least one.
        item_owner: [I] int.
        chunk: queries at a time; memory is O(chunk x I).
        score: how they are compared.

    Returns:
        [Q] int64.
    """
    return np.concatenate(
        [
            ranks_of_scores(
                score(take(queries, slice(s, s + chunk)), items), query_owner[s : s + chunk, None] == item_owner
            )
            for s in range(0, count(queries), chunk)
        ]
    )


def ranks_of_scores(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """As `ranks`, from scores [Q, I].

    Example:
        >>> ranks_of_scores(np.array([[0.9, 0.2], [0.5, 0.5]]), np.eye(2, dtype=bool)).tolist()
        [1, 2]
    """
    best = np.where(positive, scores, -np.inf).max(1, keepdims=True)
    return 1 + ((scores >= best) & ~positive).sum(1)


def summary(found: np.ndarray) -> dict[str, float]:
    """R@1, R@5, R@10 (shares), median and mean of ranks [Q]."""
    recalls = {f"R@{k}": float((found <= k).mean()) for k in KS}
    return recalls | {"MedR": float(np.median(found)), "MeanR": float(found.mean())}


def retrieval_metrics(
    a: Items, b: Items, owner_a: np.ndarray, owner_b: np.ndarray, score: Score = dot
) -> dict[str, float]:
    """Metrics of both directions.

    Args:
        a: [Na, D] unit vectors, images say; or a pytree with leading rows Na.
        b: [Nb, D] unit vectors, captions say; or a pytree with leading rows Nb.
        owner_a: [Na] int, the example that a row belongs to; rows of a and b with the same owner are positives.
        owner_b: [Nb] int.
        score: how they are compared; its first argument are the queries, so a in one direction and b in the other.

    Returns:
        "a2b/R@1" and so on, "b2a/R@1" and so on, and "rsum", the sum of the six recalls in percent.
    """
    check_finite(a, b)
    # A row without a partner can't be found, nor find anything; it stays as a distractor for the others.
    has_a, has_b = np.isin(owner_a, owner_b), np.isin(owner_b, owner_a)
    if not has_a.any():
        raise ValueError("No pair to retrieve: no example has both modalities.")
    a2b = summary(ranks(take(a, has_a), b, owner_a[has_a], owner_b, score=score))
    b2a = summary(ranks(take(b, has_b), a, owner_b[has_b], owner_a, score=score))
    rsum = 100 * sum(m[f"R@{k}"] for m in (a2b, b2a) for k in KS)
    return {f"a2b/{k}": v for k, v in a2b.items()} | {f"b2a/{k}": v for k, v in b2a.items()} | {"rsum": rsum}


def directions(a: str, b: str) -> dict[str, str]:
    """What the directions between two streams are called: by initials, or by whole names where these are the same."""
    short = (a[0], b[0]) if a[0] != b[0] else (a.replace("/", "_"), b.replace("/", "_"))
    return {"a2b": "2".join(short), "b2a": "2".join(reversed(short))}


def check(
    predictor: Predictor,
    where: str,
    data: Mapping[str, Any],
    a: str = "image",
    b: str = "text",
    without: Sequence[str] = (),
    limit: int = 0,
) -> list[Any]:
    """Refuses streams and fields that are not there; see `evals.check`."""
    check_streams(predictor.streams, (a, b), where)
    source = sources.make(data, f"{where}.data")
    records = first_records(predictor.streams, source) if without else []
    for field in without:
        values = [v for v in (look_up(r, field) for r in records) if v is not None]
        if not values:
            raise ConfigError(f"{where}.without: the first {len(records)} records have no field {field!r}.")
        booleans(values, field)
    return [source]


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    a: str = "image",
    b: str = "text",
    without: Sequence[str] = (),
    limit: int = 0,
) -> dict[str, float]:
    """The evaluator: embeds a source and ranks.

    Args:
        predictor: the model.
        data: a source, as in `data.train`.
        a: stream of the one side.
        b: stream of the other; a field that holds a list gives several captions per image.
        without: boolean fields; for each, all metrics once more over the records where it is false, as
            "no_<field>/...".
        limit: only so many records; 0 = all.

    Returns:
        For a = "image" and b = "text": "i2t/R@1", ..., "t2i/MeanR", "rsum", and "n", the number of records.
    """
    found = predictor.embed_source(sources.make(data, "evals data"), (a, b), without, limit, of="items")
    subsets = {"": np.ones(found.size, bool)}
    for field in without:
        flags = booleans([value is not None and value for value in found.kept[field]], field)
        subsets[f"no_{field.removeprefix('is_')}/"] = ~flags
    results: dict[str, float] = {}
    for prefix, subset in subsets.items():
        if prefix and not subset.any():
            continue  # nothing is left without them
        rows_a, rows_b = (subset[found.owners[s]] for s in (a, b))
        metrics = retrieval_metrics(
            take(found.vectors[a], rows_a),
            take(found.vectors[b], rows_b),
            found.owners[a][rows_a],
            found.owners[b][rows_b],
            predictor.score,
        )
        names = directions(a, b)
        results |= {f"{prefix}{'/'.join(names.get(p, p) for p in k.split('/'))}": v for k, v in metrics.items()}
        both = np.intersect1d(found.owners[a][rows_a], found.owners[b][rows_b]).size
        results |= {f"{prefix}n": int(subset.sum())} | ({f"{prefix}pairs": both} if both < subset.sum() else {})
    return results | ({"unreadable": found.unreadable} if found.unreadable else {})
