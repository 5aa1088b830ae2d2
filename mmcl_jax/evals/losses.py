"""The method's own losses on a source: on examples that are held out, or, to compare, on those of the training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from mmcl_jax.data import sources
from mmcl_jax.data.pipeline import Streams
from mmcl_jax.evals.embeddings import check_streams
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor


@functools.cache
def _losses(names: tuple[str, ...]) -> Callable:
    """The function of a model that gives each row of a batch the losses of that batch."""

    def losses(method, params, extra, batch, ctx):
        rows = batch[names[0]].rows
        total, (_, metrics) = method.loss(params, extra, {name: batch[name] for name in names}, ctx)
        return {k: jnp.full(rows, v, jnp.float32) for k, v in {"loss": total, **metrics}.items()}

    return losses


def check(streams: Streams, where: str, data: Mapping[str, Any], limit: int = 0) -> list[Any]:
    """Opens the source; see `evals.check`."""
    return [sources.make(data, f"{where}.data")]


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
        ConfigError: if the evaluation's streams are not those that the loss needs, or there is no whole batch.
    """
    names = tuple(predictor.method.streams)
    check_streams(predictor.streams, names, "the losses' streams, data.eval_streams")
    source = sources.make(data, "evals data")
    n = (min(len(source), limit) if limit else len(source)) // predictor.batch * predictor.batch
    if not n:
        raise ConfigError(f"losses: {len(source)} records don't fill a batch of {predictor.batch}.")
    found, _ = predictor.together(source, names, _losses(names), limit=n)
    return {k: float(v.mean()) for k, v in found.items()} | {"n": n}
