"""Masked tokens, changed words, drawn captions, and how nested arrays travel to the device."""

import dataclasses
import importlib.util
import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmcl_jax import config as configs
from mmcl_jax import parallel, predict
from mmcl_jax.build import build
from mmcl_jax.data import mix, ops, pipeline, record, sources, tokenizers, words
from mmcl_jax.encoders import text as text_encoder
from mmcl_jax.evals import show
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Stream
from tests.conftest import make_mesh

TEXTS = ["a red square on white", "a blue disc on pink", "green ring behind a cross in brown"]
PLAIN = tokenizers.train(TEXTS, 300)
MASKING = tokenizers.train(TEXTS, 300, mask=True)
STREAMS = {"image": "decode|crop(12) || normalize", "text/v0": "captions: pick|tokenize(12)|mlm(.15)",
           "text/v1": "captions: pick|tokenize(12)"}  # fmt: skip


def rng(seed=0):
    return np.random.default_rng(seed)


def masked(times, p=0.15, text="green ring behind a cross in brown", length=24):
    tokens = ops.tokenize(text, length, tokenizer=MASKING)
    made = [ops.mlm(tokens, p, tokenizer=MASKING, rng=rng(i)) for i in range(times)]
    return tokens, pipeline.stack(made)


# Tokenizers.


def test_the_mask_is_one_more_id_at_the_end():
    short = tokenizers.train(TEXTS, 299)
    assert PLAIN.mask is None and list(PLAIN.special) == [0, 1, 2]
    assert MASKING.mask == len(MASKING) - 1 and len(MASKING) == len(short) + 1 <= 300
    assert list(MASKING.special) == [0, 1, 2, MASKING.mask]
    for text in (*TEXTS, "unseen 日本"):
        np.testing.assert_array_equal(MASKING.encode(text, 20)[0], short.encode(text, 20)[0])
    assert sorted([*MASKING.special, *MASKING.ordinary]) == list(range(len(MASKING)))


def test_the_mask_comes_from_no_text_and_is_not_decoded(tmp_path):
    MASKING.save(tmp_path / "tokenizer.json")
    for tokenizer in (MASKING, pickle.loads(pickle.dumps(MASKING)), tokenizers.load(tmp_path / "tokenizer.json")):
        assert tokenizer == MASKING and tokenizer.mask == MASKING.mask
        ids, _ = tokenizer.encode("a <mask> on <mask>", 40)
        assert tokenizer.mask not in ids
        assert tokenizer.decode(ids).strip() == "a <mask> on <mask>"
        ids, _ = tokenizer.encode("a ring", 12)
        assert tokenizer.decode([*ids[:2], tokenizer.mask, *ids[2:]]).strip() == "a ring"


def data_config(**streams):
    part = dict(path="", vocab=300, fields=("captions",), lower=True)
    return ConfigDict(dict(streams=streams, record="", tokenizer=part))


