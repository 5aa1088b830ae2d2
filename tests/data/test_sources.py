"""Sources: one's own files, synthetic records, TFDS without TensorFlow."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from mmcl_jax.data import sources
from mmcl_jax.named import ConfigError

ROWS = [{"image": f"i{k}.png", "caption": f"caption {k}"} for k in range(40)]
ROWS.append({"image": "i0.png", "caption": "another of 0"})


@pytest.fixture
def folder(tmp_path):
    for k in range(40):
        Image.new("RGB", (4, 4), (k, 0, 0)).save(tmp_path / f"i{k}.png")
    lines = "".join(f'{r["image"]},"{r["caption"]}"\n' for r in ROWS)
    (tmp_path / "pairs.csv").write_text("image,caption\n" + lines)
    (tmp_path / "pairs.tsv").write_text("image\tcaption\n" + lines.replace(",", "\t").replace('"', ""))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "pairs.parquet")
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_files(folder, kind):
    source = sources.make({"source": "files", "path": str(folder / f"pairs.{kind}"), "split": "all"})
    assert len(source) == 40, "rows with the same image are one record"
    assert source[0]["captions"] == ["caption 0", "another of 0"]
    assert Image.open(source[7]["image"]).getpixel((0, 0))[0] == 7


def test_hashed_splits_part_the_images(folder):
    config = {"source": "files", "path": str(folder / "pairs.csv")}
    parts = []
    for split in ("train", "validation", "test"):
        try:
            source = sources.make(config | {"split": split})
        except ConfigError as e:
            assert "has no rows of split" in str(e)  # forty images may leave a small split empty
            continue
        parts.append({source[i]["id"] for i in range(len(source))})
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40


def test_own_splits_columns_and_empty_captions(folder):
    rows = [{"file": "i1.png", "title": ["a", "b"], "split": "mine"}, {"file": "i2.png", "title": [], "split": "mine"}]
    (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {"source": "files", "path": str(folder / "t.jsonl"), "image": "file", "caption": "title"}
    source = sources.make(config | {"split": "mine"})
    assert source[0]["captions"] == ["a", "b"] and source[1]["captions"] is None
    with pytest.raises(ConfigError, match="no rows of split 'train'; it has all, mine"):
        sources.make(config)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "nowhere.csv"}, "no table at nowhere.csv"),
        ({"path": ""}, "path is missing"),
        ({"caption": "captoin"}, "did you mean 'caption'"),
        ({"colour": 1}, "no argument 'colour'"),
        ({"source": "file"}, "did you mean 'files'"),
    ],
)
def test_wrong_files(folder, change, message):
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        sources.make({"source": "files", "path": str(folder / "pairs.csv")} | change)


def test_rows_without_an_image_or_a_caption(folder):
    lines = ["image,caption,split", ",only text,train", ",another,train", "i1.png,,train", "i2.png,two,train"]
    (folder / "gaps.csv").write_text("\n".join(lines) + "\n")
    source = sources.make({"source": "files", "path": str(folder / "gaps.csv")})
    found = [(bool(r["image"]), r["captions"]) for r in map(source.__getitem__, range(4))]
    assert found == [(False, ["only text"]), (False, ["another"]), (True, None), (True, ["two"])]


def test_one_image_in_two_splits_is_refused(folder):
    (folder / "leak.csv").write_text("image,caption,split\ni1.png,a,train\ni1.png,b,test\n")
    with pytest.raises(ConfigError, match="'i1.png' is in the splits 'train' and 'test'"):
        sources.make({"source": "files", "path": str(folder / "leak.csv")})


def test_a_table_that_is_none(folder):
    (folder / "numbers.jsonl").write_text('{"image": "a.png", "caption": 7}\n')
    with pytest.raises(ConfigError, match="'caption' holds int64, neither texts nor lists of texts"):
        sources.make({"source": "files", "path": str(folder / "numbers.jsonl")})
    embedded = pa.table({"image": [{"bytes": b"png", "path": "a.png"}], "caption": ["a"]})
    pa.parquet.write_table(embedded, folder / "embedded.parquet")
    with pytest.raises(ConfigError, match="'image' holds struct.*not paths of images"):
        sources.make({"source": "files", "path": str(folder / "embedded.parquet")})
    (folder / "bad.parquet").write_bytes(b"hello")
    (folder / "bad.xlsx").write_bytes(b"hello")
    for name, message in (("bad.parquet", "can't be read as parquet"), ("bad.xlsx", "unknown kind of table")):
        with pytest.raises(ConfigError, match=message):
            sources.make({"source": "files", "path": str(folder / name)})


def test_synthetic_modalities_tell_the_same_thing():
    source = sources.make({"source": "synthetic", "modalities": ("image", "text", "audio", "video", "tags")})
    again = sources.make(
        {"source": "synthetic", "modalities": ("image", "text", "audio", "video", "tags"), "size": 500}
    )
    a, b, c = source[3], again[3], source[4]
    assert a["video"].shape == (4, 16, 16, 3) and a["audio"].dtype == np.float32 and a["tags"].sum() == 3
    np.testing.assert_array_equal(a["image"], b["image"])
    assert a["text"] != c["text"] and len(a["captions"]) == 2
    assert len(source.class_names("label")) == 256
    test = sources.make({"source": "synthetic", "split": "test"})
    assert test[3]["text"] == a["text"] and (test[3]["image"] != a["image"]).any()


def test_missing_never_takes_everything():
    source = sources.make({"source": "synthetic", "size": 200, "missing": 0.9})
    there = [[m in source[i] for m in ("image", "text")] for i in range(200)]
    assert all(map(any, there)) and np.mean(there) < 0.7


def test_tfds_without_tensorflow(tmp_path):
    import sys

    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            f = tfds.features
            image, label = f.Image(shape=(None, None, 3)), f.ClassLabel(names=["x", "y"])
            features = {"image": image, "label": label, "labels": {"en": f.Text()}, "tags": f.Sequence(f.Text())}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for k in range(5):
                Image.new("RGB", (4, 4), (k, 0, 0)).save(tmp_path / "x.png")
                image = (tmp_path / "x.png").read_bytes()
                yield str(k), {"image": image, "label": k % 2, "labels": {"en": f"é {k}"}, "tags": ["a", "b"]}

    Small(data_dir=str(tmp_path / "data"), file_format="array_record").download_and_prepare()
    config = {"source": "tfds", "name": "small", "data_dir": str(tmp_path / "data"), "in_memory": True}
    source = sources.make(config)
    assert len(source) == 5 and source[0]["image"][:4] == b"\x89PNG"
    assert source[0]["labels"]["en"].startswith("é ") and source[0]["tags"] == ["a", "b"]
    assert source[0] is source[0], "kept in memory"
    assert source.class_names("label") == ["x", "y"] and source.class_names("image") is None
    assert all(source[i]["label_words"] == "xy"[source[i]["label"]] for i in range(len(source)))
    with pytest.raises(ConfigError, match="no split 'dev'; it has train"):
        sources.make(config | {"split": "dev"})
    with pytest.raises(FileNotFoundError, match="mmcl data build nothing"):
        sources.make(config | {"name": "nothing"})
    assert "tensorflow" not in sys.modules


def test_files_of_images_only(folder):
    (folder / "images.csv").write_text("image,label\n" + "".join(f"i{k}.png,{k % 3}\n" for k in range(40)))
    source = sources.make({"source": "files", "path": str(folder / "images.csv"), "split": "all", "caption": ""})
    assert len(source) == 40 and source[4]["captions"] is None and source[4]["label"] == "1"


def joined(**concepts):
    part = "tests.data.styled"
    return sources.make(
        {"source": "joined", "parts": {k: {"source": part, "style": k, "concepts": v} for k, v in concepts.items()}}
    )


def test_joined_sources_tell_one_thing_in_one_record():
    source = joined(a=("x", "y", "z"), b=("z", "w", "y"))
    assert len(source) == 4 and [source[i]["id"] for i in range(4)] == ["x", "y", "z", "w"]
    assert source[1]["a"]["image"] == "a y" and source[1]["b"]["image"] == "b y" and source[1]["image"] == "a y"
    assert "b" not in source[0] and source[3]["image"] == "b w", "no record is dropped"
    assert source.class_names("only") == ["a"] and source.attribution == "by a  by b"


def test_joined_sources_need_a_key_of_each_records_own():
    with pytest.raises(ConfigError, match="record 1 of 'a' has id='x'; it must have one of its own"):
        joined(a=("x", "x"))
    with pytest.raises(ConfigError, match="parts is empty"):
        sources.make({"source": "joined", "parts": {}})


def test_arrays_give_rows_by_name(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x[1] = np.nan
    np.savez(tmp_path / "a_test.npz", x=x, y=np.array([3, 1, 2]), z=np.array([0.5, np.nan, 1.5]))
    source = sources.make(dict(source="arrays", path=str(tmp_path / "a_{split}.npz"), split="test"))
    assert len(source) == 3 and set(source[1]) == {"id", "y"}, "rows of NaN are missing"
    np.testing.assert_array_equal(source[2]["x"], x[2])
    assert source[2]["y"] == 2 and source[2]["z"] == 1.5 and source[2]["id"] == "2"


def test_files_of_arrays_that_are_refused(tmp_path):
    def make(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return sources.make(dict(source="arrays", path=str(tmp_path / "a.npz")))

    with pytest.raises(FileNotFoundError, match="no file of arrays"):
        sources.make(dict(source="arrays", path=str(tmp_path / "b.npz")))
    with pytest.raises(ValueError, match=r"one length.*'x': 3, 'y': 2"):
        make(x=np.zeros(3), y=np.zeros(2))
    with pytest.raises(ValueError, match="one length"):
        make(x=np.zeros((0, 2)))
    with pytest.raises(ValueError, match="pickled"):
        make(x=np.array([{}], object))


def test_a_table_may_have_several_columns_of_paths(tmp_path):
    (tmp_path / "t.csv").write_text("image,sound,split\na.png,a.ogg,train\nb.png,,train\n")
    how = dict(source="files", path=str(tmp_path / "t.csv"), caption="", paths=("sound",))
    source = sources.make(how)
    assert source[0]["sound"] == str(tmp_path / "a.ogg") and source[1]["sound"] is None
    with pytest.raises(ValueError, match=r"no column 'noise' \(paths\)"):
        sources.make(how | dict(paths=("noise",)))


def test_an_image_with_two_sounds_is_two_examples(folder):
    lines = ["image,caption,audio", "i1.png,one,a.ogg", "i1.png,eins,a.ogg", "i1.png,one,b.ogg", "i2.png,two,"]
    (folder / "sounds.csv").write_text("\n".join(lines) + "\n")
    source = sources.make({"source": "files", "path": str(folder / "sounds.csv"), "split": "all", "paths": ("audio",)})
    found = [(r["captions"], r["audio"] and r["audio"][-5:]) for r in map(source.__getitem__, range(len(source)))]
    assert found == [(["one", "eins"], "a.ogg"), (["one"], "b.ogg"), (["two"], None)]


def test_folds_test_each_record_once_and_share_nothing_with_what_is_trained_on():
    of = dict(source="synthetic", size=600, modalities=("image", "text"), missing=0.4)
    whole = sources.make(of)
    testable = [r["id"] for r in (whole[i] for i in range(600)) if "text" in r]
    tested = []
    for fold in range(3):
        how = dict(source="folds", of=of, fold=fold, k=3, by="label", needs=("text",))
        train, test = (sources.make(how | dict(part=part)) for part in ("train", "test"))
        records = [test[i] for i in range(len(test))]
        tested += [r["id"] for r in records]
        labels = {r["label"] for r in records}
        rest = [whole[i] for i in range(600) if whole[i]["label"] not in labels]
        assert [train[i]["id"] for i in range(len(train))] == [r["id"] for r in rest]
        assert any("text" not in r for r in rest), "what is never tested is trained on all the same"
        alone = sources.make(how | dict(complete=True))
        assert [alone[i]["id"] for i in range(len(alone))] == [r["id"] for r in rest if "text" in r]
        assert 80 <= len(labels) <= 86  # of 256
        assert sources.class_names(test, "label") == sources.class_names(whole, "label")
    assert sorted(tested) == sorted(testable)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fold": 5}, "not one of 0 .. 4"),
        ({"part": "tests"}, "did you mean 'test'"),
        ({"by": "thing"}, "has no field 'thing' of a name or a number; it has"),
        ({"needs": ("audio",)}, "0 values of 'id' with audio can't make k=5 folds"),
        ({"k": 1}, "of which there must be two"),
        ({"k": 50}, "40 values of 'id' can't make k=50 folds"),
    ],
)
def test_folds_that_cannot_be(change, message):
    of = dict(source="synthetic", size=40)
    with pytest.raises(ValueError, match=message):
        sources.make(dict(source="folds", of=of) | change)
