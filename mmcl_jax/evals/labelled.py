"""Labelled features: what the probes of a frozen encoder (knn, linear, fewshot) are fitted on and tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.data.pipeline import Streams
from mmcl_jax.data.record import look_up
from mmcl_jax.evals.embeddings import check_choice, check_finite, check_streams, first_records
from mmcl_jax.evals.zeroshot import classification_metrics
from mmcl_jax.named import ConfigError, did_you_mean
from mmcl_jax.predict import Predictor

FEATURES = ("pooled", "embedding")
Label = str | int  # a class by its name, or by its number where the source knows no names


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The features of a source, and the labels of each row.

    Attributes:
        features: [M, D] float32.
        labels: field -> M labels, None where there is none.
        owners: [M] int, the record that each row belongs to.
        size: number of records, those without a row included.
        unreadable: records that could not be read.
    """

    features: np.ndarray
    labels: dict[str, list[Label | None]]
    owners: np.ndarray
    size: int
    unreadable: int

    def of(self, field: str) -> tuple[np.ndarray, list[Label], int]:
        """Features [N, D] and labels of the rows that have one, and how many records are left out.

        Raises:
            ValueError: if none has one.
        """
        has = np.array([label is not None for label in self.labels[field]])
        if not has.any():
            raise ValueError(f"No record has a label: the field {field!r} is missing from all of them.")
        left_out = self.size - len(np.unique(self.owners[has]))
        return self.features[has], [label for label in self.labels[field] if label is not None], left_out


@dataclasses.dataclass(frozen=True)
class Probe:
    """One label's task.

    Attributes:
        fit_features: [N, D] float32.
        fit_labels: [N] int, 0 .. classes - 1, each of which occurs.
        features: [M, D] float32, the tested ones.
        labels: [M] int; numbers from `classes` on are those of classes that were not fitted on.
        classes: number of classes that are fitted on.
        counts: "n" and "n_fit" rows, "classes"; and where there are some, "left_out" and "left_out_fit" records (no
            label, or nothing in the stream) and "unknown_class", the tested rows of a class that was not fitted on.
    """

    fit_features: np.ndarray
    fit_labels: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    classes: int
    counts: dict[str, int]

    def metrics(self, scores: np.ndarray) -> dict[str, float]:
        """`classification_metrics` of scores [M, classes]; a row of a class that was not fitted on is a miss."""
        unknown = max(0, int(self.labels.max()) + 1 - self.classes)
        below = np.repeat(scores.min(1, keepdims=True) - 1, unknown, 1)
        return classification_metrics(np.concatenate([scores, below], 1), self.labels)


def fields(label: str | Sequence[str]) -> tuple[str, ...]:
    """The label fields of an evaluator's argument `label`: one, or several."""
    return (label,) if isinstance(label, str) else tuple(label)


def check(
    predictor: Predictor,
    where: str,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    label: str | Sequence[str] = "label",
    stream: str = "image",
    features: str = "pooled",
    limit: int = 0,
) -> list[Any]:
    """Refuses what `embed` of both sources would refuse; see `evals.check`."""
    check_streams(predictor.streams, (stream,), where)
    check_choice(where, "features", features, FEATURES)
    if dict(data) == dict(fit):
        raise ConfigError(
            f"{where}: fit is the same as data, {dict(fit)}: each record would be found by itself. Fit on another "
            "split, fit=dict(split='train') say."
        )
    if not fields(label):
        raise ConfigError(f"{where}.label is empty; name a field, or several.")
    opened = []
    for key, part in (("data", data), ("fit", fit)):
        source = sources.make(part, f"{where}.{key}")
        for field in fields(label):
            _check_field(predictor.streams, source, field, f"{where}.{key}")
        opened.append(source)
    return opened


def _check_field(streams: Streams, source: Any, field: str, where: str) -> None:
    names = sources.class_names(source, field)
    if names is not None:
        return
    records = first_records(streams, source)
    if all(class_of(look_up(r, field), None, field) is None for r in records):
        possible = sorted({key for r in records for key in r})
        raise ConfigError(
            f"{where}: the first {len(records)} records have no label {field!r}{did_you_mean(field, possible)}"
        )


def class_of(value: Any, names: Sequence[str] | None, field: str) -> Label | None:
    """The class that a field's value means; None for nothing, "" and (TFDS's "not labelled") negative numbers."""
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, int | np.integer | np.bool_):
        raise ValueError(f"Field {field!r} has the value {value!r:.80}; a label is a whole number or a name.")
    number = int(value)
    if number < 0 or names is None:
        return number if number >= 0 else None
    if number >= len(names):
        raise ValueError(f"Field {field!r} has the label {number}, but only {len(names)} classes.")
    return names[number]


def embed(
    predictor: Predictor,
    data: Mapping[str, Any],
    label: str | Sequence[str] = "label",
    stream: str = "image",
    features: str = "pooled",
    limit: int = 0,
) -> Labelled:
    """The features of a source, computed once for all label fields.

    Args:
        predictor: the model.
        data: a source, as in `data.train`.
        label: field of the class, or several: numbers (a ClassLabel of TFDS; names through the source) or names.
        stream: that is embedded.
        features: "pooled", the encoder's feature before any projection, or "embedding", unit vectors of the shared
            space.
        limit: only so many records; 0 = all.

    Raises:
        ValueError: if a label is neither a number nor a name, or a feature is not finite.
    """
    source = sources.make(data, "evals data")
    of = "pooled" if features == "pooled" else "embed"
    found = predictor.embed_source(source, (stream,), fields(label), limit, of)
    check_finite(found.vectors[stream])
    labels = {}
    for field in fields(label):
        names = sources.class_names(source, field)
        labels[field] = [class_of(found.kept[field][i], names, field) for i in found.owners[stream]]
    return Labelled(found.vectors[stream], labels, found.owners[stream], found.size, found.unreadable)


def pair(fit: Labelled, tested: Labelled, field: str) -> Probe:
    """The task of one label: classes are known by their names, so the two sources may number them differently.

    Raises:
        ValueError: if no record has a label, or the sources share no class.
    """
    fit_features, fit_labels, left_out_fit = fit.of(field)
    features, labels, left_out = tested.of(field)
    known = sorted(set(fit_labels), key=str)
    if not set(known) & set(labels):
        raise ValueError(
            f"{field!r}: no tested record is of a class that is fitted on; tested is {labels[0]!r}, fitted on are "
            f"{', '.join(map(repr, known[:10]))}."
        )
    number = {name: i for i, name in enumerate([*known, *sorted(set(labels) - set(known), key=str)])}
    numbers = np.array([number[name] for name in labels])
    counts = {"n": len(labels), "n_fit": len(fit_labels), "classes": len(known)}
    rare = {"left_out": left_out, "left_out_fit": left_out_fit, "unknown_class": int((numbers >= len(known)).sum())}
    return Probe(
        fit_features,
        np.array([number[name] for name in fit_labels]),
        features,
        numbers,
        len(known),
        counts | {k: v for k, v in rare.items() if v},
    )


def of_each_label(fit: Labelled, tested: Labelled, measure: Callable[[Probe], dict[str, float]]) -> dict[str, float]:
    """The metrics of each label's task and its counts; under the field's name where there are several."""
    results: dict[str, float] = {}
    for field in tested.labels:
        probe = pair(fit, tested, field)
        prefix = f"{field}/" if len(tested.labels) > 1 else ""
        results |= {f"{prefix}{k}": v for k, v in (measure(probe) | probe.counts).items()}
    return results | ({"unreadable": tested.unreadable} if tested.unreadable else {})
