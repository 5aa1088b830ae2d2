"""Evaluators: a file each with `run(predictor, ...) -> {metric: number}`; `config.evals` names them.

numpy in, numbers out. Keys of `config.evals.<name>` are the file's `name` and the arguments of its `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl_jax import named
from mmcl_jax.predict import Predictor


def run(predictor: Predictor, name: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Runs one evaluator of `config.evals`.

    Raises:
        ConfigError: if there is no such evaluator, or an argument that it does not have.
    """
    arguments = {k: v for k, v in config.items() if k != "name"}
    return named.call(__name__, config["name"], arguments, f"evals.{name}", predictor, function="run")
