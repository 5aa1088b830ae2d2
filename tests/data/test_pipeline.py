"""The order of the data, random draws, missing and unreadable fields."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from mmcl_jax.data import mix, ops, pipeline, sources, tokenizers
from mmcl_jax.data import record as record_ops
from mmcl_jax.data.chain import generator, parse_stream
from mmcl_jax.data.faults import FaultCounter
from mmcl_jax.named import ConfigError

TOKENIZER = tokenizers.train(["a red square", "a blue disc", "ring in green"], 300)
STREAMS = {"image": "decode|crop(12)|flip", "text": "captions: pick|tokenize(8)"}


def make(streams=STREAMS, size=40, batch=8, process=0, processes=1, seed=3, record="", **source):
    opened = sources.make({"source": "synthetic", "size": size, **source})
    made = pipeline.Streams(streams, seed, TOKENIZER, record)
    made.find_spec(opened)
    return pipeline.Pipeline(mix.Mixed([opened], [1.0], seed), made, batch, process, processes)


def equal(a, b):
    assert a.keys() == b.keys()
    for k in a:
        equal(a[k], b[k]) if isinstance(a[k], dict) else np.testing.assert_array_equal(a[k], b[k])


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


@pytest.mark.parametrize("start", [0, 3, 7])
def test_a_resumed_stream_is_the_tail_of_the_whole(start):
    """Forty records in batches of eight: an epoch ends within the nine batches."""
    whole, part = take(make().batches(0), 9), take(make().batches(start), 9 - start)
    for a, b in zip(whole[start:], part, strict=True):
        equal(a, b)


def test_an_epoch_has_every_record_once_and_the_next_another_order():
    batches = take(make().batches(0), 10)
    epochs = np.concatenate([b["id"] for b in batches]).reshape(2, 40)
    assert len(set(epochs[0])) == len(set(epochs[1])) == 40
    assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_the_rows_of_one(processes):
    whole = take(make().batches(0), 3)
    parts = [take(make(process=p, processes=processes).batches(0), 3) for p in range(processes)]
    for step in range(3):
        for key in ("data", "present"):
            rows = np.concatenate([part[step]["streams"]["image"][key] for part in parts])
            np.testing.assert_array_equal(rows, whole[step]["streams"]["image"][key])
        np.testing.assert_array_equal(
            np.concatenate([part[step]["position"] for part in parts]), whole[step]["position"]
        )


@pytest.mark.parametrize("cache_mib, kept", [(1, 20), (0.005, 6), (0, 0)])
def test_what_is_kept_in_memory_does_not_matter(cache_mib, kept):
    """Encoded images are decoded once, as many as have room; 768 bytes each."""
    records = []
    for i in range(20):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (i, 0, 0)).save(buffer, "PNG")
        records.append({"image": buffer.getvalue(), "id": str(i)})

    def epochs(cache_mib):
        streams = pipeline.Streams({"image": "decode|crop(12)|flip"}, 3, cache_mib=cache_mib)
        streams.find_spec(records)
        data = pipeline.Pipeline(mix.Mixed([records], [1.0], 3), streams, 10)
        return streams, take(data.batches(0), 6)

    streams, found = epochs(cache_mib)
    for a, b in zip(found, epochs(0)[1], strict=True):
        equal(a, b)
    memory = streams.hosts["image"].memory
    assert len(memory.kept if memory else ()) == kept


def test_threads_do_not_matter():
    for a, b in zip(take(make().batches(0, threads=1), 4), take(make().batches(0, threads=4), 4), strict=True):
        equal(a, b)


@pytest.mark.slow
def test_worker_processes_do_not_matter():
    for a, b in zip(take(make().batches(0), 4), take(make().batches(0, workers=2), 4), strict=True):
        equal(a, b)


def test_added_ops_leave_other_draws_alone():
    """A flip in front of the crop: what is cropped is the mirror image, and the crop is the same."""
    plain = make({"image": "decode|crop(12)"})[5]["streams"]["image"]["data"]
    mirrored = make({"image": "decode|flip(0.0)|crop(12)"})[5]["streams"]["image"]["data"]
    np.testing.assert_array_equal(plain, mirrored)


def test_ties_and_sharing():
    streams = {"image/a": "image: decode|crop(12, @same)", "image/b": "image: decode|crop(12, @same)",
               "image/c": "image: decode|crop(12)", "image/d": "image: decode|crop(12)"}  # fmt: skip
    made = make(streams)
    assert made.streams.source_of == {
        "image/a": "image/a",
        "image/b": "image/a",
        "image/c": "image/c",
        "image/d": "image/d",
    }
    element = made[0]["streams"]
    assert set(element) == {"image/a", "image/c", "image/d"}
    assert (element["image/c"]["data"] != element["image/d"]["data"]).any(), "two views are two draws"


def test_mixture_keeps_its_weights():
    parts = [sources.make({"source": "synthetic", "size": n, "seed": n}) for n in (20, 30)]
    mixed = mix.Mixed(parts, [0.7, 0.3], seed=0)
    noise = [mixed[i]["image"].tobytes() for i in range(200)]
    first = {parts[0][i]["image"].tobytes() for i in range(20)}
    assert abs(np.mean([n in first for n in noise]) - 0.7) < 0.03


def test_batches_of_one_source_each_take_every_record_in_turn():
    a, b = ({"source": "synthetic", "size": n} for n in (40, 24))
    opened, weights = mix.open_sources({"a": a, "b": b | {"weight": 5 / 3}})
    assert weights == [0.5, 0.5]
    config = {"train": {"a": a, "b": b}, "streams": {"image": "decode"}}
    mixed = mix.mixed(config | {"mix": "batches"}, opened, weights, seed=3, batch=8)
    numbers = np.array([mixed._number(i) for i in range(8 * 40)]).reshape(40, 8)
    of_a = (numbers < 40).all(1)
    assert (of_a | (numbers >= 40).all(1)).all(), "a batch has one source"
    assert of_a.sum() == 20
    for rows, size, first in ((numbers[of_a], 40, 0), (numbers[~of_a], 24, 40)):
        epochs = rows.reshape(-1)[: len(rows.reshape(-1)) // size * size].reshape(-1, size)
        for epoch in epochs:
            assert sorted(epoch) == list(range(first, first + size))
        assert (epochs[0] != epochs[1]).any(), "another order each epoch"
    assert mixed[8 * 10**6]["id"].startswith("synthetic"), "random access"
    plain = mix.mixed(config, opened, weights, seed=3, batch=8)
    assert (np.diff([plain._number(i) < 40 for i in range(64)]) != 0).sum() > 20
    with pytest.raises(ConfigError, match="data.mix='batch' does not exist; did you mean 'batches'"):
        mix.mixed(config | {"mix": "batch"}, opened, weights, 0, 8)


def test_weights_are_relative_to_the_sizes():
    parts = {n: {"source": "synthetic", "size": n} for n in (20, 60)}
    config = {"small": parts[20] | {"weight": 3.0}, "large": parts[60]}
    assert mix.open_sources(config)[1] == [0.5, 0.5]
    assert mix.open_sources({"small": parts[20], "large": parts[60]})[1] == [0.25, 0.75]
    with pytest.raises(ConfigError, match="small.weight=0 must be positive"):
        mix.open_sources(config | {"small": parts[20] | {"weight": 0}})


def test_missing_is_masked_and_not_a_fault():
    made = make(missing=0.4)
    batch = pipeline.stack([made[i] for i in range(40)])
    there = batch["streams"]["image"]["present"], batch["streams"]["text"]["present"]
    assert 10 < there[0].sum() < 38 and (there[0] | there[1]).all()
    assert (batch["streams"]["image"]["data"][~there[0]] == 0).all()
    assert not any(batch["fault"])


def png(size=(16, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


HUGE = png()[:16] + (30_000).to_bytes(4, "big") * 2 + png()[24:]  # a header that promises 900 megapixels
BAD = {
    "html": b"<html>404</html>",
    "empty": b"",
    "truncated": png((64, 64))[:80],
    "huge": HUGE,
    "wrong type": 7,
}


class Records:
    """Good records but for one; without an image where there is nothing."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"image": self.bad if i == 5 else png(), "captions": ["a red square"], "id": f"record-{i}"}


