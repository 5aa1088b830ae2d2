"""Evaluators: a file each with `run(predictor, ...) -> {metric: number}`; `config.evals` names them.

numpy in, numbers out. Keys of `config.evals.<name>` are the file's `name` and the arguments of its `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl_jax import named
from mmcl_jax.predict import Predictor


def with_source(data: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluator's data: where it names no source, the training source with what it says changed (its split)."""
    return dict(data) if "source" in data else {**train, **data}


def run(
    predictor: Predictor, name: str, config: Mapping[str, Any], train: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Runs one evaluator of `config.evals`.

    Args:
        predictor: the model.
        name: the evaluator's name in the config, for messages.
        config: its file's `name`, and the arguments of its `run`.
        train: `config.data.train`, for data that names no source.

    Raises:
        ConfigError: if there is no such evaluator, or an argument that it does not have.
    """
    arguments = {k: v for k, v in config.items() if k != "name"}
    if "data" in arguments:
        arguments["data"] = with_source(arguments["data"], train or {})
    return named.call(__name__, config["name"], arguments, f"evals.{name}", predictor, function="run")
