"""Embedding arithmetic: an image's vector plus that of a sound, and the images near their sum.

A picture of a beach and the bark of a dog should find a dog on a beach (Girdhar et al., ImageBind, arXiv 2305.05665).
Where no record shows both, as in most data sets, two things can be counted: whether the image of what is heard is
near the sum, and how many of the images near it are of the first one's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.data.record import look_up
from mmcl_jax.evals import labelled
from mmcl_jax.evals.embeddings import check_finite, check_streams, first_records
from mmcl_jax.evals.knn import unit
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor


def check(
    predictor: Predictor,
    where: str,
    data: Mapping[str, Any],
    added: str = "audio",
    to: str = "image",
    label: str = "label",
    title: str = "label",
    weight: float = 1.0,
    limit: int = 0,
) -> list[Any]:
    """Refuses streams and fields that are not there; see `evals.check`."""
    check_streams(predictor.streams, (to, added), where)
    if weight <= 0:
        raise ConfigError(f"{where}.weight={weight} must be positive: it is what the added vector is multiplied by.")
    source = sources.make(data, f"{where}.data")
    records = first_records(predictor.streams, source)
    for field in (label, title):
        if all(look_up(r, field) is None for r in records):
            raise ConfigError(f"{where}: the first {len(records)} records have no field {field!r}.")
    return [source]


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    added: str = "audio",
    to: str = "image",
    label: str = "label",
    title: str = "label",
    weight: float = 1.0,
    limit: int = 0,
) -> dict[str, float]:
    """The evaluator: to each image the sound of another record is added.

    Args:
        predictor: the model.
        data: a source, as in `data.train`; its records that have both.
        added: stream of what is added to an image.
        to: stream of the images.
        label: field of the class; images without one are of no class.
        title: field that tells in the picture, `arithmetic.png`, what is added.
        weight: of the added vector; images lie nearer to each other than to sounds, so that 1 may be too little.
        limit: only so many records; 0 = all.

    Returns:
        Of the images other than the first itself: "R@1" and "R@5", the share of sums near which the other record's
        image is the first or among the first five; "class@5", the share of the five nearest that are of the first
        image's class. The same of either vector alone, as "image/R@5" and "<added>/R@5" say. "n", and "class_chance",
        the share of images of the first one's class among all.

    Raises:
        ValueError: if fewer than seven records have both, or none of them has a label.
    """
    z, owners, kept = vectors(predictor, data, added, to, (label,), limit)
    names = sources.class_names(sources.make(data, "evals data"), label)
    found = [labelled.class_of(kept[label][i], names, label) for i in owners]
    known = np.array([c is not None for c in found])
    if not known.any():
        raise ValueError(f"No record has a label: the field {label!r} is missing from all of them.")
    classes = np.array([str(c) for c in found])
    n, other = len(owners), partners(len(owners))
    same = (classes[:, None] == classes) & known
    np.fill_diagonal(same, False)
    results: dict[str, float] = {"n": n, "class_chance": float(same[known].mean() * n / (n - 1))}
    for prefix, query in (("", z[to] + weight * z[added][other]), (f"{to}/", z[to]), (f"{added}/", z[added][other])):
        nearest = near(query, z[to], 5)
        hit = nearest == other[:, None]
        results |= {f"{prefix}R@1": float(hit[:, 0].mean()), f"{prefix}R@5": float(hit.any(1).mean())}
        results[f"{prefix}class@5"] = float(np.take_along_axis(same, nearest, 1)[known].mean())
    return results


def vectors(
    predictor: Predictor, data: Mapping[str, Any], added: str, to: str, keep: tuple[str, ...], limit: int
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, list[Any]]]:
    """Unit vectors [N, D] of both streams of the records that have both, these records' numbers [N], and fields."""
    found = predictor.embed_source(sources.make(data, "evals data"), (to, added), keep, limit)
    check_finite(*found.vectors.values())
    owners = np.intersect1d(found.owners[to], found.owners[added])
    if len(owners) < 7:
        raise ValueError(f"{len(owners)} records have both {to!r} and {added!r}; arithmetic needs seven.")
    rows = {name: np.searchsorted(found.owners[name], owners) for name in (to, added)}  # of several the first
    return {name: found.vectors[name][rows[name]] for name in rows}, owners, found.kept


def partners(n: int) -> np.ndarray:
    """Which of n records is added to each: the one that stands half of all records further on."""
    return (np.arange(n) + n // 2) % n


def near(queries: np.ndarray, images: np.ndarray, k: int) -> np.ndarray:
    """The k images nearest to each query [N, D] by cosine, [N, k], without the i-th image for the i-th query."""
    cosine = unit(queries) @ images.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]
