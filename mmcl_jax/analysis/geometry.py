"""Where embeddings lie on the sphere: cones, alignment and uniformity, rank, collapse, what two encoders share.

All take arrays of any origin: [N, D], one row an example; what compares two modalities wants row i of both to be one
example. Vectors are brought to unit length first, but where it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mmcl_jax.evals.knn import unit
from mmcl_jax.named import did_you_mean

ROWS = 1024  # at a time, where all pairs are compared
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def cone(x: np.ndarray) -> dict[str, float]:
    """How narrow the cone is in which vectors lie (Liang et al. 2022, arXiv 2203.02053).

    Returns:
        "cosine": the mean cosine of two different rows, 0 all over the sphere, 1 in a point; "min_cosine"; "mean_norm",
        the length of the mean vector.

    Raises:
        ValueError: for fewer than two rows.
    """
    z = rows_of(x, 2)
    found = [(others.sum(), others.min()) for others in _cosines(z)]
    total, least = (np.array(values) for values in zip(*found, strict=True))
    return {
        "cosine": float(total.sum() / (len(z) * (len(z) - 1))),
        "min_cosine": float(least.min()),
        "mean_norm": float(np.linalg.norm(z.mean(0))),
    }


def alignment(x: np.ndarray, y: np.ndarray, alpha: float = 2.0) -> float:
    """Mean distance of pairs to the power alpha (Wang & Isola 2020, arXiv 2005.10242); 0 = they are the same."""
    x, y = pairs(x, y)
    return float((np.linalg.norm(x - y, axis=1) ** alpha).mean())


def uniformity(x: np.ndarray, t: float = 2.0) -> float:
    """The log of the mean of exp(-t |x_i - x_j|^2) over i != j (arXiv 2005.10242); lower = more spread."""
    z = rows_of(x, 2)
    total = sum(np.exp(2 * t * (others - 1)).sum() for others in _cosines(z))  # |a - b|^2 = 2 - 2 a . b
    return float(np.log(total / (len(z) * (len(z) - 1))))


def effective_rank(x: np.ndarray, eps: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the singular values; x as it is."""
    singular = np.linalg.svd(_finite(x), compute_uv=False)
    share = singular / max(singular.sum(), 1e-30) + eps
    return float(np.exp(-(share * np.log(share)).sum()))


def collapse(x: np.ndarray) -> dict[str, float]:
    """Signs of collapse of vectors.

    Returns:
        "std": the deviation of features over rows, times sqrt(D): 1 all over the sphere, 0 where all rows are the same;
        "rank", the effective rank of the rows without their mean; "dead", the share of features that hardly change.
    """
    z = rows_of(x, 2)
    deviation = z.std(0) * np.sqrt(z.shape[1])
    return {
        "std": float(deviation.mean()),
        "rank": effective_rank(z - z.mean(0)),
        "dead": float((deviation < 0.01).mean()),
    }


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of two encoders on the same examples (Kornblith et al. 2019, arXiv 1905.00414).

    Args:
        x: [N, D] features as they are, of any length.
        y: [N, E] features of the same examples.

    Returns:
        Between 0 and 1: that of the same features up to rotation and scale.

    Raises:
        ValueError: if there are not as many rows of both.
    """
    x, y = (f - f.mean(0) for f in (_finite(x), _finite(y)))
    if len(x) != len(y):
        raise ValueError(f"rows of x and y are the same examples; there are {len(x)} and {len(y)}.")

    def hsic(a, b):
        return float(np.linalg.norm(a.T @ b) ** 2)

    return float(hsic(x, y) / max(np.sqrt(hsic(x, x) * hsic(y, y)), 1e-30))


def separability(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """How well a line tells two modalities apart: accuracy of a logistic regression on the half it has not seen.

    Args:
        x: [N, D] of one modality.
        y: [M, D] of the other.
        seed: of the halves.

    Returns:
        Mean over both modalities: 0.5 where they lie in one place, 1 where they are apart.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    x, y = rows_of(x, 4), rows_of(y, 4)
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(z)), 2) for z in (x, y)]
    (fit, fit_labels), (held, labels) = (
        (np.concatenate([x[halves[0][i]], y[halves[1][i]]]), np.repeat([0, 1], [len(h[i]) for h in halves]))
        for i in range(2)
    )
    model = LogisticRegression(C=100.0, max_iter=1000, class_weight="balanced").fit(fit, fit_labels)
    return float(balanced_accuracy_score(labels, model.predict(held)))