def test_a_run_has_a_mask_if_a_stream_masks(tmp_path):
    source = [[{"captions": TEXTS}]]
    without = data_config(text="captions: pick|tokenize(8)", mlm="photo: decode")
    made = pipeline.make_tokenizer(without, source, tmp_path / "without")
    assert made == PLAIN, "a name or a field alone masks nothing"
    masks = data_config(**{"text/v0": "captions: pick|tokenize(8)|mlm"})
    assert pipeline.make_tokenizer(masks, source, tmp_path / "with") == MASKING

    saved = tmp_path / "without/tokenizer.json"
    with pytest.raises(ConfigError, match=r"text/v0 masks tokens(.|\n)*without <mask>(.|\n)*init_from.rules"):
        pipeline.make_tokenizer(masks, source, tmp_path / "new", inherited=saved)
    with pytest.raises(ConfigError, match="begin a new run"):
        pipeline.make_tokenizer(masks, source, tmp_path / "without", begun=True)
    masks.tokenizer.path = str(saved)
    with pytest.raises(ConfigError, match="leave data.tokenizer.path empty"):
        pipeline.make_tokenizer(masks, source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    masks.tokenizer.path = str(tmp_path / "with/tokenizer.json")
    assert pipeline.make_tokenizer(masks, source, tmp_path / "new") == MASKING


# Masked tokens.


def test_masking_keeps_its_proportions():
    tokens, made = masked(8000)
    ids, labels, original = made["data"]["ids"], made["data"]["labels"], tokens["data"]
    assert ids.dtype == labels.dtype == np.int32 and ids.shape == labels.shape == (8000, 24)
    np.testing.assert_array_equal(made["mask"], np.broadcast_to(tokens["mask"], ids.shape))

    chosen = labels != -100
    may = tokens["mask"] & ~np.isin(original, MASKING.special)
    assert 5 < may.sum() < 24 and not chosen[:, ~may].any()
    np.testing.assert_array_equal(labels[chosen], np.broadcast_to(original, ids.shape)[chosen])
    np.testing.assert_array_equal(ids[~chosen], np.broadcast_to(original, ids.shape)[~chosen])

    n = chosen.sum()
    assert abs(chosen[:, may].mean(0) - 0.15).max() < 5 * (0.15 * 0.85 / 8000) ** 0.5, "each place alike"
    is_mask, same = (ids == MASKING.mask) & chosen, (ids == labels) & chosen
    other = chosen & ~is_mask & ~same
    for part, share in ((is_mask, 0.8), (same, 0.1), (other, 0.1)):
        assert abs(part.sum() / n - share) < 5 * (share * (1 - share) / n) ** 0.5 + 1 / len(MASKING.ordinary)
    assert not np.isin(ids[other], MASKING.special).any()
    assert len(np.unique(ids[other])) > 0.9 * len(MASKING.ordinary), "the whole vocabulary"


def test_masking_all_or_nothing():
    tokens, none = masked(3, p=0.0)
    np.testing.assert_array_equal(none["data"]["ids"][0], tokens["data"])
    assert (none["data"]["labels"] == -100).all()
    _, all_of_them = masked(3, p=1.0)
    assert ((all_of_them["data"]["labels"] != -100).sum(1) == tokens["mask"].sum() - 2).all()
    _, empty = masked(3, p=1.0, text="")
    assert (empty["data"]["labels"] == -100).all()


def streams_of(config=STREAMS, seed=3, tokenizer=MASKING, source=None, chain=""):
    source = source if source is not None else sources.make({"source": "synthetic", "size": 40})
    made = pipeline.Streams(config, seed, tokenizer, chain)
    made.find_spec(source)
    return made, source


def test_masking_is_a_function_of_seed_and_position():
    def made(seed, position):
        streams, source = streams_of(seed=seed)
        return streams.element(source[0], position)["streams"]["text/v0"]["data"]["ids"]

    np.testing.assert_array_equal(made(3, 5), made(3, 5))
    several = {made(seed, position).tobytes() for seed in (3, 4) for position in range(8)}
    assert len(several) > 5


@pytest.mark.parametrize("chain, tokenizer, told", [
    ("captions: pick|mlm|tokenize(8)", MASKING, "put tokenize"),
    ("captions: pick|tokenize(8)|mlm", PLAIN, "needs a tokenizer with <mask>"),
])  # fmt: skip
def test_masking_in_the_wrong_place(chain, tokenizer, told):
    with pytest.raises(ConfigError, match=told):
        streams_of({"text": chain}, tokenizer=tokenizer)


# Nested arrays on their way.


def test_nested_arrays_reach_the_device(tmp_path):
    streams, source = streams_of()
    batch = pipeline.Pipeline(mix.Mixed([source], [1.0], 3), streams, 16)
    host = next(batch.batches(0))
    device = predict.device_streams(streams, 3)
    mesh = make_mesh("8")
    rows = parallel.put_rows({k: host[k] for k in ("streams", "position")}, mesh)
    found = jax.jit(device)(rows)
    assert set(found) == set(STREAMS)
    for key in ("ids", "labels"):
        np.testing.assert_array_equal(found["text/v0"].data[key], host["streams"]["text/v0"]["data"][key])
    assert found["text/v0"].data["ids"].shape == found["text/v1"].data.shape == (16, 12)

    sample = predict.sample_batch(streams, device)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), dict(found))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), sample) == jax.tree.map(lambda x: (x.shape, x.dtype), like)

    streams.write_spec(tmp_path / "spec.json")
    again = pipeline.Streams(STREAMS, 3, MASKING)
    again.read_spec(tmp_path / "spec.json")
    assert json.dumps(pipeline.each(lambda v: [v.dtype.name, v.shape], again.spec)) == json.dumps(
        pipeline.each(lambda v: [v.dtype.name, v.shape], streams.spec)
    )
    arrays = again.one("text/v0", TEXTS)
    assert arrays["data"]["labels"].shape == (12,)
    older = {k: {part: v for part, v in s.items() if part != "present"} for k, s in streams.spec.items()}
    (tmp_path / "older.json").write_text(json.dumps(pipeline.each(lambda v: [v.dtype.name, list(v.shape)], older)))
    again.read_spec(tmp_path / "older.json")  # of a run from before there could be several clips
    assert not again.one_or_none("text/v0", None)["present"] and again.one_or_none("text/v0", TEXTS)["present"]


