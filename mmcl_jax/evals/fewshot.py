"""Few-shot classification: ridge regression in closed form on a few examples of each class.

The linear few-shot evaluation of big_vision (`evaluators/fewshot_lsr.py`, at 1475d53): targets -1 and 1, features
standardised by the chosen examples' mean and deviation, a constant feature of 100 as a bias that is hardly
regularised, l2 = 1024. The examples of fewer shots are among those of more.

Deviations: draws are averaged, big_vision reports each; solved in float64 by scikit-learn; ties count against the
model; classes without any example are never found (there they have a constant score of -1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.evals import labelled
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor

BIAS = 100.0


def ridge_scores(x: np.ndarray, labels: np.ndarray, tested: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """Scores of linear regression onto -1 (another class) and 1 (this class).

    Args:
        x: [N, D], the examples.
        labels: [N] int.
        tested: [M, D].
        classes: C.
        l2: weight of the squared weights, against a sum over examples.

    Returns:
        [M, C] float64.
    """
    from sklearn.linear_model import Ridge

    x, tested = x.astype(np.float64), tested.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0) + 1e-5

    def prepare(rows):
        return np.pad((rows - mean) / deviation, ((0, 0), (0, 1)), constant_values=BIAS)

    targets = 2 * np.eye(classes)[labels] - 1
    model = Ridge(alpha=l2, fit_intercept=False, solver="cholesky").fit(prepare(x), targets)
    return model.predict(prepare(tested)).reshape(len(tested), classes)


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` random examples of each class of labels [N]; all that a class has, where these are fewer."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in np.unique(labels)])


def check(
    predictor: Predictor,
    where: str,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 3,
    l2: float = 2.0**10,
    **source: Any,
) -> list[Any]:
    """Refuses fields and streams that are not there, and shots that can't be drawn; see `evals.check`."""
    if not shots or min(*shots, draws) < 1 or l2 <= 0:
        raise ConfigError(
            f"{where}: shots={tuple(shots)}, draws={draws} and l2={l2} must be positive; shots=(1, 5, 10) say."
        )
    return labelled.check(predictor, where, **source)


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    label: str | Sequence[str] = "label",
    stream: str = "image",
    features: str = "pooled",
    limit: int = 0,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 3,
    l2: float = 2.0**10,
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`: it is tested.
        fit: a source: examples are drawn from it.
        label: field of the class, or several.
        stream: see `labelled.embed`.
        features: likewise.
        limit: only so many records of each source; 0 = all.
        shots: examples per class.
        draws: how often they are drawn; metrics are means over draws.
        l2: of the regression.

    Returns:
        For each label and number of shots "5shot/top1", ".../top5", ".../mean_per_class" and, where some classes have
        fewer examples than that, their number ".../short"; and the counts of `labelled.Probe`.
    """
    examples, tested = (labelled.embed(predictor, d, label, stream, features, limit) for d in (fit, data))

    def measure(probe: labelled.Probe) -> dict[str, float]:
        results: dict[str, float] = {}
        for number in shots:
            found = []
            for seed in range(draws):
                rows = draw(probe.fit_labels, number, seed)
                x, labels = probe.fit_features[rows], probe.fit_labels[rows]
                found.append(probe.metrics(ridge_scores(x, labels, probe.features, probe.classes, l2)))
            short = int((np.bincount(probe.fit_labels) < number).sum())
            means = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
            results |= {f"{number}shot/{k}": v for k, v in (means | ({"short": short} if short else {})).items()}
        return results

    return labelled.of_each_label(examples, tested, measure)
