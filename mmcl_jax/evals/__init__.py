"""Evaluators: a file each with `run(predictor, ...) -> {metric: number}`; `config.evals` names them.

numpy in, numbers out. Keys of `config.evals.<name>` are the file's `name` and the arguments of its `run`. A file may
have a second function, `check(predictor, where, ...)` with the same arguments: it refuses before training what `run`
would refuse after it, and returns the sources that it opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmcl_jax import named
from mmcl_jax.predict import Predictor

SOURCES = ("data", "fit")  # arguments that are sources: what is tested, what a probe is fitted on


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
    found = arguments(config, train)
    return named.call(__name__, config["name"], found, f"evals.{name}", predictor, function="run")


def check(predictor: Predictor, config: Mapping[str, Any], train: Mapping[str, Any] | None = None) -> None:
    """Refuses in seconds what the evaluators would refuse when they first run; opens their sources.

    Args:
        predictor: its streams are those of the evaluation; it keeps the sources.
        config: `config.evals`.
        train: as for `run`.

    Raises:
        ConfigError: if there is no such evaluator or argument, or an argument can't be as it is.
        FileNotFoundError: if some data is not there.
    """
    for name, part in config.items():
        where = f"evals.{name}"
        if not part.get("name"):
            raise named.ConfigError(f"{where}.name is missing; it names the evaluator, 'retrieval' say.")
        predictor.sources += check_arguments(predictor, where, part["name"], arguments(part, train))


def check_arguments(predictor: Predictor, where: str, name: str, given: Mapping[str, Any]) -> list[Any]:
    """As `check`, of one evaluator with its arguments complete; returns the sources."""
    target = named.find(__name__, name, given, where, given=1, function="run")
    refuse = getattr(importlib.import_module(target.__module__), "check", None)
    return named.checked(where, lambda: refuse(predictor, where, **given)) if refuse else []


def arguments(config: Mapping[str, Any], train: Mapping[str, Any] | None) -> dict[str, Any]:
    """An evaluator's arguments, from its part of `config.evals`; its sources complete, see `with_source`."""
    return {k: with_source(v, train or {}) if k in SOURCES else v for k, v in config.items() if k != "name"}
