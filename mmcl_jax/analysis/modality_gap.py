"""The modality gap (Liang et al. 2022, "Mind the Gap", arXiv 2203.02053): its size, and what closing it by hand does.

    x_i = unit(image_i),  y_i = unit(text_i)
    D = mean_i x_i - mean_i y_i                                      the gap, a vector; its size is |D|
    x'_i = unit(x_i - l D),  y'_i = unit(y_i + l D)                  l = 0: as it is; 1/2: about closed; beyond: crossed

The official code (8e20cb2) shifts by half of d times D / |D| each instead, over d = -5 .. 5: `along="unit"` here. Both
are checked against it, as are recalls, distances and the simulation on a sphere. Two things are as in the paper, not as
in its notebooks: their loss is that from images to texts alone, as they transpose twice; and of the simulation's two
mislabelled pairs their loss has one, for it lies half-way between those of none and of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from mmcl_jax.analysis.geometry import pairs
from mmcl_jax.evals.knn import unit
from mmcl_jax.evals.retrieval import KS, ranks_of_scores
from mmcl_jax.named import did_you_mean

SCALES = (1.0, 10.0, 20.0, 50.0, 100.0)  # 1 / temperature
ALONG = ("gap", "unit")
SIDES = ("both", "x")
ANGLES = np.pi * np.array([0, 1, 0.5, 1.5, 0.25, 0.75, 1.75, 1.25, 1.53])  # of the simulation's pairs


def read_pairs(a: str | Path, b: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of two modalities from files, row i of both of one example.

    Args:
        a: an .npz as `mmcl embed` writes it (`id` [M], `embedding` [M, D]), or an .npy [N, D].
        b: likewise. Rows of two .npz are paired by id, the first of each; of .npy by their place.

    Raises:
        ValueError: if a file holds something else, or there is no pair.
    """
    (ids_a, x), (ids_b, y) = (_read(Path(p)) for p in (a, b))
    if ids_a is None or ids_b is None:
        return pairs(x, y)
    _, rows_a, rows_b = np.intersect1d(ids_a, ids_b, return_indices=True)
    if not len(rows_a):
        raise ValueError(f"{a} and {b} have no id in common; the first are {str(ids_a[0])!r} and {str(ids_b[0])!r}.")
    return pairs(x[rows_a], y[rows_b])


