"""What FDT's codes stand for (arXiv 2303.14865, Figure 4): the words and patches that activate them, and how many.

    found = activations(predictor, source)                            weights of all codes, of every image and text
    found = activations(predictor, source, shared_codes(**found))     and the logits of some codes at every token
    figure_of_codes(predictor, source, **found)
    figure_of_granularity(granularity(**found))

The logit of code k at token t is q_t . C_k / sqrt(dim) as in `encoders.fdt`, before the temperature divides it and
before padding is filled. An example's weights are what its readout made of the logits, temperature and all; they sum
to 1.
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from mmcl_jax.data.record import look_up
from mmcl_jax.method import Method
from mmcl_jax.predict import Predictor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 1024  # pairs that are compared at a time
IMAGE, TEXT = "#1f5fa8", "#d9782d"
MATCHED, MISMATCHED = "#2a9d4a", "#8c8c8c"


@dataclasses.dataclass(frozen=True)
class Activations:
    """How M examples of a stream activate the codes.

    Attributes:
        weights: [M, K] float32, of all codes; of a readout with pool="none" the mean of the real tokens' weights.
        codes: [C] int, those whose logits are kept.
        logits: [M, N, C] float32, of `codes` at each token: see the module's docstring.
        mask: [M, N] bool, the real tokens.
        ids: [M, N] int32, the token ids of a text; None of an image.
        owners: [M] int, the record that each example belongs to, or its place among the values.
        threshold: a weight above it makes a code active: 0 for sparsemax, an even share 1 / K for softmax, of which
            all weights are positive.
    """

    weights: np.ndarray
    codes: np.ndarray
    logits: np.ndarray
    mask: np.ndarray
    ids: np.ndarray | None
    owners: np.ndarray
    threshold: float


def activations(
    predictor: Predictor, source: Any = None, codes: Sequence[int] = (), limit: int = 0, **values: Sequence[Any]
) -> dict[str, Activations]:
    """How the examples of a source, or raw values, activate the codes.

    Logits of all codes at all tokens would be too many: those of `codes` are picked on the device. What is kept is
    M (K + N C) numbers; the weights of 5,000 images for 16,384 codes take 330 MB.

    Args:
        predictor: a run with codes.
        source: records; of several captions each is an example.
        codes: numbers of the codes whose logits are wanted.
        limit: only so many records; 0 = all.
        **values: instead of a source, stream -> what `Predictor.embed` takes.

    Returns:
        stream -> activations; of a source all streams whose readout has codes.

    Raises:
        ValueError: if no readout has codes, or for a code or a stream that does not exist.
    """
    readouts = {k: r for k, r in predictor.method.readouts.items() if hasattr(r, "codes")}
    if not readouts:
        kinds = sorted({type(r).__name__ for r in predictor.method.readouts.values()})
        raise ValueError(
            f"This run has no codes: its readouts are {', '.join(kinds) or 'none'}. Train one with "
            "--config configs/fdt_emoji.py, or with --config.method.readout=fdt where the method takes readouts."
        )
    for name in values:
        if name in predictor.streams.chains and name.split("/")[0] not in readouts:
            raise ValueError(f"Stream {name!r} has no codes; those that have: {sorted(readouts)}.")
    codes = tuple(int(c) for c in codes)
    size = min(r.codes for r in readouts.values())
    wrong = [c for c in codes if not 0 <= c < size]
    if wrong:
        raise ValueError(f"There is no code {wrong[0]}; there are 0 to {size - 1}.")
    if source is None:
        found = predictor.compute(_reader(codes), **values)
        owners = {name: np.arange(len(v)) for name, v in values.items()}
    else:
        names = [name for name in predictor.streams.chains if name.split("/")[0] in readouts]
        embedded = predictor.embed_source(source, names, limit=limit, of=_reader(codes))
        found, owners = embedded.vectors, embedded.owners
    result = {}
    for name, arrays in found.items():
        readout = readouts[name.split("/")[0]]
        threshold = 0.0 if readout.attention == "sparsemax" else 1 / readout.codes
        arrays = {"ids": None} | arrays
        result[name] = Activations(codes=np.array(codes, int), owners=owners[name], threshold=threshold, **arrays)
    return result


@functools.lru_cache(maxsize=8)  # the predictor compiles a function once: the same codes must be the same function
def _reader(codes: tuple[int, ...]) -> Callable:
    chosen = np.array(codes, int)

    def read(method, params, extra, batch, ctx):
        encoded, _ = method.encode(params, extra, batch, ctx)
        found = {}
        for name, e in encoded.items():
            weights, logits = _read_out(method, name.split("/")[0], params, extra, e, ctx.step)
            mask = jnp.ones(logits.shape[:2], bool) if e.mask is None else e.mask  # [B, N]
            if weights.ndim == 3:
                weights = jnp.where(mask[..., None], weights, 0).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
            found[name] = dict(weights=weights, logits=logits[..., chosen], mask=mask)
            data = batch[name].data
            ids = data["ids"] if isinstance(data, Mapping) else data
            if e.mask is not None and ids.shape == mask.shape:
                found[name]["ids"] = ids
        return found

    return read


def _read_out(method: Method, modality: str, params, extra, encoded, step):
    """What the readout shows of itself: weights [B, K] (or [B, N, K]) and logits [B, N, K]."""
    readout, name = method.readouts[modality], f"{modality}_readout"
    variables = {"params": params[name] | {k: params[k] for k in readout.shared}}
    variables["batch_stats"] = extra.get("batch_stats", {}).get(name, {})
    _, shown = readout.apply(variables, encoded, step=step, mutable=["intermediates"])
    return shown["intermediates"]["weights"][0], shown["intermediates"]["token_logits"][0]


def shared_codes(image: Activations, text: Activations, count: int = 6, apart: float = 0.5) -> np.ndarray:
    """The codes that do most to tell matched pairs from mismatched ones, and not the same thing twice.

    A pair's inner product is about the sum over k of w_k v_k |C_k|^2, for codes are close to orthogonal. What it has
    in matched pairs beyond mismatched ones is, of code k, the covariance of its weights w_k in an image and v_k in the
    image's caption. Codes are taken by it, the largest first; one whose weights correlate by more than `apart` with
    those of a code taken before, over images or over captions, is passed over.

    Returns:
        [count] numbers of codes, or as many as have a positive covariance.
    """
    i, t = _pairs(image, text)
    w, v = image.weights[i], text.weights[t]  # [P, K]
    w, v = w - w.mean(0), v - v.mean(0)  # first: of nearly even weights, a difference of products would keep no digit
    together = np.einsum("pk,pk->k", w, v) / len(w)
    taken: list[int] = []
    for k in np.argsort(-together, kind="stable"):
        if len(taken) == count or together[k] <= 0:
            break
        if all(max(abs(_correlation(x[:, k], x[:, j])) for x in (w, v)) <= apart for j in taken):
            taken.append(int(k))
    return np.array(taken, int)


def _pairs(image: Activations, text: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Rows of images and of texts that belong together: every text with the first image of its record."""
    firsts = dict(zip(image.owners[::-1].tolist(), range(len(image.owners))[::-1], strict=True))
    found = [(firsts[o], t) for t, o in enumerate(text.owners.tolist()) if o in firsts]
    if len({image.owners[i] for i, _ in found}) < 2:
        raise ValueError("Codes are compared over pairs of images and texts: at least two records must have both.")
    i, t = np.array(found).T
    return i, t


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of values whose mean is 0."""
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def top_words(text: Activations, tokenizer: Any, count: int = 6, least: int = 1) -> list[list[tuple[str, float, int]]]:
    """The words that activate each of `text.codes` most.

    A word is a run of pieces up to the next space, or to where letters and other signs meet. Its logit is that of its
    strongest piece, averaged over its occurrences. `<sot>`, `<eot>` and signs alone are no words.

    Args:
        text: activations of texts, with logits.
        tokenizer: the run's, `predictor.streams.tokenizer`.
        count: words per code.
        least: rarer words are left out.

    Returns:
        Of each code, (word, logit, occurrences), the best first.
    """
    pieces = {int(i): tokenizer.decode([i]) for i in np.unique(text.ids[text.mask])}
    special = set(tokenizer.special.tolist())
    words: dict[str, list[np.ndarray]] = {}  # its logits [C], of each occurrence
    for ids, mask, logits in zip(text.ids, text.mask, text.logits, strict=True):
        row = [(int(i), x) for i, x in zip(ids[mask], logits[mask], strict=True) if int(i) not in special]
        for group in _grouped([pieces[i] for i, _ in row]):
            name = tokenizer.decode([row[n][0] for n in group]).strip()
            if any(map(_letter, name)):
                words.setdefault(name, []).append(np.max([row[n][1] for n in group], axis=0))
    names = [name for name, found in words.items() if len(found) >= least]
    means = np.array([np.mean(words[name], axis=0) for name in names]).reshape(-1, len(text.codes))  # [W, C]
    best = np.argsort(-means, axis=0, kind="stable")[:count]  # [count, C]
    return [[(names[w], float(means[w, c]), len(words[names[w]])) for w in best[:, c]] for c in range(len(text.codes))]


def _grouped(pieces: Sequence[str]) -> list[list[int]]:
    """Places of the pieces of each word."""
    groups: list[list[int]] = []
    last = " "
    for n, piece in enumerate(pieces):
        # A piece may be part of a letter, which is decoded as "\ufffd".
        first = piece[:1]
        if first.isspace() or last.isspace() or _letter(first) != _letter(last):
            groups.append([])
        groups[-1].append(n)
        last = piece[-1:] or last
    return groups


def _letter(sign: str) -> bool:
    return sign.isalnum() or sign == "\ufffd"


def top_patches(image: Activations, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The images with the patches that activate each of `image.codes` most, one patch of an image.

    Returns:
        Rows of `image` [C, count] and the patch of each [C, count], the best first.
    """
    logits = np.where(image.mask[..., None], image.logits, -np.inf)
    rows = np.argsort(-logits.max(1), axis=0, kind="stable")[:count].T  # [C, count]
    patches = logits.argmax(1)  # [M, C]
    return rows, patches[rows, np.arange(len(image.codes))[:, None]]