@pytest.mark.parametrize("kind", BAD)
def test_unreadable_images_are_masked_and_counted(kind):
    streams = pipeline.Streams({"image": "decode|resize(8)", "text": "captions: pick|tokenize(8)"}, 0, TOKENIZER)
    source = Records(BAD[kind])
    streams.find_spec(source)
    batch = pipeline.stack([streams.element(source[i], i) for i in range(8)])
    assert list(batch["streams"]["image"]["present"]) == [i != 5 for i in range(8)]
    assert batch["streams"]["text"]["present"].all(), "only the stream that failed is absent"
    counter = FaultCounter(budget=0.2)
    (told,) = counter.add(batch)
    assert "image" in told and "record-5" in told
    assert counter.add(batch) == [], "each reason is told once"
    assert counter.faulty == 2


def test_numbers_that_are_not_finite_are_masked_and_counted():
    records = [{"path": np.array([1, np.nan, 3])}, {"path": np.ones(3)}, {"path": np.array([np.inf, 0, 0])}]
    streams = pipeline.Streams({"path": ""}, seed=0)
    streams.find_spec(records)
    elements = [streams.element(r, i) for i, r in enumerate(records)]
    assert [bool(e["streams"]["path"]["present"]) for e in elements] == [False, True, False]
    assert "1 of 3 numbers are not finite" in str(elements[0]["fault"])
    batch = pipeline.stack(elements)["streams"]["path"]["data"]
    assert batch.dtype == np.float32 and np.isfinite(batch).all()


