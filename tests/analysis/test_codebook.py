"""What is said of codes is what the readout computes, and what numpy finds by looking at every entry."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import erf

import mmcl_jax
from mmcl_jax import config as configs
from mmcl_jax.analysis import codebook
from mmcl_jax.analysis.codebook import Activations
from mmcl_jax.build import build
from mmcl_jax.data import sources, tokenizers
from mmcl_jax.encoders.fdt import Fdt
from tests.conftest import make_mesh

DATA = {"source": "synthetic", "size": 21, "split": "test"}
CODES = (3, 60, 17)


def untrained(folder, config, *overrides):
    """A predictor with the weights that a run begins with."""
    parts = build(configs.load(f"{config}:tiny", ["batch=16", *overrides]), folder, make_mesh("1"))
    state = jax.jit(parts.init)(jax.random.key(0))
    parts.predictor.params, parts.predictor.extra = state.params, state.extra
    return parts.predictor


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    config = Path(__file__).parent.parent.parent / "configs/fdt_emoji.py"
    return untrained(tmp_path_factory.mktemp("run"), config, "method.readout.temperature=0.5")


@pytest.fixture(scope="module")
def found(predictor):
    return codebook.activations(predictor, sources.make(DATA), CODES)


def sparsemax(a):
    """The projection onto the simplex: max(a - tau, 0) with the tau by which it sums to 1, found by bisection."""
    low, high = a.max() - 1, a.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(a - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(a - low, 0)


def tokens_of(method, params, extra, batch, ctx):
    return {k: dict(tokens=e.tokens, mask=e.mask) for k, e in method.encode(params, extra, batch, ctx)[0].items()}


def test_weights_and_logits_are_the_readouts(predictor, found):
    encoded = predictor.embed_source(sources.make(DATA), ["image", "text"], of=tokens_of).vectors
    readout = predictor.method.readouts["image"]
    codes = np.asarray(predictor.params["codebook"], np.float64)
    for name, mine in found.items():
        x = encoded[name]["tokens"].astype(np.float64)
        for i in (1, 2):
            norm, dense = (
                jax.tree.map(np.asarray, predictor.params[f"{name}_readout"][f"{kind}{i}"])
                for kind in ("norm", "dense")
            )
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm[
                "bias"
            ]
            x = x @ dense["kernel"] + dense["bias"]
            x = x * (1 + erf(x / 2**0.5)) / 2 if i == 1 else x
        logits = x @ codes.T / readout.dim**0.5
        np.testing.assert_allclose(mine.logits, logits[..., CODES], atol=1e-4)
        mask = np.ones(x.shape[:2], bool) if name == "image" else encoded[name]["mask"]
        np.testing.assert_array_equal(mine.mask, mask)
        pooled = np.where(mask[..., None], logits, 0).max(1) / readout.temperature
        np.testing.assert_allclose(mine.weights, [sparsemax(a) for a in pooled], atol=1e-5)
        assert mine.weights.shape == (len(mine.owners), 64) and mine.threshold == 0
        assert (mine.weights == 0).any()
    assert found["image"].ids is None and found["image"].logits.shape == (21, 16, 3)
    assert (~found["text"].mask).any(), "some captions are shorter than others"
    assert len(found["text"].owners) == 42, "two captions of each"


def test_raw_values_are_activated_as_records_are(predictor, found):
    records = [predictor.streams.record(sources.make(DATA)[i], i) for i in range(3)]
    field = predictor.streams.chains["text"].field
    texts = [text for r in records for text in r[field]]
    alone = codebook.activations(predictor, codes=CODES, image=[r["image"] for r in records], text=texts)
    for name, mine in alone.items():
        np.testing.assert_allclose(mine.weights, found[name].weights[: len(mine.owners)], atol=1e-6)
        np.testing.assert_allclose(mine.logits, found[name].logits[: len(mine.owners)], atol=1e-5)
    np.testing.assert_array_equal(alone["text"].ids, found["text"].ids[:6])
    assert predictor.streams.tokenizer.decode(alone["text"].ids[0]).strip() == texts[0].lower()


def test_softmax_and_weights_of_each_token(predictor):
    own = predictor.method.readouts["image"]
    readout = Fdt(own.dim, codes=64, attention="softmax", pool="none", temperature=1.0)
    method = dataclasses.replace(predictor.method, readouts={"image": readout, "text": readout})
    found = codebook.activations(dataclasses.replace(predictor, method=method), sources.make(DATA), range(64))
    for mine in found.values():
        assert mine.threshold == 1 / 64
        each = np.exp(mine.logits) / np.exp(mine.logits).sum(-1, keepdims=True)
        mean = [w[m].mean(0) for w, m in zip(each, mine.mask, strict=True)]
        np.testing.assert_allclose(mine.weights, mean, atol=1e-5)


def test_a_heat_map_lies_where_the_image_changed(predictor):
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1, 8:12, 4:8] = 255  # of 4 x 4 patches the one in row 2, column 1
    black, changed = codebook.activations(predictor, codes=range(64), image=images)["image"].logits  # [16, 64]
    where = codebook.heat_map(np.linalg.norm(changed - black, axis=-1), 16, 16)
    assert np.unravel_index(where.argmax(), (4, 4)) == (2, 1)


def test_heat_maps_of_images_that_are_not_square():
    np.testing.assert_array_equal(codebook.heat_map(np.arange(8), 32, 64), [[0, 1, 2, 3], [4, 5, 6, 7]])
    with pytest.raises(ValueError, match="9 tokens are no grid"):
        codebook.heat_map(np.arange(9), 32, 64)


def made(seed=0, m=7, n=5, k=12, codes=(2, 9), **changes):
    """Activations made of random numbers, not of a model."""
    rng = np.random.default_rng(seed)
    weights = np.array([sparsemax(a) for a in rng.normal(size=(m, k))])
    mask = np.arange(n) < rng.integers(2, n + 1, m)[:, None]
    logits = rng.normal(size=(m, n, len(codes)))
    return Activations(weights, np.array(codes), logits, mask, None, np.arange(m), 0.0, **changes)


def test_words_are_made_of_pieces():
    text = "a bee-keeper bee bees 北京 !"
    tokenizer = tokenizers.train([text.replace(" bees", "")], vocab=300)
    ids, mask = tokenizer.encode(text, 40)
    logits = np.stack([np.linspace(0, 1, 40), np.linspace(1, 0, 40)], axis=-1)  # [N, 2]
    x = Activations(np.ones((1, 4)) / 4, np.array([0, 3]), logits[None], mask[None], ids[None], np.arange(1), 0.0)
    rising, falling = codebook.top_words(x, tokenizer, count=9)
    assert [w for w, _, _ in rising] == ["北京", "bees", "keeper", "bee", "a"]
    assert [w for w, _, _ in falling][0] == "a"
    assert {w: n for w, _, n in rising} == {"北京": 1, "bees": 1, "keeper": 1, "bee": 2, "a": 1}
    # "bee" occurs twice: the strongest of its pieces each time, and the mean of both.
    pieces = [tokenizer.decode([i]) for i in ids[mask]]
    ends = [n for n in range(len(pieces)) if "".join(pieces[1 : n + 1]).endswith(("a bee", "keeper bee"))]
    assert dict((w, x) for w, x, _ in rising)["bee"] == pytest.approx(np.mean(logits[ends, 0]))
    assert [w for w, _, _ in codebook.top_words(x, tokenizer, least=2)[0]] == ["bee"]
    assert codebook.top_words(x, tokenizer, least=3) == [[], []]


def test_words_and_patches_agree_with_a_look_at_every_token(predictor, found):
    text, tokenizer = found["text"], predictor.streams.tokenizer
    occurrences = {}
    for m in range(len(text.ids)):
        words = []  # (ids, places)
        for n in np.flatnonzero(text.mask[m]):
            piece = tokenizer.backend.id_to_token(int(text.ids[m, n]))
            if piece.startswith("<"):
                continue
            if piece.startswith("Ġ") or not words:  # the synthetic captions have no signs
                words.append(("", []))
            words[-1] = (words[-1][0] + piece.removeprefix("Ġ"), [*words[-1][1], n])
        for name, places in words:
            occurrences.setdefault(name, []).append(text.logits[m, places].max(0))
    for c, listed in enumerate(codebook.top_words(text, tokenizer, count=4)):
        wanted = sorted(((np.mean(x, axis=0)[c], name, len(x)) for name, x in occurrences.items()), reverse=True)[:4]
        assert [(w, n) for w, _, n in listed] == [(name, n) for _, name, n in wanted]
        np.testing.assert_allclose([x for _, x, _ in listed], [x for x, _, _ in wanted], rtol=1e-5)

    rows, patches = codebook.top_patches(found["image"], 5)
    for c in range(3):
        wanted = sorted(range(21), key=lambda m: -max(found["image"].logits[m, :, c]))[:5]
        assert rows[c].tolist() == wanted
        assert patches[c].tolist() == [int(found["image"].logits[m, :, c].argmax()) for m in wanted]


def test_granularity_agrees_with_a_look_at_every_pair():
    image, text = made(0), made(1)
    # records 1 and 4 have no image; record 0 has two captions
    image = dataclasses.replace(image, owners=np.array([0, 2, 3, 5, 6, 7, 8]))
    text = dataclasses.replace(text, owners=np.array([0, 0, 1, 2, 4, 5, 8]))
    pairs = [(0, 0), (0, 1), (1, 3), (3, 5), (6, 6)]

    def sides(i, t):
        a, b = ({k for k in range(12) if x[k] > 0} for x in (image.weights[i], text.weights[t]))
        return len(a & b) / len(a | b), sum(min(image.weights[i, k], text.weights[t, k]) for k in range(12))

    for others in (2, 10):
        found = codebook.granularity(image, text, others)
        assert found["image"].tolist() == [sum(w > 0) for w in image.weights]
        assert found["text"].tolist() == [sum(w > 0) for w in text.weights]
        wanted = np.array([sides(i, t) for i, t in pairs]).T
        np.testing.assert_allclose([found["jaccard/matched"], found["weight/matched"]], wanted)
        every = {
            tuple(np.round(sides(i, t), 6)) for i, _ in pairs for _, t in pairs if image.owners[i] != text.owners[t]
        }
        mismatched = set(zip(found["jaccard/mismatched"].round(6), found["weight/mismatched"].round(6), strict=True))
        assert mismatched == every if others == 10 else mismatched < every
    with pytest.raises(ValueError, match="at least two records must have both"):
        codebook.granularity(image, dataclasses.replace(text, owners=np.array([0, 0, 1, 4, 9, 9, 9])))


def test_shared_codes_tell_matched_pairs():
    rng = np.random.default_rng(0)
    image, text = made(0, m=200), made(1, m=200)
    w, v = 0.01 * rng.random((2, 200, 12))
    on = rng.random((3, 200)) < 0.3
    w[:, 4] += 0.2 * on[0]  # alike in both
    v[:, 4] += 0.2 * on[0]
    w[:, 7] += 0.1 * on[1]  # alike, and smaller
    v[:, 7] += 0.1 * on[1]
    w[:, 5] += 0.15 * on[0]  # says what code 4 says
    v[:, 5] += 0.15 * on[0]
    w[:, 1] += 0.9 * on[2]  # used much, by images alone
    v[:, 2] += 0.9  # by all captions alike
    image, text = dataclasses.replace(image, weights=w), dataclasses.replace(text, weights=v)
    assert codebook.shared_codes(image, text, 2).tolist() == [4, 7]
    assert codebook.shared_codes(image, text, 3, apart=1.0).tolist() == [4, 5, 7]


def test_figures_are_written(predictor, found, tmp_path):
    figure = codebook.figure_of_codes(predictor, sources.make(DATA), **found, count=3)
    figure.savefig(tmp_path / "codes.png")
    assert len(figure.axes) == 3 * 4
    picture, grey, heat = figure.axes[1].images
    assert heat.get_array().shape == (4, 4, 4) and picture.get_extent() == [0, 16, 16, 0]
    assert heat.get_extent() == grey.get_extent() == [0, 16, 32, 16], "the heat map covers the grey copy"
    codebook.figure_of_granularity(codebook.granularity(**found)).savefig(tmp_path / "granularity.png")
    assert (tmp_path / "codes.png").stat().st_size > 5000 and (tmp_path / "granularity.png").stat().st_size > 5000


def test_wrong_use_is_told(predictor, tmp_path, repository):
    with pytest.raises(ValueError, match="There is no code 64; there are 0 to 63"):
        codebook.activations(predictor, sources.make(DATA), [64])
    with pytest.raises(ValueError, match="no stream 'audio'"):
        codebook.activations(predictor, audio=[1])
    with pytest.raises(ValueError, match="no codes to draw"):
        source = sources.make(DATA)
        codebook.figure_of_codes(predictor, source, **codebook.activations(predictor, source))
    without = untrained(tmp_path, repository / "configs/clip_emoji.py")
    with pytest.raises(ValueError, match="no codes: its readouts are Linear. Train one with"):
        codebook.activations(without, sources.make(DATA))


def test_the_notebook_runs(predictor, repository, monkeypatch):
    """Its cells, on another run and other data, without jupyter."""
    file = repository / "notebooks/codebook.ipynb"
    assert file.stat().st_size < 2e6
    cells = [c for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
    monkeypatch.setattr(mmcl_jax, "load", lambda run: predictor)
    synthetic = sources.make(DATA)
    monkeypatch.setattr(sources, "make", lambda config: synthetic)
    namespace = {}
    for cell in cells:
        exec("".join(line for line in cell["source"] if not line.startswith("%")), namespace)
    assert len(namespace["codes"]) and namespace["numbers"]["jaccard/matched"].shape == (42,)