def _read(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    with path.open("rb") as file:
        found = np.load(file)
        if isinstance(found, np.ndarray):
            return None, found
        if not {"id", "embedding"} <= set(found.files):
            raise ValueError(f"{path} holds {found.files}; needed are the arrays id and embedding.")
        return found["id"], found["embedding"]


def gap(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The gap of pairs in numbers; a few matrix products, so that it can be watched during training.

    Args:
        x: [N, D] embeddings of one modality.
        y: [N, D], of the other; row i is of the same example.

    Returns:
        "size", |D|; "paired", the mean cosine of pairs, and "unpaired", of all others across the modalities.

    Raises:
        ValueError: if they are not of one shape, or some number is not finite.
    """
    x, y = pairs(x, y)
    paired = float((x * y).sum(1).mean())
    every = float(x.mean(0) @ y.mean(0))
    n = len(x)
    unpaired = (n * every - paired) / (n - 1) if n > 1 else every
    return {"size": float(np.linalg.norm(vector(x, y))), "paired": paired, "unpaired": unpaired}


def vector(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gap D [D] from the mean of y's unit vectors to that of x's."""
    return unit(np.asarray(x, np.float64)).mean(0) - unit(np.asarray(y, np.float64)).mean(0)


def shifted(
    x: np.ndarray,
    y: np.ndarray,
    by: float,
    along: str = "gap",
    sides: str = "both",
) -> tuple[np.ndarray, np.ndarray]:
    """Both moved towards each other, at unit length again.

    Args:
        x: [N, D].
        y: [M, D].
        by: how far, of `along`; negative = away from each other.
        along: "gap", in parts of the gap on each side (the paper: 1/2 closes it); or "unit", a length that both sides
            share.
        sides: "both", or "x", which then moves alone.

    Returns:
        x' [N, D] and y' [M, D].

    Raises:
        ValueError: for an unknown way or side.
    """
    for name, value, possible in (("along", along, ALONG), ("sides", sides, SIDES)):
        if value not in possible:
            raise ValueError(f"{name}={value!r}{did_you_mean(value, possible)}")
    x, y = unit(np.asarray(x, np.float64)), unit(np.asarray(y, np.float64))
    step = vector(x, y)
    if along == "unit":
        step = unit(step) / (2 if sides == "both" else 1)
    return unit(x - by * step), unit(y + by * step) if sides == "both" else y


def signed_size(x: np.ndarray, y: np.ndarray, direction: np.ndarray) -> float:
    """|D|, negative where the modalities have changed sides along `direction`, the gap as it was."""
    d = vector(x, y)
    return float(np.linalg.norm(d) * np.sign(d @ direction))


def contrastive_loss(
    x: np.ndarray, y: np.ndarray, scale: float, batch: int = 0, directions: Sequence[str] = ("x2y", "y2x")
) -> float:
    """CLIP's loss of pairs [N, D], the mean of its directions; in batches of so many rows, 0 = all of them in one."""
    x, y = pairs(x, y)
    batch = batch or len(x)
    found = []
    for start in range(0, len(x), batch):
        logits = scale * x[start : start + batch] @ y[start : start + batch].T
        for which in directions:
            rows = logits if which == "x2y" else logits.T
            found.append(logsumexp(rows, axis=1) - rows.diagonal())
    return float(np.concatenate(found).mean())


def recalls(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Shares of pairs found, "x2y/R@1" (y by x) and so on; ties count against them."""
    scores, positive = x @ y.T, np.eye(len(x), dtype=bool)
    ranks = {"x2y": ranks_of_scores(scores, positive), "y2x": ranks_of_scores(scores.T, positive)}
    return {f"{which}/R@{k}": float((found <= k).mean()) for which, found in ranks.items() for k in KS}


def shift_curve(
    x: np.ndarray,
    y: np.ndarray,
    grid: Sequence[float],
    scales: Sequence[float] = SCALES,
    along: str = "gap",
    sides: str = "both",
    batch: int = 0,
) -> dict[str, np.ndarray]:
    """What moving the modalities does: the loss landscape over the gap, and retrieval.

    Args:
        x: [N, D].
        y: [N, D].
        grid: [G] as `by` of `shifted`.
        scales: [S] 1 / temperature of the losses.
        along: of `shifted`.
        sides: of `shifted`.
        batch: of `contrastive_loss`.

    Returns:
        "shift" [G], "size" [G], "signed" [G], "loss" [G, S] and the recalls [G] of `recalls`.
    """
    x, y = pairs(x, y)
    d = vector(x, y)
    rows = []
    for by in grid:
        a, b = shifted(x, y, by, along, sides)
        size = signed_size(a, b, d)
        loss = [contrastive_loss(a, b, scale, batch) for scale in scales]
        rows.append({"shift": by, "size": abs(size), "signed": size, "loss": loss} | recalls(a, b))
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def zero_shot_curve(
    images: np.ndarray, classes: np.ndarray, labels: np.ndarray, grid: Sequence[float], along: str = "unit"
) -> np.ndarray:
    """Top-1 at each shift along the gap between images and classes; to choose the best of them is to look at the test.

    Args:
        images: [N, D].
        classes: [C, D] of the classes' texts.
        labels: [N] int, the class of each image.
        grid: [G] as `by` of `shifted`.
        along: of `shifted`.

    Returns:
        [G].
    """
    found = []
    for by in grid:
        a, b = shifted(images, classes, by, along)
        found.append(float(((a @ b.T).argmax(1) == labels).mean()))
    return np.array(found)


def aligned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rotation R [D, D] that turns y onto x, with the least |x - y R| (Procrustes): the paper's "fix init"."""
    x, y = pairs(x, y)
    u, _, v = np.linalg.svd(y.T @ x)
    return u @ v


def sphere(z: float, mislabelled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The paper's simulation: nine pairs on a sphere, images at the height z, texts at -z.

    Args:
        z: in [-1, 1]; half of the gap.
        mislabelled: whether the texts of the two pairs that are closest to each other are swapped.

    Returns:
        Images and texts [9, 3].
    """
    radius = np.sqrt(1 - z**2)
    x = np.stack([radius * np.cos(ANGLES), radius * np.sin(ANGLES), np.full(len(ANGLES), z)], 1)
    y = x * [1, 1, -1]
    order = np.arange(len(ANGLES))
    if mislabelled:
        order[[3, 8]] = 8, 3
    return x, y[order]
