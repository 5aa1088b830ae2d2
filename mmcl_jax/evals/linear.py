"""Linear probes: a classifier on frozen features.

protocol="lbfgs" is CLIP's (Radford et al. 2021, appendix A.3): multinomial logistic regression by L-BFGS, its
regularisation chosen on held-out records of `fit`, then fitted once more on all of `fit`. Deviations: a held-out part
of our own where the paper takes each set's validation split; nine values of C instead of a search over 96; and from
all features the mean is taken, and all are divided by one number, their root mean square. CLIP takes them as they
are; the classifiers that can be found are the same (the bias is free, and a factor is one of C), but C means the same
for features of any size, unit vectors say. Dimensions keep their sizes relative to each other: they are not
standardised.

protocol="sgd" is SimCLR's (Chen et al. 2020, appendix B.6): SGD with Nesterov momentum 0.9, no weight decay,
lr x batch / 256, cosine; or MoCo's (He et al. 2020, section 4.1): lr=30, schedule="steps", epochs=100. For sets too
large for L-BFGS. Deviations: the features are those of the evaluation's crop, made once, where the papers train on
random crops and flips of the images; MoCo's momentum is not Nesterov's; weights start at zero (the problem is
convex). Features are taken as they are, so the learning rate that is right depends on their size.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmcl_jax import log
from mmcl_jax.evals import labelled
from mmcl_jax.evals.embeddings import check_choice
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor

CS = tuple(float(c) for c in 10.0 ** np.linspace(-4, 4, 9))
HELD_OUT = 0.2  # of each class, to choose C on
ITERATIONS = 1000  # of L-BFGS, CLIP's


def hold_out(labels: np.ndarray, share: float = HELD_OUT, seed: int = 0) -> np.ndarray:
    """Which rows of labels [N] are held out, [N] bool: a share of each class, at least one, but never its only one."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        held_out[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return held_out


def lbfgs(x: np.ndarray, labels: np.ndarray, tested: np.ndarray, cs: Sequence[float] = CS) -> tuple[np.ndarray, float]:
    """Logistic regression with the C that is best on held-out rows; of equally good ones the smallest.

    Args:
        x: [N, D].
        labels: [N] int, two classes or more, each number up to the largest.
        tested: [M, D].
        cs: candidates of C, the inverse of the weight of the squared weights, against a sum over rows.

    Returns:
        Scores [M, C] float64, and C.

    Raises:
        ValueError: if C can't be chosen, since no class has a second row.
    """
    x, tested = x.astype(np.float64), tested.astype(np.float64)
    mean = x.mean(0)
    size = max(float(np.sqrt(np.square(x - mean).mean())), 1e-30)
    x, tested = (x - mean) / size, (tested - mean) / size
    cs = sorted(cs)
    best = cs[0]
    if len(cs) > 1:
        held_out = hold_out(labels)
        if not held_out.any():
            raise ValueError("no class has records to choose C on: give one C, cs=(1.0,), or more records to fit on.")
        # From strong to weak regularisation, each starting where the one before has ended.
        found = _fit(x[~held_out], labels[~held_out], x[held_out], cs)
        # A class with one record is never held out, so the columns are those of all classes.
        accuracy = [float((s.argmax(1) == labels[held_out]).mean()) for s in found]
        best = cs[int(np.argmax(accuracy))]
        if best in (cs[0], cs[-1]) and min(accuracy) < max(accuracy):
            log.warn(f"linear probe: the best C={best:g} lies on the edge of the sweep, {cs[0]:g} to {cs[-1]:g}")
    return _fit(x, labels, tested, [best])[0], best


