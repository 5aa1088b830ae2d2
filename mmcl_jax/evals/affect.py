"""Numbers predicted from each subset of modalities, as sentiment of MOSEI and MOSI: error, correlation, sign.

By the head that the method has trained for it (GMC's `method.target`), on `Method.fuse` of a subset.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.data.record import look_up
from mmcl_jax.evals.embeddings import check_finite, check_streams, first_records
from mmcl_jax.evals.missing import check_modalities, subsets
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor


def affect_metrics(said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Metrics of MOSEI and MOSI as GMC's official code has them (bc4eada), and as they are meant.

    Args:
        said: [N] predictions.
        truth: [N].

    Returns:
        "MAE"; "corr", Pearson's, 0 where either is constant; "acc2" and "F1" (weighted over both) of whether the
        number is positive, of all examples, and without those whose truth is 0, "acc2_nonzero" and "F1_nonzero".
        "F1_official" and "F1_nonzero_official" are F1 with truth and prediction exchanged, as published.
    """
    from sklearn.metrics import f1_score

    check_finite(said)
    varied = said.std() > 0 and truth.std() > 0
    found = {"MAE": np.abs(said - truth).mean(), "corr": np.corrcoef(said, truth)[0, 1] if varied else 0.0}
    for name, rows in (("", np.ones(len(truth), bool)), ("_nonzero", truth != 0)):
        if rows.any():
            a, b = said[rows] > 0, truth[rows] > 0
            found[f"acc2{name}"] = (a == b).mean()
            found[f"F1{name}"] = f1_score(b, a, average="weighted")
            found[f"F1{name}_official"] = f1_score(a, b, average="weighted")
    return {k: float(v) for k, v in found.items()}


@functools.cache
def _said(modalities: tuple[str, ...]) -> Callable:
    """The function of a model that predicts from each subset, and tells which modalities an example has."""

    def said(method, params, extra, batch, ctx):
        fused = {"+".join(s): method.fuse(params, extra, {m: batch[m] for m in s}, ctx)[0] for s in subsets(modalities)}
        numbers = {name: method.predict(params, z) for name, z in fused.items()}
        return {"said": numbers, "present": {m: batch[m].is_present() for m in modalities}}

    return said


def check(
    predictor: Predictor, where: str, data: Mapping[str, Any], modalities: Sequence[str], target: str, limit: int = 0
) -> list[Any]:
    """Refuses methods that predict no numbers, and streams and fields that are not there; see `evals.check`."""
    if not getattr(predictor.method, "target", "") or not hasattr(predictor.method, "predict"):
        raise ConfigError(f"{where}: the method predicts no numbers; GMC with method.target does.")
    check_streams(predictor.streams, modalities, where)
    check_modalities(predictor, modalities, where)
    source = sources.make(data, f"{where}.data")
    records = first_records(predictor.streams, source)
    if all(look_up(r, target) is None for r in records):
        raise ConfigError(f"{where}.target: the first {len(records)} records have no field {target!r}.")
    return [source]


def run(
    predictor: Predictor, data: Mapping[str, Any], modalities: Sequence[str], target: str, limit: int = 0
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`, whose complete examples are tested.
        modalities: streams.
        target: field of the number.
        limit: only so many records; 0 = all.

    Returns:
        For each subset of the modalities the metrics of `affect_metrics`, "text+audio/MAE" say, and "n".

    Raises:
        ValueError: if no example is complete, or a target is not a single number.
    """
    modalities, source = tuple(modalities), sources.make(data, "evals data")
    found, kept = predictor.together(source, modalities, _said(modalities), (target,), limit)
    values = [np.full(1, np.nan) if v is None else np.asarray(v, float).reshape(-1) for v in kept[target]]
    several = next((v for v in values if len(v) != 1), None)
    if several is not None:
        raise ValueError(f"Field {target!r} has {len(several)} numbers in a record; affect measures one.")
    truth = np.concatenate(values)
    there = np.all([*found["present"].values(), np.isfinite(truth)], 0)
    if not there.any():
        raise ValueError(f"No record has all of {', '.join(modalities)} and a number {target!r}.")
    results: dict[str, float] = {"n": int(there.sum())}
    for name, said in found["said"].items():
        results |= {f"{name}/{k}": v for k, v in affect_metrics(said[there, 0], truth[there]).items()}
    return results