def cones_by_depth(
    x: np.ndarray, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], activation: str = "relu"
) -> list[float]:
    """The mean cosine of inputs [N, D] and after each layer of an untrained network, the activation included.

    Args:
        x: inputs, as they are.
        weights: [out, in] of each layer.
        biases: [out] of each layer.
        activation: "linear", "relu", "sigmoid" or "tanh".

    Raises:
        ValueError: for an activation that does not exist.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}{did_you_mean(activation, ACTIVATIONS)}")
    found = [cone(x)["cosine"]]
    for w, b in zip(weights, biases, strict=True):
        x = ACTIVATIONS[activation](x @ w.T + b)
        found.append(cone(x)["cosine"])
    return found


def cones_apart(cones: Sequence[np.ndarray]) -> dict[str, float]:
    """Whether networks that differ in their seed alone put the same data into cones of their own.

    Args:
        cones: [N, D] of each network, row i of all of them of the same example.

    Returns:
        "within", the mean cosine of two examples in one network's cone; "across", that of two rows of different
        networks; "least_gap", the smallest distance between the means of two cones.

    Raises:
        ValueError: for fewer than two networks, or others than of one shape.
    """
    if len(cones) < 2:
        raise ValueError(f"Cones of {len(cones)} network: two are compared, or more.")
    first, *others = cones
    means = np.stack([rows_of(first, 2).mean(0), *[pairs(first, other)[1].mean(0) for other in others]])
    a, b = np.triu_indices(len(means), 1)
    return {
        "within": float(np.mean([cone(z)["cosine"] for z in cones])),
        "across": float((means[a] * means[b]).sum(1).mean()),  # the mean cosine is the product of the means
        "least_gap": float(np.linalg.norm(means[a] - means[b], axis=1).min()),
    }


def random_network(
    rng: np.random.Generator, width: int = 512, depth: int = 25
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights N(0, 1 / width) and biases uniform in +- 1 / sqrt(width), as in the paper's experiment."""
    weights = [rng.normal(0, width**-0.5, (width, width)) for _ in range(depth)]
    return weights, [rng.uniform(-(width**-0.5), width**-0.5, width) for _ in range(depth)]


def pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of pairs, float64.

    Raises:
        ValueError: if they are not of one shape, there is none, or some number is not finite.
    """
    x, y = rows_of(x, 1), rows_of(y, 1)
    if x.shape != y.shape:
        raise ValueError(f"row i of x and of y are a pair; shapes are {x.shape} and {y.shape}.")
    return x, y


def _cosines(z: np.ndarray) -> Iterator[np.ndarray]:
    """The cosines of rows with all others, some rows at a time, flat."""
    for start in range(0, len(z), ROWS):
        cosines = z[start : start + ROWS] @ z.T
        yield cosines[np.arange(len(z)) != np.arange(start, start + len(cosines))[:, None]]


def rows_of(x: np.ndarray, least: int) -> np.ndarray:
    """Unit vectors [N, D], float64.

    Raises:
        ValueError: if they are not of that form, fewer than `least`, or not finite.
    """
    x = _finite(x)
    if len(x) < least:
        raise ValueError(f"{len(x)} rows; at least {least} are needed.")
    return unit(x)


def _finite(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise ValueError(f"embeddings are [N, D]; got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{(~np.isfinite(x)).any(1).sum()} of {len(x)} rows have numbers that are not finite.")
    return x