def _fit(x: np.ndarray, labels: np.ndarray, tested: np.ndarray, cs: Sequence[float]) -> list[np.ndarray]:
    """Scores [M, classes] of `tested` for each C."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    scores = []
    for c in cs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told below, with what to do
            model.set_params(C=c).fit(x, labels)
        if model.n_iter_.max() >= ITERATIONS:
            log.warn(f"linear probe: C={c:g} is not fitted to the end after {ITERATIONS} iterations")
        found = model.decision_function(tested)
        scores.append(found if found.ndim == 2 else np.stack([-found, found], 1))
    return scores


@functools.partial(jax.jit, static_argnames=("classes", "batch", "epochs", "schedule"))
def _train(x, labels, peak, key, classes: int, batch: int, epochs: int, schedule: str):
    """Weights [D, C] and biases [C] after SGD on x [N, D]."""
    steps = len(x) // batch  # of an epoch: what is left over comes in another one
    rate = {
        "cosine": optax.cosine_decay_schedule(peak, epochs * steps),
        "steps": optax.piecewise_constant_schedule(peak, {round(s * epochs) * steps: 0.1 for s in (0.6, 0.8)}),
    }[schedule]
    optimizer = optax.sgd(rate, momentum=0.9, nesterov=True)

    def loss(params, rows):
        logits = jnp.dot(x[rows], params[0], precision="highest") + params[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), len(x))[: steps * batch]
        return jax.lax.scan(step, carry, order.reshape(steps, batch))[0], None

    params = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
    (params, _), _ = jax.lax.scan(epoch, (params, optimizer.init(params)), jnp.arange(epochs))
    return params


def sgd(
    x: np.ndarray,
    labels: np.ndarray,
    tested: np.ndarray,
    classes: int,
    lr: float = 0.1,
    batch: int = 256,
    epochs: int = 90,
    schedule: str = "cosine",
    seed: int = 0,
) -> np.ndarray:
    """A linear classifier by SGD; see the module's docstring.

    Args:
        x: [N, D].
        labels: [N] int.
        tested: [M, D].
        classes: C.
        lr: peak, for a batch of 256; it grows with the batch.
        batch: rows of a step; all of them if they are fewer.
        epochs: passes over x.
        schedule: "cosine" to 0, or "steps": a tenth after 60 % and again after 80 % of the epochs.
        seed: of the order.

    Returns:
        [M, C] float32.

    Raises:
        ValueError: if it diverges.
    """
    batch = min(batch, len(x))
    key = jax.random.key(seed)
    kernel, bias = map(
        np.asarray, _train(x, labels, lr * batch / 256, key, classes=classes, batch=batch, epochs=epochs,
                           schedule=schedule)
    )  # fmt: skip
    if not np.isfinite(kernel).all():
        raise ValueError(f"the linear probe diverges with lr={lr}; take a smaller one, lr={lr / 10:g} say.")
    return tested @ kernel + bias


def check(
    predictor: Predictor,
    where: str,
    protocol: str = "lbfgs",
    cs: Sequence[float] = CS,
    lr: float = 0.1,
    batch: int = 256,
    epochs: int = 90,
    schedule: str = "cosine",
    **source: Any,
) -> list[Any]:
    """Refuses fields and streams that are not there, and what no classifier can be fitted with; see `evals.check`."""
    check_choice(where, "protocol", protocol, ("lbfgs", "sgd"))
    check_choice(where, "schedule", schedule, ("cosine", "steps"))
    if not cs or min(cs) <= 0:
        raise ConfigError(f"{where}.cs={tuple(cs)} must be positive numbers, at least one: cs=(0.1, 1.0, 10.0) say.")
    if lr <= 0 or batch < 1 or epochs < 1:
        raise ConfigError(f"{where}: lr={lr}, batch={batch} and epochs={epochs} must be positive.")
    return labelled.check(predictor, where, **source)


def run(
    predictor: Predictor,
    data: Mapping[str, Any],
    fit: Mapping[str, Any],
    label: str | Sequence[str] = "label",
    stream: str = "image",
    features: str = "pooled",
    limit: int = 0,
    protocol: str = "lbfgs",
    cs: Sequence[float] = CS,
    lr: float = 0.1,
    batch: int = 256,
    epochs: int = 90,
    schedule: str = "cosine",
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model.
        data: a source, as in `data.train`: it is tested.
        fit: a source: the classifier is fitted on it.
        label: field of the class, or several.
        stream: see `labelled.embed`.
        features: likewise.
        limit: only so many records of each source; 0 = all.
        protocol: "lbfgs" or "sgd", see the module's docstring.
        cs: of "lbfgs", candidates of C.
        lr: of "sgd", and so are the others, see `sgd`.
        batch: of a step.
        epochs: passes over `fit`.
        schedule: "cosine" or "steps".

    Returns:
        For each label "top1", "top5", "mean_per_class", the counts of `labelled.Probe`, and (lbfgs) "C".

    Raises:
        ValueError: if `fit` has a single class.
    """
    fitted, tested = (labelled.embed(predictor, d, label, stream, features, limit) for d in (fit, data))

    def measure(probe: labelled.Probe) -> dict[str, float]:
        if probe.classes < 2:
            raise ValueError("all that is fitted on is of a single class; there is nothing to tell apart.")
        if protocol == "lbfgs":
            scores, c = lbfgs(probe.fit_features, probe.fit_labels, probe.features, cs)
            return probe.metrics(scores) | {"C": c}
        scores = sgd(probe.fit_features, probe.fit_labels, probe.features, probe.classes, lr, batch, epochs, schedule)
        return probe.metrics(scores)

    return labelled.of_each_label(fitted, tested, measure)