def test_a_missing_text_is_zeros_and_a_misfit_is_told():
    class Some:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return {"id": i} if i == 2 else {"id": i, "captions": TEXTS}

    streams, source = streams_of({"text": STREAMS["text/v0"]}, source=Some())
    batch = pipeline.stack([streams.element(source[i], i) for i in range(4)])["streams"]["text"]
    assert list(batch["present"]) == [True, True, False, True]
    assert not batch["data"]["ids"][2].any() and not batch["data"]["labels"][2].any() and not batch["mask"][2].any()
    streams.spec["text"]["data"]["labels"] = np.zeros(9, np.int32)
    value, problem = streams.run("text", source[0], 0)
    assert value is None and "data/labels is int32(12,), expected int32(9,)" in problem


def test_device_ops_get_a_dict_whole(monkeypatch):
    from mmcl_jax.augment import ops as device_ops

    def negative(data):
        return {k: -v for k, v in data.items()}

    negative.__module__ = device_ops.__name__
    monkeypatch.setattr(device_ops, "negative", negative, raising=False)
    streams, source = streams_of({"text": STREAMS["text/v0"] + " || negative(;.5)"})
    host = pipeline.stack([streams.element(source[i], i) for i in range(40)])
    found = jax.jit(predict.device_streams(streams, 3))({k: host[k] for k in ("streams", "position")})["text"].data
    sent = host["streams"]["text"]["data"]
    turned = (np.asarray(found["ids"]) == -sent["ids"]).all(1)
    assert 8 < turned.sum() < 32
    for key in ("ids", "labels"):
        np.testing.assert_array_equal(found[key], np.where(turned[:, None], -sent[key], sent[key]))


def test_the_text_tower_reads_ids_of_either_form():
    tower = text_encoder.make("mu", vocab=300, width=16, depth=1, heads=2, mlp=32)
    ids, mask = (jnp.asarray(x)[None] for x in MASKING.encode("a ring", 8))
    params = tower.init(jax.random.key(0), Stream(ids, mask))
    nested = tower.apply(params, Stream({"ids": ids, "labels": ids}, mask))
    np.testing.assert_array_equal(nested.pooled, tower.apply(params, Stream(ids, mask)).pooled)


def test_a_run_is_built_told_and_drawn(tmp_path, repository, capsys):
    """A step of CLIP on masked captions, the table of streams, a doctor's line, the contact sheet and an embedding."""
    from mmcl_jax import doctor, train

    masking = "captions: pick|tokenize(12)|mlm"
    config = configs.load(f"{repository}/configs/clip.py:tiny", [f"data.streams.text={masking}", "batch=16"])
    config.data.eval_streams.text = "captions: first|tokenize(12)|mlm(0.0)"
    mesh = make_mesh("8")
    configs.resolve(config, mesh.size)
    parts = build(config, tmp_path, mesh)
    state = jax.jit(parts.init, out_shardings=parts.sharding)(jax.random.key(0))
    records = pipeline.Pipeline(mix.Mixed(parts.sources, parts.weights, 0), parts.streams, 16)
    host = next(records.batches(0))
    rows = parallel.put_rows({k: host[k] for k in ("streams", "position")}, mesh)
    state, metrics = parts.train_step(state, rows)
    assert np.isfinite(metrics["loss"])

    train.describe(config, tmp_path, mesh, parts.streams, parts.sources, parts.shapes.params)
    assert "labels int32[16, 12]" in capsys.readouterr().out.replace("\n", " ")
    told = [f.text for f in doctor._shapes(config, parts, 2, tmp_path, False) if f.about == "stream"]
    assert any("data/ids int32[2, 12], data/labels int32[2, 12], mask bool[2, 12]" in t for t in told)
    show.contact_sheet(config, tmp_path / "sheet.png", count=4)
    assert (tmp_path / "sheet.png").stat().st_size > 0
    trained = dataclasses.replace(parts.predictor, params=state.params, extra=state.extra)
    assert trained.embed(text=["a red ring"])["text"].shape == (1, 32)


# Words.


def test_a_word_is_replaced_wherever_it_stands():
    known = {"red": ["crimson"], "on": ["upon"]}
    for i in range(20):
        changed = words.replace("red ring on red".split(), lambda w: known.get(w, ()), rng(i))
        assert changed == "crimson ring on crimson".split(), "stop words stay, words without synonyms are passed over"
    assert words.replace(["ring"], lambda w: (), rng()) == ["ring"]
    assert words.replace(["on", "the"], lambda w: ["x"], rng()) == ["on", "the"]
    assert {words.replace(["ring"], lambda w: ["a", "b"], rng(i))[0] for i in range(20)} == {"a", "b"}


def test_two_words_change_places():
    given = list("abc")
    found = {"".join(words.swap(given, rng(i))) for i in range(40)}
    assert found == {"bac", "cba", "acb"} and given == list("abc")
    assert words.swap(["a"], rng()) == ["a"] and words.swap([], rng()) == []


