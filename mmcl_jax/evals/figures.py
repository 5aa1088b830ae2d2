"""Pictures of a run: its curves, what it retrieves, which images it takes for neighbours."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: a figure is written to a file, whatever the screen or notebook

from mmcl_jax import evals
from mmcl_jax.data import sources
from mmcl_jax.data.ops import decode
from mmcl_jax.data.record import look_up
from mmcl_jax.evals import arithmetic as sums
from mmcl_jax.evals import labelled, missing
from mmcl_jax.evals.knn import unit
from mmcl_jax.items import take
from mmcl_jax.log import read_metrics
from mmcl_jax.predict import Predictor

HIT, MISS = "#2a9d4a", "#b0b0b0"


def curves(metrics: str | Path, out: str | Path) -> None:
    """Draws loss and R@1 over steps from a metrics.jsonl to a PNG: a colour per evaluation, dashes for the way back."""
    rows = read_metrics(metrics)
    train = [r for r in rows if r.get("loss") is not None]
    ways: dict[str, list[str]] = {}  # evaluation -> the keys of its two directions
    for key in dict.fromkeys(k for r in rows for k in r if k.endswith("/R@1") and "/no_" not in k):
        ways.setdefault(key.rsplit("/", 2)[0], []).append(key)
    figure = Figure(figsize=(13 if ways else 5.5, 4))
    axes = figure.subplots(1, 2 if ways else 1, squeeze=False)
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
    found = predictor.embed_source(source, ("image", "text"), limit=min(limit or 5000, 5000), of="items")
    image_owner, text_owner, texts = found.owners["image"], found.owners["text"], found.texts["text"]
    firsts = np.unique(text_owner, return_index=True)[1]  # the first caption of each record
    firsts = firsts[np.isin(text_owner[firsts], image_owner)]
    queries = firsts[_evenly(len(firsts), rows)]
    owns = np.array([np.flatnonzero(image_owner == text_owner[q])[0] for q in queries], int)
    images, captions = found.vectors["image"], found.vectors["text"]
    of_text, of_image = predictor.score(take(captions, queries), images), predictor.score(take(images, owns), captions)
    if not out:
        return
    image_of = _images(predictor, source, "image")
    figure, axes = _grid(len(queries), best + 3, 1.25 * best + 6.2)
    for row, q, own, to_images, to_texts in zip(axes, queries, owns, of_text, of_image, strict=True):
        row[0].text(0.98, 0.5, textwrap.fill(texts[q], 16), ha="right", va="center", fontsize=9)
        for ax, i in zip(row[1:], np.argsort(-to_images)[:best], strict=False):
            _image(ax, image_of(image_owner[i]), image_owner[i] == text_owner[q])
        _image(row[best + 1], image_of(image_owner[own]))
        near = np.argsort(-to_texts)[:best]
        _texts(row[best + 2], [(texts[i], text_owner[i] == image_owner[own]) for i in near])
    axes[0, 1].set_title("text → its five best images" if best == 5 else "text → images", loc="left", fontsize=10)
    axes[0, best + 1].set_title("image → texts", loc="left", fontsize=10)
    _finish(figure, out, f"{name}: {found.size} records; hits green.", source)


def neighbours(
    predictor: Predictor,
    data: Mapping[str, Any],
    out: str | Path,
    name: str = "",
    limit: int = 0,
    fit: Mapping[str, Any] | None = None,
    label: str | Sequence[str] = "label",
    stream: str = "image",
    features: str = "pooled",
    rows: int = 6,
    best: int = 5,
) -> None:
    """Draws images and their nearest images, those of the same class marked green, to a PNG.

    Args:
        predictor: the model.
        data: a source with images and labels: the queries.
        out: the PNG; "" = none, on a process that only takes part in the embedding.
        name: what the data is called in the config, for the line at the foot.
        limit: only so many records of each source, and never more than 5000: it is a picture.
        fit: a source: where neighbours are looked for; default: in `data`, and nothing is a neighbour of itself.
        label: field of the class; of several the first.
        stream: of images; see `labelled.embed`.
        features: likewise.
        rows: number of queries, spread over the source.
        best: neighbours per query.

    Raises:
        ValueError: if the stream is not of images.
    """
    if stream.split("/")[0] != "image":
        raise ValueError(f"stream={stream!r} can't be drawn; only images can.")
    field = labelled.fields(label)[0]
    tested, bank = (
        labelled.embed(predictor, d, field, stream, features, min(limit or 5000, 5000)) for d in (data, fit or data)
    )
    if not out:
        return
    source, bank_source = (sources.make(d, "evals data") for d in (data, fit or data))
    image_of, neighbour_of = (_images(predictor, s, stream) for s in (source, bank_source))
    queries = np.flatnonzero([v is not None for v in tested.labels[field]])
    queries = queries[_evenly(len(queries), rows)]
    cosines = unit(tested.features[queries]) @ unit(bank.features).T
    if not fit:
        cosines[tested.owners[queries][:, None] == bank.owners] = -np.inf
    figure, axes = _grid(len(queries), best + 2, 1.25 * best + 3.2)
    for row, q, cosine in zip(axes, queries, cosines, strict=True):
        row[0].text(0.98, 0.5, _words(tested.labels[field][q], 16), ha="right", va="center", fontsize=9)
        _image(row[1], image_of(tested.owners[q]))
        for ax, i in zip(row[2:], np.argsort(-cosine)[:best], strict=False):
            _image(ax, neighbour_of(bank.owners[i]), bank.labels[field][i] == tested.labels[field][q])
            ax.set_xlabel(_words(bank.labels[field][i], 20), fontsize=6)
    axes[0, 2].set_title("image → its nearest images", loc="left", fontsize=10)
    _finish(figure, out, f"{name}: neighbours among {bank.size} records; the same {field} green.", source, bank_source)


def arithmetic(
    predictor: Predictor,
    data: Mapping[str, Any],
    out: str | Path,
    name: str = "",
    limit: int = 0,
    added: str = "audio",
    to: str = "image",
    label: str = "label",
    title: str = "label",
    weight: float = 1.0,
    rows: int = 6,
    best: int = 5,
) -> None:
    """Draws images, what is added to them and the images that are near, to a PNG; the arguments are the evaluator's.

    The image of what is added is marked green.
    """
    z, owners, kept = sums.vectors(predictor, data, added, to, (title,), min(limit or 5000, 5000))
    if not out:
        return
    source, other = sources.make(data, "evals data"), sums.partners(len(owners))
    nearest = sums.near(z[to] + weight * z[added][other], z[to], best)
    image_of, names = _images(predictor, source, to), sources.class_names(source, title)
    queries = _evenly(len(owners), rows)
    figure, axes = _grid(len(queries), best + 2, 1.25 * best + 3.2)
    for row, q in zip(axes, queries, strict=True):
        _image(row[0], image_of(owners[q]))
        said = kept[title][owners[other[q]]]
        row[1].text(0.02, 0.5, _words(f"+ {names[said] if names else said}", 16), va="center", fontsize=9)
        for ax, i in zip(row[2:], nearest[q], strict=False):
            _image(ax, image_of(owners[i]), i == other[q])
    axes[0, 0].set_title(f"{to} + {added}", loc="left", fontsize=10)
    axes[0, 2].set_title("→ the images nearest to the sum", loc="left", fontsize=10)
    _finish(figure, out, f"{name}: {len(owners)} records; green: the image of what is added.", source)


# Evaluator -> the picture of what it found, and those of its arguments that the picture has too.
PICTURES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "retrieval": (retrieval, ("data", "limit")),
    "knn": (neighbours, ("data", "limit", "fit", "label", "stream", "features")),
    "arithmetic": (arithmetic, ("data", "limit", "added", "to", "label", "title", "weight")),
}


def of_evaluations(
    predictor: Predictor, evaluations: Mapping[str, Any], train: Mapping[str, Any], folder: Path | None
) -> list[str]:
    """Draws what the first retrieval of texts for images in `config.evals` finds, or if there is none, the first knn.

    Beside it, what the first embedding arithmetic finds.

    Args:
        predictor: the model.
        evaluations: `config.evals`.
        train: `config.data.train`.
        folder: for the PNG; None on a process that only takes part in the embedding.

    Returns:
        The names of the PNGs.
    """
    drawn: list[str] = []
    for kind, (draw, wanted) in PICTURES.items():
        for name, part in evaluations.items() if kind != "knn" or not drawn else ():
            # a picture of retrieval has images on the one side and words on the other
            if part["name"] == kind and (part.get("a", "image"), part.get("b", "text")) == ("image", "text"):
                arguments = {k: v for k, v in evals.arguments(part, train).items() if k in wanted}
                file = f"{draw.__name__}.png"
                draw(predictor, out=folder / file if folder else "", name=name, **arguments)
                drawn.append(file)
                break
    return drawn


def of_numbers(evaluations: Mapping[str, Any], results: Mapping[str, float], folder: Path) -> str:
    """Draws what the first evaluation of missing modalities in `config.evals` found.

    Args:
        evaluations: `config.evals`.
        results: "<evaluation>/<metric>" -> number.
        folder: for the PNG.

    Returns:
        The name of the PNG; "" if there is nothing to draw.
    """
    for name, part in evaluations.items():
        if part["name"] == "missing" and f"{name}/n" in results:
            subsets({k.removeprefix(f"{name}/"): v for k, v in results.items() if k.startswith(f"{name}/")},
                    tuple(part["modalities"]), folder / "missing.png")  # fmt: skip
            return "missing.png"
    return ""


def subsets(results: Mapping[str, float], modalities: Sequence[str], out: str | Path) -> None:
    """Draws the metrics of each subset of modalities as a heat map to a PNG, the whole at the top.

    Args:
        results: of the evaluator `missing`.
        modalities: its argument.
        out: the PNG.
    """
    rows = [s for s in missing.subsets(modalities)][::-1]
    columns = {"top1": "classification\ntop-1", "R@1": "retrieval of the\nothers, R@1"}
    values = np.array([[results.get(f"{'+'.join(row)}/{k}", np.nan) for k in columns] for row in rows])
    figure = Figure(figsize=(1.2 + 0.75 * len(modalities) + 2.6, 1.3 + 0.34 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(0.75 * len(modalities), 2.6))
    there = np.array([[m in row for m in modalities] for row in rows])
    y, x = np.indices(there.shape)
    left.scatter(x, y, s=70, c=np.where(there, "#333333", "#dddddd").ravel())
    left.set(xticks=range(len(modalities)), yticks=[], xlim=(-0.6, len(modalities) - 0.4))
    left.set_xticklabels(modalities, rotation=30, ha="left")
    right.imshow(values / np.nanmax(values, 0), aspect="auto", cmap="Greens", vmin=0, vmax=1.3)
    for (i, j), value in np.ndenumerate(values):
        right.text(j, i, "–" if np.isnan(value) else f"{value:.3f}", ha="center", va="center", fontsize=8)
    right.set(xticks=range(len(columns)), ylim=(len(rows) - 0.5, -0.5))
    right.set_xticklabels([*columns.values()], fontsize=8)
    for ax in (left, right):
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    foot = (f"{results['n']:.0f} complete examples; the most frequent class {results['majority']:.3f}, "
            f"chance of retrieval {1 / results['n']:.3f}")  # fmt: skip
    _finish(figure, out, foot)


def _evenly(size: int, count: int) -> np.ndarray:
    """`count` numbers, or as many as there are, evenly from 0 to size - 1."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(int)


