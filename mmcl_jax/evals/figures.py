"""Pictures of a run: its curves, and what it retrieves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from mmcl_jax.data import sources  # noqa: E402
from mmcl_jax.data.ops import decode  # noqa: E402
from mmcl_jax.data.record import look_up  # noqa: E402
from mmcl_jax.log import read_metrics  # noqa: E402
from mmcl_jax.predict import Predictor  # noqa: E402

HIT, MISS = "#2a9d4a", "#b0b0b0"


def curves(metrics: str | Path, out: str | Path) -> None:
    """Draws loss and R@1 over steps from a metrics.jsonl to a PNG: a colour per evaluation, dashes for the way back."""
    rows = read_metrics(metrics)
    train = [r for r in rows if r.get("loss") is not None]
    ways: dict[str, list[str]] = {}  # evaluation -> the keys of its two directions
    for key in dict.fromkeys(k for r in rows for k in r if k.endswith("/R@1") and "/no_" not in k):
        ways.setdefault(key.rsplit("/", 2)[0], []).append(key)
    figure, axes = plt.subplots(1, 2 if ways else 1, figsize=(13 if ways else 5.5, 4), squeeze=False)
    left = axes[0, 0]
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color="#1f5fa8", lw=1.2)
    left.set(xlabel="step", ylabel="loss", title="training loss")
    for i, (name, keys) in enumerate(ways.items()):
        for key, style in zip(keys, ("-", "--"), strict=False):
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            label = f"{name} {key.split('/')[-2]}"
            axes[0, 1].plot(*zip(*points, strict=True), style, color=f"C{i}", marker="o", ms=3, lw=1.2, label=label)
    if ways:
        axes[0, 1].set(xlabel="step", ylabel="recall", title="R@1", ylim=(0, None))
        axes[0, 1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def retrieval(
    predictor: Predictor,
    data: Mapping[str, Any],
    out: str | Path,
    name: str = "",
    limit: int = 0,
    rows: int = 6,
    best: int = 5,
) -> None:
    """Draws text -> best images and image -> best texts, hits marked green, to a PNG.

    Args:
        predictor: the model.
        data: a source with images and texts, as in `data.train`.
        out: the PNG; "" = none, on a process that only takes part in the embedding.
        name: what the data is called in the config, for the line at the foot.
        limit: only so many records, and never more than 5000: it is a picture.
        rows: number of queries each way, spread over the source.
        best: results per query.
    """
    source = sources.make(data, "evals data")
    found = predictor.embed_source(source, ("image", "text"), limit=min(limit or 5000, 5000))
    if not out:
        return
    image_owner, text_owner, texts = found.owners["image"], found.owners["text"], found.texts["text"]
    firsts = np.unique(text_owner, return_index=True)[1]  # the first caption of each record
    firsts = firsts[np.isin(text_owner[firsts], image_owner)]
    queries = firsts[np.linspace(0, len(firsts) - 1, min(rows, len(firsts))).round().astype(int)]
    field = predictor.streams.chains["image"].field

    def image_of(record):
        return look_up(predictor.streams.record(source[int(record)], int(record)), field)

    figure, axes = plt.subplots(
        len(queries), best + 3, figsize=(1.25 * best + 6.2, 1.15 * len(queries) + 0.9), squeeze=False
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for row, q in zip(axes, queries, strict=True):
        row[0].text(0.98, 0.5, textwrap.fill(texts[q], 16), ha="right", va="center", fontsize=9)
        near = np.argsort(-(found.vectors["image"] @ found.vectors["text"][q]))[:best]
        for ax, i in zip(row[1:], near, strict=False):
            _image(ax, image_of(image_owner[i]), image_owner[i] == text_owner[q])
        own = int(np.flatnonzero(image_owner == text_owner[q])[0])
        _image(row[best + 1], image_of(image_owner[own]))
        near = np.argsort(-(found.vectors["text"] @ found.vectors["image"][own]))[:best]
        _texts(row[best + 2], [(texts[i], text_owner[i] == image_owner[own]) for i in near])
    axes[0, 1].set_title("text → its five best images" if best == 5 else "text → images", loc="left", fontsize=10)
    axes[0, best + 1].set_title("image → texts", loc="left", fontsize=10)
    credit = getattr(source, "attribution", "")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.text(0.01, 0.01, f"{name}: {found.size} records; hits green. {credit}", fontsize=7, color="#555555")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _image(ax: Axes, value: Any, hit: bool | None = None) -> None:
    ax.imshow(decode(value))
    if hit is not None:
        ax.spines[:].set(visible=True, color=HIT if hit else MISS, linewidth=3 if hit else 1)


def _texts(ax: Axes, lines: Sequence[tuple[str, bool]]) -> None:
    for k, (text, hit) in enumerate(lines):
        style = dict(color=HIT, weight="bold") if hit else dict(color="#333333")
        ax.text(0.0, 0.92 - 0.2 * k, textwrap.shorten(text, 34), fontsize=7, va="center", **style)


def contact_sheet(
    images: Sequence[np.ndarray], titles: Sequence[str], out: str | Path, columns: int = 8, credit: str = ""
) -> None:
    """Draws images [H, W, 3] in [0, 1] with a line under each and a credit at the foot, to a PNG."""
    n = len(images)
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.85 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(np.clip(image, 0, 1))
        ax.text(0.5, -0.04, textwrap.fill(title, 24), fontsize=6, ha="center", va="top", transform=ax.transAxes)
    credit = textwrap.fill(credit, 28 * columns)
    figure.tight_layout(rect=(0, (0.15 + 0.12 * credit.count("\n")) / rows, 1, 1), h_pad=2.0)
    figure.text(0.01, 0.005, credit, fontsize=7, color="#555555")
    figure.savefig(out, dpi=110)
    plt.close(figure)