def test_a_stream_that_few_records_have_is_found():
    records = [{"id": str(i)} for i in range(3000)]
    records[1777]["rare"] = np.ones(2)
    streams = pipeline.Streams({"rare": ""}, seed=0)
    streams.find_spec(records)
    assert streams.spec["rare"]["data"].shape == (2,)
    records[0]["image"] = b"broken"
    both = pipeline.Streams({"rare": "", "image": "decode"}, seed=0)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    records[-1]["image"] = buffer.getvalue()
    both.find_spec(records)
    assert set(both.spec) == {"rare", "image"}, "what another stream can't read does not end the search"
    with pytest.raises(ConfigError, match="from any of 3000 records: field 'never' is missing"):
        pipeline.Streams({"never": ""}, seed=0).find_spec(records)


def test_what_of_a_list_is_evaluated_one_by_one():
    record = {"tags": ["a", "b"], "drawings": [b"1", b"2"], "captions": ["x", "y"]}
    chains = {"tags": "multi_hot(4)", "image": "drawings: first|decode", "text": "captions: pick|tokenize(5)"}
    streams = pipeline.Streams(chains, seed=0)
    assert {k: streams.values(k, record) for k in chains} == {
        "tags": [["a", "b"]], "image": [b"1", b"2"], "text": ["x", "y"],
    }  # fmt: skip
    array = np.zeros((4, 4, 3), np.uint8)
    assert ops.first(array) is array and ops.pick(np.array(["x"]), rng=np.random.default_rng(0)) == "x"
    with pytest.raises(ValueError, match="more than 32 bits"):
        pipeline.Streams({"id": ""}, seed=0).one("id", 2**40)
    assert ops.first(b"png") == b"png" and ops.pick(b"png", rng=np.random.default_rng(0)) == b"png"


