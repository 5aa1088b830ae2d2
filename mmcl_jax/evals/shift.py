"""Distribution shift: the same evaluation over several data sets, styles never trained on, say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl_jax import evals, named
from mmcl_jax.predict import Predictor


def check(
    predictor: Predictor, where: str, over: Mapping[str, Any], of: str = "retrieval", **arguments: Any
) -> list[Any]:
    """Refuses what the evaluation would refuse on any of the sources; see `evals.check`."""
    opened = []
    for name, data in over.items():
        opened += evals.check_arguments(predictor, f"{where}.over.{name}", of, arguments | {"data": data})
    return opened


def run(predictor: Predictor, over: Mapping[str, Any], of: str = "retrieval", **arguments: Any) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        over: name -> source; the evaluation runs once on each.
        of: the evaluator.
        **arguments: its other arguments.

    Returns:
        Its metrics, as "<name>/<metric>".
    """
    results = {}
    for name, data in over.items():
        part = arguments | {"data": data}
        metrics = named.call("mmcl_jax.evals", of, part, f"evals.over.{name}", predictor, function="run")
        results |= {f"{name}/{k}": v for k, v in metrics.items()}
    return results