def test_words_are_left_out():
    given = [str(i) for i in range(10)]
    made = [words.delete(given, rng(i)) for i in range(2000)]
    assert abs(np.mean([len(m) for m in made]) - 9) < 0.1
    assert all(m == [w for w in given if w in m] for m in made), "their order stays"
    assert all(words.delete(["a"], rng(i)) == ["a"] for i in range(100))
    assert {words.delete(["a", "b"], rng(i), p=1.0)[0] for i in range(20)} == {"a", "b"}
    assert words.delete([], rng()) == []


def test_three_changes_are_as_likely(monkeypatch):
    for name in ("replace", "swap", "delete"):
        monkeypatch.setattr(words, name, lambda *_, name=name: [name])
    made = [words.change("a b", lambda w: (), rng(i)) for i in range(3000)]
    assert all(abs(made.count(name) - 1000) < 150 for name in ("replace", "swap", "delete"))


# Record ops.


def test_draw_makes_one_caption_of_several():
    texts = {"captions": ["a", "b", "c"]}
    drawn = [record.draw(texts, "captions", "caption", 0.8, rng=rng(i))["caption"] for i in range(600)]
    assert set(drawn) == {"a", "b", "c"} and abs(drawn.count("a") / 600 - (0.8 + 0.2 / 3)) < 0.06
    assert record.draw({"x": {"en": "a cat"}}, "x/en", "caption", rng=rng())["caption"] == "a cat"
    assert record.draw({"x": b"a cat"}, "x", "caption", rng=rng())["caption"] == b"a cat"
    for nothing in ({}, {"captions": []}, {"captions": None}):
        assert record.draw(nothing, "captions", "caption", rng=rng()) == nothing


def test_eda_takes_words_of_the_record():
    given = {"caption": "grinning cat", "tags": {"en": ["Cat", "face", b"smile"]}}
    made = [record.eda(given, "caption", "other", "tags/en", rng=rng(i))["other"] for i in range(300)]
    assert set(made) == {"grinning cat", "cat grinning", "grinning", "cat", "face cat", "smile cat", "grinning face",
                         "grinning smile"}  # fmt: skip
    for tags in ({}, {"tags": None}, {"tags": []}):
        one = [record.eda({"caption": b"cat"} | tags, "caption", "other", "tags", rng=rng(i)) for i in range(30)]
        assert {r["other"] for r in one} == {"cat"}, "a lone word survives"
    assert record.eda({"caption": ""}, "caption", "other", "tags", rng=rng())["other"] == ""
    assert record.eda({"tags": ["a"]}, "caption", "other", "tags", rng=rng()) == {"tags": ["a"]}
    with pytest.raises(ConfigError, match="one text, 'captions' is a list; draw"):
        record.eda({"captions": ["a"]}, "captions", "other", "tags", rng=rng())


def test_two_views_of_one_caption():
    chain = "draw('captions', 'caption', main=.5)|eda('caption', 'changed', synonyms='captions')"
    streams, source = streams_of(
        {"text/v0": "caption: tokenize(40)|mlm(0.0)", "text/v1": "changed: tokenize(40)"}, chain=chain
    )
    texts = set()
    for i in range(20):
        made = streams.record(source[i], i)
        element = streams.element(source[i], i)["streams"]
        assert MASKING.decode(element["text/v0"]["data"]["ids"]).strip() == made["caption"] in made["captions"]
        assert MASKING.decode(element["text/v1"]["data"]).strip() == made["changed"]
        texts.add(made["caption"] == made["changed"])
    assert texts == {True, False}


def test_wordnet_that_is_missing_is_told_before_training(monkeypatch):
    words.wordnet.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(words, "Path", lambda path: Path("/nowhere"))
    chain = "draw('captions', 'caption')|eda('caption', 'changed')"
    with pytest.raises(ConfigError, match=r"pip install 'mmcl-jax\[eda\]'"):
        streams_of({"text": "changed: tokenize(12)"}, chain=chain)


def test_synonyms_of_wordnet():
    try:
        synonyms = words.wordnet()
    except ConfigError as e:
        pytest.skip(str(e))
    assert {"hound", "domestic dog", "chase"} <= set(synonyms("dog")) and "dog" not in synonyms("dog")
    assert {"dog", "hound"} <= set(synonyms("dogs")), "endings"
    assert "goose" in synonyms("Geese") and "sit down" in synonyms("sat"), "irregular forms"
    assert synonyms("xyzzy") == []
    found = synonyms("running")
    assert found == sorted(found) and all(c == " " or c.isalpha() for w in found for c in w)
    changed = [record.eda({"t": "a big dog"}, "t", "to", rng=rng(i))["to"] for i in range(60)]
    others = {f"a big {w}" for w in synonyms("dog")} | {f"a {w} dog" for w in synonyms("big")}
    moved = {"big a dog", "dog big a", "a dog big"}
    left = {"a big", "a dog", "big dog", "a", "big", "dog", "a big dog"}
    assert set(changed) <= others | moved | left and set(changed) & others
