"""Nearest neighbours among the features of a labelled source (Wu et al. 2018, arXiv 1805.01978), and their spread."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_jax.evals import labelled
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor

# Of the Frobenius norm: what float32 features can't tell from zero. Rounding alone would have a high rank.
NOISE = 1e-6


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of x [N, D] at length 1; rows of zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="k")
def _nearest(queries: jax.Array, bank: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jnp.dot(queries, bank.T, precision="highest"), k)


def votes(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 256,
) -> np.ndarray:
    """Votes of each query's k nearest neighbours, exp(cosine / temperature) each, summed by class.

    They are relative to the vote of the nearest one, which changes no comparison and can't overflow.

    Args:
        bank: [N, D]; lengths don't matter.
        bank_labels: [N] int.
        queries: [M, D].
        classes: C.
        k: neighbours; all of the bank if it has fewer.
        temperature: the smaller, the more the nearest ones count.
        chunk: queries at a time; memory is O(chunk x N).

    Returns:
        [M, C] float64.
    """
    bank, queries = jnp.asarray(unit(bank)), unit(queries)
    found = np.zeros((len(queries), classes))
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        filled = np.pad(part, ((0, chunk - len(part)), (0, 0)))  # one compiled shape
        cosines, rows = (np.asarray(v)[: len(part)] for v in _nearest(filled, bank, min(k, len(bank))))
        weights = np.exp((cosines.astype(np.float64) - cosines[:, :1]) / temperature)
        cells = np.arange(len(part))[:, None] * classes + bank_labels[rows]
        summed = np.bincount(cells.reshape(-1), weights.reshape(-1), len(part) * classes)
        found[start : start + chunk] = summed.reshape(len(part), classes)
    return found


def spread(features: np.ndarray) -> dict[str, float]:
    """How much of their space features use: collapse shows here even where accuracy hides it.

    Args:
        features: [N, D].

    Returns:
        "std": sqrt(D) times the mean over dimensions of the deviation of the unit vectors: 1 where they are spread
        evenly over the sphere, 0 where they are all the same (Chen & He 2021, arXiv 2011.10566).
        "effective_rank": exp of the entropy of the singular values of the centred features, scaled to sum 1 (Roy &
        Vetterli 2007): from 1, a line, to D; 0 where there is nothing but rounding.
    """
    x = features.astype(np.float64)
    std = np.sqrt(x.shape[1]) * unit(x).std(0).mean()
    centred = x - x.mean(0)
    gram = centred.T @ centred if len(x) > x.shape[1] else centred @ centred.T
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    singular = singular[singular > NOISE * np.linalg.norm(x)]
    p = singular / singular.sum()
    return {"std": float(std), "effective_rank": float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0}


def check(predictor: Predictor, where: str, k: int = 20, temperature: float = 0.07, **source: Any) -> list[Any]:
    """Refuses fields and streams that are not there and votes that can't be counted; see `evals.check`."""
    if k < 1 or temperature <= 0:
        raise ConfigError(f"{where}: k={k} and temperature={temperature} must be positive; k=20, temperature=0.07 say.")
    return labelled.check(predictor, where, **source)


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    label: str | Sequence[str] = "label",
    stream: str = "image",
    features: str = "pooled",
    limit: int = 0,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`: it is tested.
        fit: a source: the neighbours.
        label: field of the class, or several.
        stream: see `labelled.embed`.
        features: likewise.
        limit: only so many records of each source; 0 = all.
        k: neighbours that vote; the paper has 200 on ImageNet.
        temperature: of their votes, exp(cosine / temperature).

    Returns:
        For each label "top1", "top5" and "mean_per_class" and the counts of `labelled.Probe`; "std" and
        "effective_rank" of the tested features, see `spread`.
    """
    bank, tested = (labelled.embed(predictor, d, label, stream, features, limit) for d in (fit, data))

    def measure(probe: labelled.Probe) -> dict[str, float]:
        scores = votes(probe.fit_features, probe.fit_labels, probe.features, probe.classes, k, temperature)
        return probe.metrics(scores)

    return labelled.of_each_label(bank, tested, measure) | spread(tested.features)
