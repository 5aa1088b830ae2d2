"""Zero-shot classification: the class whose text is nearest to the image (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.evals.embeddings import check_finite, check_streams
from mmcl_jax.items import take
from mmcl_jax.predict import Predictor


def classification_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1, top-5 and mean per-class accuracy; ties count against the model.

    Args:
        scores: [N, C].
        labels: [N] int.

    Returns:
        "top1", "top5" (where there are more than five classes), "mean_per_class" over classes that occur.
    """
    check_finite(scores)
    own = scores[np.arange(len(labels)), labels]
    rank = (scores >= own[:, None]).sum(1)  # the own class counts itself: 1 is best
    per_class = [(rank[labels == c] == 1).mean() for c in np.unique(labels)]
    metrics = {"top1": float((rank == 1).mean()), "mean_per_class": float(np.mean(per_class))}
    return metrics | ({"top5": float((rank <= 5).mean())} if scores.shape[1] > 5 else {})


def check(
    predictor: Predictor,
    where: str,
    data: Mapping[str, Any],
    label: str = "label",
    classes: Sequence[str] = (),
    templates: Sequence[str] = ("{}",),
    limit: int = 0,
    stream: str = "image",
) -> list[Any]:
    """Refuses classes without names and templates without a place for them; see `evals.check`."""
    check_streams(predictor.streams, (stream, "text"), where)
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"templates: {template!r} has no place for the class; write '{{}}' where it belongs.")
    source = sources.make(data, f"{where}.data")
    _classes(source, label, classes)
    return [source]


def _classes(source: Any, label: str, classes: Sequence[str]) -> list[str]:
    known = list(classes) or sources.class_names(source, label)
    if not known:
        raise ValueError(f"The source does not know the names of the classes of {label!r}; give classes=(...).")
    return known


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    label: str = "label",
    classes: Sequence[str] = (),
    templates: Sequence[str] = ("{}",),
    limit: int = 0,
    stream: str = "image",
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`.
        label: field of the class: its number, or its name; records without one are left out.
        classes: names of the classes; default: those that the source knows of the field.
        templates: prompts with a place for the class, "a photo of a {}."; see `Predictor.class_scores`.
        limit: only so many records; 0 = all.
        stream: what is classified: images, or sounds that never met a text (Girdhar et al. 2023, ImageBind).

    Returns:
        The metrics of `classification_metrics`, "n" and "classes".

    Raises:
        ValueError: if the names of the classes are not known, or a label is not one of them.
    """
    source = sources.make(data, "evals data")
    known = _classes(source, label, classes)
    found = predictor.embed_source(source, (stream,), (label,), limit, of="items")
    labelled = np.array([found.kept[label][i] is not None for i in found.owners[stream]])
    if not labelled.any():
        raise ValueError(f"No record has a label: the field {label!r} is missing from all of them.")
    labels = [found.kept[label][i] for i in found.owners[stream][labelled]]
    strange = [v for v in labels if (v not in known if isinstance(v, str) else not 0 <= v < len(known))]
    if strange:
        raise ValueError(f"Label {strange[0]!r} is not one of the {len(known)} classes: {', '.join(known[:10])} ...")
    numbers = np.array([known.index(v) if isinstance(v, str) else int(v) for v in labels])
    # "food-drink" and "food_drink" are names of folders; the text tower has seen words
    prompts = [name.replace("-", " ").replace("_", " ") for name in known]
    scores = predictor.class_scores(take(found.vectors[stream], labelled), prompts, templates)
    counts = {"n": len(labels), "classes": len(known)} | ({"unreadable": found.unreadable} if found.unreadable else {})
    return classification_metrics(scores, numbers) | counts
