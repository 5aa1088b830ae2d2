"""What is left when modalities are missing: retrieval and classification from each subset of them.

An example is represented by `Method.fuse` of the modalities of a subset. A classifier is fitted on what represents
complete examples, and tested on what is left of complete examples without some modalities: all subsets are compared
on the same examples (Vasco et al., GMC, arXiv 2202.03390, section 5).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.evals import labelled, linear
from mmcl_jax.evals.embeddings import check_finite, check_streams
from mmcl_jax.evals.knn import unit
from mmcl_jax.evals.retrieval import ranks, summary
from mmcl_jax.named import ConfigError, checked, did_you_mean
from mmcl_jax.predict import Predictor, fused, sample_batch
from mmcl_jax.types import Ctx


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All but the empty one, the small ones first.

    Example:
        >>> subsets(("image", "sound"))
        [('image',), ('sound',), ('image', 'sound')]
    """
    return [s for n in range(1, len(modalities) + 1) for s in itertools.combinations(modalities, n)]


@functools.cache
def _fused(modalities: tuple[str, ...]) -> Callable:
    """The function of a model that gives each subset's vectors, and which modalities an example has."""

    def of_subsets(method, params, extra, batch, ctx):
        vectors = {
            "+".join(s): method.fuse(params, extra, {m: batch[m] for m in s}, ctx)[0] for s in subsets(modalities)
        }
        return {"vectors": vectors, "present": {m: batch[m].is_present() for m in modalities}}

    return of_subsets


def check_modalities(predictor: Predictor, modalities: Sequence[str], where: str) -> None:
    """Refuses streams that `Method.fuse` would pass over, those that are no encoder's by its very name, or can't take.

    Raises:
        ConfigError: with the encoders, or what the method says.
    """
    for name in modalities:
        if name not in predictor.method.encoders:
            raise ConfigError(
                f"{where}.modalities: {name!r} has no encoder{did_you_mean(name, predictor.method.encoders)}"
            )
    sample = sample_batch(predictor.streams, predictor.device)
    fuse = functools.partial(fused(tuple(modalities)), predictor.method, batch=sample, ctx=Ctx())
    checked(where, jax.eval_shape, fuse, predictor.params, predictor.extra)


def check(
    predictor: Predictor,
    where: str,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    modalities: Sequence[str],
    label: str = "label",
    limit: int = 0,
    cs: Sequence[float] = linear.CS,
) -> list[Any]:
    """Refuses streams and labels that are not there; see `evals.check`."""
    check_streams(predictor.streams, modalities, where)
    if len(set(modalities)) < 2 or len(set(modalities)) != len(modalities):
        raise ConfigError(f"{where}.modalities={tuple(modalities)}: name two different streams, or more.")
    check_modalities(predictor, modalities, where)
    return labelled.check(predictor, where, data, fit, label, modalities[0])


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    modalities: Sequence[str],
    label: str = "label",
    limit: int = 0,
    cs: Sequence[float] = linear.CS,
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`, whose complete examples are tested.
        fit: a source on whose complete examples the classifier is fitted.
        modalities: streams, two or more.
        label: field of the class.
        limit: only so many records of each source; 0 = all.
        cs: of the classifier, see `linear`.

    Returns:
        For each subset, "image+sound" say: ".../top1", and ".../drop", how much better the whole is; for all but the
        whole, ".../R@1" and ".../R@5" of finding the example's other modalities, represented together, by cosine.
        "1_left/..." and so on are means over the subsets of so many. "n" and "n_fit", the complete examples, "classes",
        and "majority", the accuracy of always naming the class that is the most frequent among those fitted on.

    Raises:
        ValueError: if no example is complete.
    """
    modalities = tuple(modalities)
    (fit_vectors, fit_labels), (vectors, labels) = (
        _complete(predictor, part, modalities, label, limit) for part in (fit, data)
    )
    whole, n = "+".join(modalities), len(labels)
    known = labelled.Labelled(fit_vectors[whole], {label: fit_labels}, np.arange(len(fit_labels)), len(fit_labels), 0)
    tested = labelled.Labelled(np.concatenate([*vectors.values()]), {label: labels * len(vectors)},
                               np.tile(np.arange(n), len(vectors)), n, 0)  # fmt: skip
    probe = labelled.pair(known, tested, label)
    scores = linear.lbfgs(probe.fit_features, probe.fit_labels, probe.features, cs)[0]
    results: dict[str, float] = {}
    for i, name in enumerate(vectors):
        rows = slice(i * n, (i + 1) * n)
        part = dataclasses.replace(probe, features=probe.features[rows], labels=probe.labels[rows])
        results[f"{name}/top1"] = part.metrics(scores[rows])["top1"]
    for name in vectors:
        results[f"{name}/drop"] = results[f"{whole}/top1"] - results[f"{name}/top1"]
        others = "+".join(m for m in modalities if m not in name.split("+"))
        if others:
            found = ranks(unit(vectors[name]), unit(vectors[others]), np.arange(n), np.arange(n))
            results |= {f"{name}/{k}": v for k, v in summary(found).items() if k in ("R@1", "R@5")}
    for size in range(1, len(modalities)):
        for metric in ("top1", "drop", "R@1", "R@5"):
            values = [results[f"{'+'.join(s)}/{metric}"] for s in subsets(modalities) if len(s) == size]
            results[f"{size}_left/{metric}"] = float(np.mean(values))
    majority = float((probe.labels[:n] == np.bincount(probe.fit_labels).argmax()).mean())
    return results | {"n": n, "n_fit": len(fit_labels), "classes": probe.classes, "majority": majority}


def _complete(
    predictor: Predictor, data: Mapping[str, Any], modalities: tuple[str, ...], label: str, limit: int
) -> tuple[dict[str, np.ndarray], list[labelled.Label]]:
    """Of the complete examples of a source that have a label: each subset's vectors [n, D], and the labels."""
    source = sources.make(data, "evals data")
    found, kept = predictor.together(source, modalities, _fused(modalities), (label,), limit)
    names = sources.class_names(source, label)
    labels = [labelled.class_of(value, names, label) for value in kept[label]]
    there = np.all([*found["present"].values(), [value is not None for value in labels]], 0)
    if not there.any():
        raise ValueError(f"No record has all of {', '.join(modalities)} and a label {label!r}.")
    vectors = {name: z[there] for name, z in found["vectors"].items()}
    check_finite(*vectors.values())
    return vectors, [value for value, has in zip(labels, there, strict=True) if has]