def _images(predictor: Predictor, source: Any, stream: str) -> Callable[[int], Any]:
    """Record number -> the image that the stream is made of."""
    field = predictor.streams.chains[stream].field
    return lambda record: look_up(predictor.streams.record(source[int(record)], int(record)), field)


def _grid(rows: int, columns: int, width: float) -> tuple[Figure, np.ndarray]:
    """A figure of `width` inches and its axes [rows, columns], without frames."""
    figure = Figure(figsize=(width, 1.15 * rows + 0.9))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def _finish(figure: Figure, out: str | Path, foot: str, *shown: Any) -> None:
    """Writes the line at the foot, with the credits of the sources that are shown, and the PNG."""
    credits = dict.fromkeys(getattr(source, "attribution", "") for source in shown)
    width, height = figure.get_size_inches()
    text = textwrap.fill(" ".join([foot, *credits]), int(16 * width))
    figure.tight_layout(rect=(0, (0.16 + 0.12 * (1 + text.count("\n"))) / height, 1, 1))
    figure.text(0.01, 0.01, text, fontsize=7, color="#555555")
    figure.savefig(out, dpi=110)


def _words(name: Any, width: int) -> str:
    """A class's name, broken into lines: "food-drink" is two words."""
    return textwrap.fill("" if name is None else str(name).replace("-", " ").replace("_", " "), width)


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
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(np.clip(image, 0, 1))
        ax.text(0.5, -0.04, textwrap.fill(title, 24), fontsize=6, ha="center", va="top", transform=ax.transAxes)
    credit = textwrap.fill(credit, 28 * columns)
    figure.tight_layout(rect=(0, (0.15 + 0.12 * credit.count("\n")) / rows, 1, 1), h_pad=2.0)
    figure.text(0.01, 0.005, credit, fontsize=7, color="#555555")
    figure.savefig(out, dpi=110)