def test_over_the_budget_the_run_stops_and_says_why():
    streams = pipeline.Streams({"image": "decode|resize(8)"}, 0)
    source = Records(b"junk")
    streams.find_spec(source)
    batch = pipeline.stack([streams.element(source[i], i) for i in range(8)])
    counter = FaultCounter(budget=0.05)
    with pytest.raises(RuntimeError, match="data.fault_budget=0.05(.|\n)*record-5"):
        for _ in range(13):
            counter.add(batch)


def test_data_that_goes_away_late_stops_the_run_soon():
    def batch(fault):
        return {"fault": np.array([fault] * 1000), "id": np.arange(1000).astype(str)}

    counter = FaultCounter(budget=0.05)
    for _ in range(1000):
        counter.add(batch(""))
    with pytest.raises(RuntimeError, match="1000 of the last 10000 examples"):
        counter.add(batch("image: OSError: gone"))


def test_records_that_cannot_be_read_are_passed_over_at_the_start():
    class Hole(Records):
        def __getitem__(self, i):
            if i < 3:
                raise OSError("the share is gone")
            return super().__getitem__(i)

    streams = pipeline.Streams({"image": "decode|resize(8)"}, 0)
    streams.find_spec(Hole(b"junk"))
    assert streams.spec["image"]["data"].shape == (8, 8, 3)


def test_a_stream_that_never_works_is_the_configs_fault():
    with pytest.raises(ValueError, match="center_crop.*resize_short"):
        make({"image": "decode|center_crop(99)"})
    with pytest.raises(ValueError, match="'photo' is missing"):
        make({"image": "photo: decode"})


def test_several_captions_and_record_ops():
    made = make({"text": "all: pick(0.9)|tokenize(8)"}, record="collect('all', 'text', 'captions')")
    texts = [TOKENIZER.decode(made[i]["streams"]["text"]["data"]) for i in range(30)]
    assert sum(" in " in t for t in texts) in range(0, 8), "mostly the first"


def test_a_bar_at_the_end_is_nothing():
    assert parse_stream("image", "decode|").host == parse_stream("image", "decode").host


@pytest.mark.parametrize("text", ["image: decode||normalize||gray", "crop(64", "crop(size)", "de code"])
def test_chains_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="data.streams.image"):
        parse_stream("image", text)


def test_generators_are_functions_of_their_names():
    draws = {generator(s, d, p).random() for s in (0, 1) for d in ("a", "b") for p in (0, 1, 2**40)}
    assert len(draws) == 12
    assert generator(0, "a", 5).random() == generator(0, "a", 5).random()


def test_tokenizer():
    ids, mask = TOKENIZER.encode("A red SQUARE", 10)
    assert ids[0] == TOKENIZER.sot and ids[mask][-1] == TOKENIZER.eot and ids.dtype == np.int32
    assert TOKENIZER.decode(ids).strip() == "a red square"
    assert (ids[~mask] == TOKENIZER.pad).all()
    long, mask = TOKENIZER.encode("a red square " * 20, 6)
    assert mask.all() and long[-1] == TOKENIZER.eot, "what is cut off is never the end token"
    empty, mask = TOKENIZER.encode("", 6)
    assert mask.sum() == 2
    assert TOKENIZER.encode("", 6, sot=False)[1].sum() == 1
    for tokenizer in (TOKENIZER, pickle.loads(pickle.dumps(TOKENIZER))):
        ids, mask = tokenizer.encode("red <eot> disc", 20)
        assert (ids[mask] == tokenizer.eot).sum() == 1, "only our own end token is one"
    assert TOKENIZER.decode(TOKENIZER.encode("日本 👍", 40)[0]).strip() == "日本 👍", "unseen scripts are bytes"


def test_crop_stays_inside_and_resizes():
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    for i in range(20):
        assert ops.crop(image, 8, rng=np.random.default_rng(i)).shape == (8, 8, 3)
    assert ops.resize_short(image, 10).shape == (10, 15, 3)
    assert ops.center_crop(image, 10).shape == (10, 10, 3)


