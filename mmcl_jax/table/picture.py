"""A table of runs as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mmcl_jax import files, log
from mmcl_jax.table import LIKE, LOWER, Group, mark, spread


def picture(groups: Sequence[Group], metrics: Sequence[str], out: files.AnyPath) -> None:
    """Draws a panel per metric to a PNG: each seed a dot, mean and deviation a bar; the best and its likes coloured."""
    from matplotlib.figure import Figure

    names = [name_of(g) for g in groups]
    if len(set(names)) < len(names):
        names = [g.name for g in groups]
    height = 0.9 + 0.32 * len(groups)
    columns = min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.5, height * lines))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for ax in axes.flat[len(metrics) :]:
        ax.axis("off")
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for y, g in enumerate(groups):
            found, how = g.values(metric), mark(groups, metric, g)
            color = {"best": "#2a9d4a", LIKE: "#8cc9a1"}.get(how, "#8a8a8a")
            if len(found) > 1:
                ax.errorbar(statistics.fmean(found), y, xerr=spread(found), fmt="|", ms=14, capsize=3, color=color)
            ax.plot(found, [y] * len(found), "o", ms=4, color=color, alpha=0.7)
        ax.set_title(f"{metric} {'(lower is better)' if LOWER.search(metric) else ''}", fontsize=9, loc="left")
        ax.set_yticks(range(len(groups)), names, fontsize=8)
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with out.open("wb") as f:
        figure.savefig(f, dpi=120, format="png")


def name_of(group: Group) -> str:
    """What tells it from the others: the values of the columns that it has, or if it has none the run's name."""
    told = [(k, log.short(v)) for k, v in group.label.items() if v is not None]
    plain = len(group.label) == 1
    return " ".join(v if plain or k == "method.name" else f"{k.rsplit('.', 1)[-1]}={v}" for k, v in told) or group.name
