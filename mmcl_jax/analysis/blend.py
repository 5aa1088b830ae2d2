"""Gradient blending: how much each modality's loss should weigh (Wang et al. 2020, arXiv 1905.12681).

Between two checkpoints a loss overfits by dO = (V' - T') - (V - T) and generalises by dG = V - V', with T and V the
losses on training and on held-out examples. The weight of the k-th is proportional to dG_k / dO_k^2; they sum to 1.
They are the optimal ones for unbiased and uncorrelated gradients. Checked against an independent computation; the
official code was not at hand.

A run gets the losses by the evaluator `losses`, with `eval_every` for two points in time:

    --config.evals.held="{'name': 'losses', 'data': {'split': 'validation'}}"
    --config.evals.seen="{'name': 'losses', 'data': {'split': 'train'}}"

`weights_of_run` reads them; `config.method.weights` of GMC, ImageBind and the pairwise losses takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmcl_jax.log import read_metrics
from mmcl_jax.named import ConfigError

LEAST = 1e-6  # of dO: a loss that does not overfit at all would get all of the weight


def weights(train: Sequence[Sequence[float]], held_out: Sequence[Sequence[float]]) -> np.ndarray:
    """The weights of K losses.

    Args:
        train: losses on training examples, [2, K]: at the first and at the second checkpoint.
        held_out: the same on held-out examples.

    Returns:
        [K], 0 for those that don't generalise, and of sum 1; all equal if none does.

    Example:
        >>> weights([[2.0, 2.0], [1.0, 1.0]], [[2.0, 2.0], [1.5, 1.5]]).tolist()
        [0.5, 0.5]
    """
    (t0, t1), (v0, v1) = np.asarray(train, float), np.asarray(held_out, float)
    overfit, generalise = (v1 - t1) - (v0 - t0), v0 - v1
    found = np.where(generalise > 0, generalise / np.maximum(np.abs(overfit), LEAST) ** 2, 0)
    return found / found.sum() if found.any() else np.full(len(found), 1 / len(found))


def weights_of_run(
    run: str | Path, losses: Sequence[str], first: int, second: int, train: str = "seen", held_out: str = "held"
) -> dict[str, float]:
    """The weights of a run's losses, from its metrics.jsonl.

    Args:
        run: its workdir.
        losses: names of the losses, those of the modalities.
        first: step of the first evaluation.
        second: step of the second.
        train: name in `config.evals` of the evaluator `losses` on training examples.
        held_out: the same on held-out ones.

    Returns:
        loss -> weight.

    Raises:
        ConfigError: if the run was not evaluated so at these steps.
    """
    rows: dict[int, dict[str, float]] = {}
    for row in read_metrics(Path(run) / "metrics.jsonl"):
        if "loss" not in row:  # a row for each evaluation
            rows.setdefault(row["step"], {}).update(row)
    found = []
    for name in (train, held_out):
        for step in (first, second):
            row = rows.get(step, {})
            absent = [loss for loss in losses if f"{name}/{loss}" not in row]
            if absent:
                raise ConfigError(
                    f"{run}: at step {step} there is no {name}/{absent[0]}; evaluated are the steps "
                    f"{sorted(rows)}, with {', '.join(sorted(k for k in row if k != 'step')) or 'nothing'}."
                )
            found.append([row[f"{name}/{loss}"] for loss in losses])
    return dict(zip(losses, weights(found[:2], found[2:]).tolist(), strict=True))