def test_transparency_shows_the_background():
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (ops.decode(clear) == 255).all() and (ops.decode(clear, background=0) == 0).all()


def test_two_draws_different_values():
    record = {"captions": ["a", "b", "c"]}
    drawn = [record_ops.two(record, "captions", rng=np.random.default_rng(i)) for i in range(60)]
    pairs = {(r["captions0"], r["captions1"]) for r in drawn}
    assert len(pairs) == 6 and all(a != b for a, b in pairs)
    assert record_ops.two({"captions": []}, "captions", rng=np.random.default_rng(0)) == {"captions": []}
    assert record_ops.two({}, "captions", rng=np.random.default_rng(0)) == {}
    alone = record_ops.two({"captions": "a cat"}, "captions", rng=np.random.default_rng(0))
    assert alone["captions0"] == alone["captions1"] == "a cat"


def test_collect_gathers_texts_images_and_numbers():
    record = {"a": {"image": b"1"}, "b": {"image": b"2"}, "group": np.int64(3), "tags": ["x", "x", ""]}
    found = record_ops.collect(record, "all", "a/image", "b/image", "missing", "group", "tags")
    assert found["all"] == [b"1", b"2", "group=3", "x"]


def test_multi_hot():
    assert ops.multi_hot([1, 3], 5).tolist() == [0, 1, 0, 1, 0]
    assert ops.multi_hot(np.array([0]), 2).tolist() == [1, 0]
    words = ops.multi_hot(["cat", "dog"], 1000)
    assert words.sum() == 2 and np.array_equal(words, ops.multi_hot(["dog", "cat"], 1000))
    with pytest.raises(ValueError, match="tag 5 is not within 0..4"):
        ops.multi_hot([5], 5)


def test_batches_hold_what_their_source_has():
    parts = {n: {"source": "synthetic", "size": 40, "modalities": ("image", n)} for n in ("text", "tags")}
    streams = {"image": "decode", "text": "tokenize(4)", "tags": ""}
    sparse = {n: part | {"streams": ("image", n)} for n, part in parts.items()}
    batches = {}
    for name, train in (("all", parts), ("held", sparse)):
        config = {"train": train, "mix": "batches", "streams": streams}
        opened, weights = mix.open_sources(train)
        made = pipeline.Streams(streams, 0, tokenizers.train(["a red disc"], 300, True))
        made.find_spec(*opened)
        whole = pipeline.Pipeline(mix.mixed(config, opened, weights, 3, 8), made, 8)
        batches[name] = [b for _, b in zip(range(6), whole.batches(0), strict=False)]
    kinds = set()
    for every, held in zip(*batches.values(), strict=True):
        kinds.add(tuple(sorted(held["streams"])))
        for name, stream in every["streams"].items():
            assert (name in held["streams"]) == bool(stream["present"].any())
            if name in held["streams"]:
                np.testing.assert_array_equal(stream["data"], held["streams"][name]["data"])
        np.testing.assert_array_equal(every["position"], held["position"])
    assert kinds == {("image", "text"), ("image", "tags")}
    config["train"] = {"a": parts["text"] | {"streams": ("image", "tezt")}, "b": parts["tags"]}
    with pytest.raises(ConfigError, match="data.train.a.streams has 'tezt'; did you mean 'text'"):
        mix.held(config)
    with pytest.raises(ConfigError, match="data.train.a.streams names .* Set data.mix='batches'"):
        mix.held(config | {"mix": None})
    with pytest.raises(ConfigError, match="data.train.streams names what"):
        mix.held({"train": sparse["text"], "streams": streams})
    with pytest.raises(ConfigError, match=r"data.train.a.streams='image' must be a tuple: \('image',\)"):
        mix.held(config | {"train": {"a": parts["text"] | {"streams": "image"}}})
    assert mix.mixed(config | {"train": parts}, opened, weights, 3, 8).streams is None, "nothing is asked per record"
