"""Pictures of the modality gap: where modalities lie, what moving them does, how it changes during training.

x, y = (found.vectors[m] for m in ("image", "text"))          # of predictor.embed_source, or from a file
map_of_modalities({"image": x, "text": y}, pairs=200)
curve_of_shift(modality_gap.shift_curve(x, y, np.linspace(-1, 2, 25)))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmcl_jax.analysis.geometry import rows_of
from mmcl_jax.log import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def map_of_modalities(vectors: Mapping[str, np.ndarray], pairs: int = 0) -> Figure:
    """The two directions in which all vectors together vary most (PCA); a colour for each modality.

    Args:
        vectors: modality -> [N, D]; brought to unit length.
        pairs: number of rows whose vectors in all modalities are joined by lines; it wants row i to be one example.

    Raises:
        ValueError: if lines are wanted and there are not as many rows of each.
    """
    from matplotlib.figure import Figure

    vectors = {name: rows_of(z, 2) for name, z in vectors.items()}
    sizes = {name: len(z) for name, z in vectors.items()}
    if pairs and len(set(sizes.values())) > 1:
        raise ValueError(f"pairs={pairs}: row i of each modality is one example then; there are {sizes} rows.")
    every = np.concatenate([*vectors.values()])
    mean = every.mean(0)
    _, singular, directions = np.linalg.svd(every - mean, full_matrices=False)
    share = singular[:2] ** 2 / (singular**2).sum()
    points = {name: (z - mean) @ directions[:2].T for name, z in vectors.items()}
    figure = Figure(figsize=(5.2, 4.6), layout="constrained", dpi=90)
    ax = figure.subplots()
    for i in range(min(pairs, *sizes.values()) if pairs else 0):
        ax.plot(*zip(*(p[i] for p in points.values()), strict=True), color="#999999", lw=0.4, alpha=0.6, zorder=0)
    for i, (name, p) in enumerate(points.items()):
        ax.scatter(*p.T, s=7, color=f"C{i}", alpha=0.6, linewidths=0, label=name)
    ax.set(xlabel=f"first direction ({share[0]:.0%} of the variance)", ylabel=f"second ({share[1]:.0%})")
    ax.set_aspect("equal", "datalim")
    ax.legend(frameon=False, fontsize=8, markerscale=2)
    _plain(ax)
    return figure


def curve_of_shift(curve: Mapping[str, np.ndarray], scales: Sequence[float]) -> Figure:
    """The loss landscape and retrieval over the gap's signed size, from `modality_gap.shift_curve`.

    Args:
        curve: what that gives.
        scales: [S] 1 / temperature, of its losses.

    Raises:
        ValueError: if no shift is 0, the place where they are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=90)
    left, right = figure.subplots(1, 2)
    at = np.abs(curve["shift"]).argmin()
    if abs(curve["shift"][at]) > 1e-9:
        raise ValueError(f"the grid has no shift of 0, where they are; the nearest is {curve['shift'][at]:.3g}.")
    here = curve["signed"][at]
    for i, scale in enumerate(scales):
        losses = curve["loss"][:, i]
        left.plot(curve["signed"], losses, color=f"C{i}", lw=1.3, label=f"1 / {scale:g}")
        left.plot(curve["signed"][losses.argmin()], losses.min(), "o", color=f"C{i}", ms=4)
    left.set(xlabel="size of the gap; negative: crossed", ylabel="CLIP's loss", title="loss, by temperature")
    for key in (k for k in curve if k.endswith(("R@1", "R@5"))):
        style = "-" if key.endswith("R@1") else "--"
        right.plot(curve["signed"], curve[key], style, color="C0" if key.startswith("x2y") else "C1", lw=1.3, label=key)
    right.set(xlabel="size of the gap; negative: crossed", ylabel="recall", title="retrieval", ylim=(0, None))
    for ax in (left, right):
        ax.axvline(here, color="#555555", lw=0.8, ls=":")
        ax.legend(frameon=False, fontsize=7)
        _plain(ax)
    figure.supxlabel("dotted: as it is; dots: least loss", x=0.01, ha="left", fontsize=7, color="#555555")
    return figure


def curves_of_training(runs: Mapping[str, str], pair: str = "image_text", evaluation: str = "gap") -> Figure:
    """The size of the gap over steps, of several runs with the evaluator `gap`.

    Args:
        runs: what a run is called -> its metrics.jsonl.
        pair: of modalities, as the evaluator calls it.
        evaluation: its name in the configs.

    Raises:
        ValueError: for a run without.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained", dpi=90)
    ax, key = figure.subplots(), f"{evaluation}/{pair}/size"
    for name, path in runs.items():
        points = [(r["step"], r[key]) for r in read_metrics(path) if r.get(key) is not None]
        if not points:
            raise ValueError(f"{path} has no {key}: evaluate the run with the evaluator gap.")
        ax.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.3, label=name)
    ax.set(xlabel="step", ylabel=f"size of the gap, {pair}", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    _plain(ax)
    return figure


def _plain(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