def heat_map(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Logits of an image's patches, [N], as they lie in an image of that height and width: [h, w].

    Raises:
        ValueError: if no grid of N square patches has these sides' ratio.
    """
    h = round((len(logits) * height / width) ** 0.5)
    if h < 1 or len(logits) % h or h * width != len(logits) // h * height:
        raise ValueError(f"{len(logits)} tokens are no grid of square patches of an image {height} x {width}.")
    return logits.reshape(h, -1)


def granularity(image: Activations, text: Activations, others: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """How many codes an example uses, and how many of them the two sides of a pair have in common.

    Args:
        image: activations of images.
        text: of texts.
        others: mismatched pairs per matched pair: its image, and texts of other records.
        seed: which.

    Returns:
        "image" [M], "text" [M']: active codes of each example. Of P matched and about P * `others` mismatched pairs,
        "jaccard/matched" and "jaccard/mismatched": codes that are active on both sides, over those on either;
        "weight/matched" and "weight/mismatched": sum over k of min(w_k, v_k), the weight in common, 1 for equal sides.
    """
    i, t = _pairs(image, text)
    shifts = np.random.default_rng(seed).choice(len(i) - 1, min(others, len(i) - 1), replace=False) + 1
    left, right = np.tile(i, len(shifts)), np.concatenate([np.roll(t, -s) for s in shifts])
    apart = image.owners[left] != text.owners[right]
    found = {"image": (image.weights > image.threshold).sum(1), "text": (text.weights > text.threshold).sum(1)}
    for name, a, b in (("matched", i, t), ("mismatched", left[apart], right[apart])):
        parts = [_overlap(image, a[n : n + ROWS], text, b[n : n + ROWS]) for n in range(0, len(a), ROWS)]
        found[f"jaccard/{name}"], found[f"weight/{name}"] = np.concatenate(parts, axis=1)
    return found


def _overlap(image: Activations, i: np.ndarray, text: Activations, t: np.ndarray) -> np.ndarray:
    """Jaccard index and weight in common of pairs, [2, P]."""
    w, v = image.weights[i], text.weights[t]
    on, also = w > image.threshold, v > text.threshold
    return np.array([(on & also).sum(1) / np.maximum((on | also).sum(1), 1), np.minimum(w, v).sum(1)])


def figure_of_codes(
    predictor: Predictor, source: Any, image: Activations, text: Activations, count: int = 6, least: int = 1
) -> Figure:
    """Draws a row per code: its words, and its images with the code's logits as a heat map over the patches.

    Images are what the stream's ops on the host make of them, crops and all. A code's colours go from its mean logit
    over all patches of all images (none) to its largest one.

    Args:
        predictor: the model.
        source: that `image` and `text` come from.
        image: activations with logits.
        text: of the same codes.
        count: words, and images, per code.
        least: as for `top_words`.

    Raises:
        ValueError: if the activations were taken without codes.
    """
    from matplotlib.figure import Figure

    if not len(image.codes):
        raise ValueError("There are no codes to draw: name some, activations(predictor, source, codes).")
    words = top_words(text, predictor.streams.tokenizer, count, least)
    rows, _ = top_patches(image, count)
    figure = Figure(figsize=(1.15 * rows.shape[1] + 2.3, 2.1 * len(rows) + 0.5), layout="constrained", dpi=80)
    widths = [2] + [1] * rows.shape[1]
    axes = figure.subplots(len(rows), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for c, (row, found, at) in enumerate(zip(axes, words, rows, strict=True)):
        row[0].axis("off")
        row[0].text(0, 1, f"code {image.codes[c]}", weight="bold", fontsize=9, va="top")
        lines = "\n".join(f"{textwrap.shorten(w, 20)}  {logit:.1f}  ({n})" for w, logit, n in found)
        row[0].text(0, 0.88, lines, fontsize=8, va="top", linespacing=1.4)
        logits = image.logits[..., c]
        low, high = logits[image.mask].mean(), logits[image.mask].max()
        for ax, m in zip(row[1:], at, strict=True):
            picture = _as_seen(predictor, source, int(image.owners[m]))
            _overlay(ax, picture, (heat_map(logits[m], *picture.shape[:2]) - low) / max(high - low, 1e-30))
            ax.set_title(f"{logits[m].max():.1f}", fontsize=7, pad=2)
    note = "Words: mean logit (occurrences). Images: the largest logit of a patch; red where the logits are high."
    _credit(figure, f"{note} {getattr(source, 'attribution', '')}")
    return figure


def _as_seen(predictor: Predictor, source: Any, record: int) -> np.ndarray:
    """A record's image [H, W, 3] in [0, 1], after the stream's host ops."""
    streams = predictor.streams
    value = look_up(streams.record(source[record], record), streams.chains["image"].field)
    data = streams.one("image", value)["data"]
    if data.dtype == np.uint8:
        return data / 255
    return (data - data.min()) / max(data.max() - data.min(), 1e-30)


def _overlay(ax, picture: np.ndarray, heat: np.ndarray) -> None:
    """The image, and below it in grey under a colour that is the stronger the higher `heat` [h, w] is, in [0, 1]."""
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    ax.imshow(picture, extent=extent, interpolation="bilinear")
    # Colours on colours can't be told apart: the heat map lies on a grey and pale copy.
    grey = np.repeat(0.35 + 0.65 * picture.mean(-1, keepdims=True), 3, axis=-1)
    extent = (0, width, 2 * height, height)
    ax.imshow(grey, extent=extent, interpolation="bilinear")
    red = np.full((*heat.shape, 4), (0.85, 0.05, 0.1, 0.0))
    red[..., 3] = 0.75 * np.clip(heat, 0, 1)
    ax.imshow(red, extent=extent, interpolation="bicubic")
    ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(2 * height, 0))
    ax.spines[:].set_visible(False)


def figure_of_granularity(found: dict[str, np.ndarray]) -> Figure:
    """Draws what `granularity` found: a histogram of active codes; for pairs, how many have at least so much in common.

    Where few codes are active most pairs share none, and a histogram would show little else than that.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3), layout="constrained", dpi=80)
    left, *axes = figure.subplots(1, 3)
    both = np.concatenate([found["image"], found["text"]])
    step = int(both.max() - both.min()) // 30 + 1
    bins = np.arange(both.min() - step / 2, both.max() + step, step)  # whole numbers lie in the middle
    for name, of, color in (("images", "image", IMAGE), ("captions", "text", TEXT)):
        share = np.full(len(found[of]), 1 / len(found[of]))
        left.hist(found[of], bins, weights=share, color=color, alpha=0.6, label=f"{name}, mean {found[of].mean():.3g}")
    left.set(title="active codes", xlabel="codes", ylabel="share of examples")
    left.set_ylim(0, left.get_ylim()[1] * 1.3)  # room for the legend
    for ax, of, title in zip(axes, ("jaccard", "weight"), ("active codes in common", "weight in common"), strict=True):
        for name, color in (("matched", MATCHED), ("mismatched", MISMATCHED)):
            x = np.sort(found[f"{of}/{name}"])
            y = 1 - np.arange(len(x)) / len(x)  # share of pairs that have at least x
            label = f"{name} pairs, mean {x.mean():.3g}"
            ax.plot(np.r_[0, x], np.r_[1, y], drawstyle="steps-pre", color=color, lw=1.8, label=label)
        ax.set(title=title, xlabel="at least this Jaccard index" if of == "jaccard" else "at least this weight")
        ax.set(ylabel="share of pairs", xlim=(0, None), ylim=(0, 1.3), yticks=np.linspace(0, 1, 6))
    for ax in (left, *axes):
        ax.title.set_fontsize(10)
        ax.legend(fontsize=8, frameon=False, loc="upper right")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _credit(figure: Figure, text: str) -> None:
    """A line at the foot: how to read the figure, and whose the images are."""
    text = textwrap.fill(text, int(16 * figure.get_figwidth()), break_on_hyphens=False)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color="#555555")
