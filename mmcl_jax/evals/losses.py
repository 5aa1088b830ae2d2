"""The method's own losses on a source: on examples that are held out, or, to compare, on those of the training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from mmcl_jax.data import sources
from mmcl_jax.evals.embeddings import check_streams
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor
from mmcl_jax.types import first_clips


@functools.cache
def _losses(names: tuple[str, ...]) -> Callable:
    """The function of a model that gives each row of a batch the losses of that batch."""

    def losses(method, params, extra, batch, ctx):
        rows = batch[names[0]].rows
        batch = first_clips({name: batch[name] for name in names})  # as in training, which takes one
        total, (_, metrics) = method.loss(params, extra, batch, ctx)
        return {k: jnp.full(rows, v, jnp.float32) for k, v in {"loss": total, **metrics}.items()}

    return losses


def check(predictor: Predictor, where: str, data: Mapping[str, Any], limit: int = 0) -> list[Any]:
    """Refuses evaluation streams that lack one that the loss needs, and too few records; see `evals.check`."""
    check_streams(predictor.streams, predictor.method.streams, f"{where}: the loss needs it in data.eval_streams")
    source = sources.make(data, f"{where}.data")
    if not _rows(source, predictor.batch, limit):
        raise ConfigError(f"{where}: {len(source)} records, limit={limit}, don't fill a batch of {predictor.batch}.")
    return [source]


def _rows(source: Any, batch: int, limit: int) -> int:
    return (min(len(source), limit) if limit else len(source)) // batch * batch


def run(predictor: Predictor, data: Mapping[str, Any], limit: int = 0) -> dict[str, float]:
    """The evaluator: losses as in training, but for augmentation, dropout and batch statistics.

    Contrastive losses grow with the batch: here it has min(config.batch, 256) examples. What does not fill a batch is
    left out.

    Args:
        predictor: the model.
        data: a source, as in `data.train`.
        limit: only so many records; 0 = all.

    Returns:
        "loss" and whatever the method's loss tells of its parts, and "n".

    Raises:
        ConfigError: as `check`.
    """
    (source,) = check(predictor, "losses", data, limit)
    names, n = tuple(predictor.method.streams), _rows(source, predictor.batch, limit)
    found, _ = predictor.together(source, names, _losses(names), limit=n)
    return {k: float(v.mean()) for k, v in found.items()} | {"n": n}
