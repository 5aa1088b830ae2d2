"""Sounds on the host: reading and refusing them, excerpts; the stamps of Tux Paint from a folder of our own."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmcl_jax.data import datasets, ops, sound, sources
from mmcl_jax.data.datasets import tux_stamps
from mmcl_jax.data.pipeline import Streams

RNG = np.random.default_rng(0)
NOISE = RNG.uniform(-0.5, 0.5, 4000).astype(np.float32)


def tone(rate, seconds=0.5, hertz=440):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, rate, kind="FLAC", subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_files_and_arrays_of_any_kind_are_the_same_sound(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(NOISE, 8000, "WAV"))
    whole = np.round(NOISE * 32768).astype(np.int16)
    for value in (encoded(NOISE, 8000), tmp_path / "a.wav", str(tmp_path / "a.wav"), NOISE, whole,
                  whole.astype(np.int32) << 16, np.stack([NOISE + 0.1, NOISE - 0.1], 1)):  # fmt: skip
        found = ops.sound(value, 8000)
        assert found.dtype == np.float32 and found.shape == (4000,)
        np.testing.assert_allclose(found, NOISE, atol=4e-5)
    eight = np.round(NOISE * 128 + 128).astype(np.uint8)
    np.testing.assert_allclose(ops.sound(eight, 8000), NOISE, atol=5e-3)
    stereo = encoded(np.stack([NOISE, -NOISE / 2], 1), 8000)
    np.testing.assert_allclose(ops.sound(stereo, 8000), NOISE / 4, atol=4e-5)


@pytest.mark.parametrize("rate", [44_100, 8000])
def test_another_rate_is_the_same_tone(rate):
    for value, more in ((encoded(tone(rate), rate), {}), (tone(rate), {"of": rate})):
        found = ops.sound(value, 16_000, **more)
        assert len(found) == 8000
        np.testing.assert_allclose(found[500:-500], tone(16_000)[500:-500], atol=2e-3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(0, np.float32), "shape"),
        (np.zeros(100, np.int16), "silence"),
        (np.where(np.arange(4000) == 7, np.nan, NOISE), "1 of 4000 samples are not finite"),
        (np.sign(NOISE), "100% of the samples are at full scale"),
        (np.zeros((2, 3, 4), np.float32), "shape"),
        (NOISE.astype(complex), "complex"),
        (np.stack([NOISE, NOISE]), "shape \\(2, 4000\\)"),  # channels first
        (np.stack([np.sign(NOISE), NOISE], 1), "100% of the samples are at full scale"),  # one of two channels
        (b"RIFF, but not for long", "not a sound that can be read: "),
    ],
)
def test_what_is_no_use_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        sound.read(value, 8000)


def test_a_sound_of_which_nothing_is_left_is_refused():
    with pytest.raises(ValueError, match="too short"):
        sound.read(NOISE[:1], 8000, of=48_000)


def test_a_bad_sound_is_absent_and_counted_an_empty_one_is_missing():
    records = [{"audio": NOISE}, {"audio": np.full(9, np.nan, np.float32)}, {"audio": np.zeros(0, np.int16)}, {}]
    streams = Streams({"audio": "sound(8000)|center_excerpt(100)"}, seed=0)
    streams.find_spec(records)
    elements = [streams.element(r, i) for i, r in enumerate(records)]
    assert [bool(e["streams"]["audio"]["present"]) for e in elements] == [True, False, False, False]
    assert [bool(str(e["fault"])) for e in elements] == [False, True, False, False]
    assert all(np.isfinite(e["streams"]["audio"]["data"]).all() for e in elements)


def test_excerpts_are_stretches_of_the_sound():
    samples = np.arange(1, 101, dtype=np.float32)
    np.testing.assert_array_equal(ops.center_excerpt(samples, 10), samples[45:55])
    np.testing.assert_array_equal(ops.center_excerpt(samples[:4], 7), [0, 1, 2, 3, 4, 0, 0])
    clips = ops.excerpts(samples, 10, 4)
    np.testing.assert_array_equal(clips["data"][:, 0] - samples[0], [0, 30, 60, 90])
    assert clips["data"].shape == (4, 10) and clips["present"].all()
    short = ops.excerpts(samples[:4], 7, 2)
    np.testing.assert_array_equal(short["data"][0], [0, 1, 2, 3, 4, 0, 0])
    assert short["present"].tolist() == [True, False], "there is but one clip"
    starts = {int(ops.excerpt(samples, 98, rng=np.random.default_rng(i))[0]) for i in range(50)}
    assert starts == {1, 2, 3}
    inside = {int((ops.excerpt(samples[:2], 4, rng=np.random.default_rng(i)) == 1).argmax()) for i in range(50)}
    assert inside == {0, 1, 2}


def test_grey_and_16_bit_images_keep_their_levels():
    levels = np.array([[0, 100], [200, 255]], np.uint8)
    for array in (levels, levels.astype(np.uint16) << 8):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        for value in (buffer.getvalue(), array, array[..., None]):
            np.testing.assert_array_equal(ops.decode(value), np.repeat(levels[..., None], 3, 2))


def test_images_whose_range_is_unknown_are_refused():
    for array in (np.full((8, 8, 3), 0.5), np.full((8, 8), 200, np.int32)):
        with pytest.raises(ValueError, match=f"image of {array.dtype}"):
            ops.decode(array)


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    folder = tmp_path / "stamps" / "animals"
    folder.mkdir(parents=True)
    for i in range(40):
        name = "thing" + "abcdefghij"[i // 10] + "abcdefghij"[i % 10]
        Image.new("RGBA", (90, 30 + i), (5 * i, 0, 0, 255)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A thing {i}.\nfr.utf8=Une chose {i}.\nde.utf8=\n")
        if i % 2:
            soundfile.write(folder / f"{name}_desc_fr.ogg", tone(22_050), 22_050)
        if i % 4 == 0:
            soundfile.write(folder / f"{name}.wav", tone(8000, hertz=300 + i) * (i != 4), 8000)
    Image.new("RGBA", (9, 9), (1, 1, 1, 255)).save(folder / "thingaa_mirror.png")  # has no caption
    monkeypatch.setenv("TUX_STAMPS_DIR", str(folder.parent))
    return tmp_path / "data"


def test_stamps_are_built_with_what_each_of_them_has(stamps):
    datasets.build("tux_stamps/all", str(stamps))
    opened = {s: sources.make(dict(source="tfds", name="tux_stamps/default", split=s, data_dir=str(stamps)))
              for s in ("train", "validation", "test")}  # fmt: skip
    records = [r for source in opened.values() for r in (source[i] for i in range(len(source)))]
    assert len(records) == 40
    assert sum(len(r["sfx"]) > 0 for r in records) == 9  # ten, of which one is silent
    assert not any(len(r["speech"]) for r in records)  # none in English
    one = next(r for r in records if r["caption"] == "A thing 8.")
    assert one["captions"]["fr"] == ["Une chose 8."] and one["captions"]["de"] == [] and one["id"] == one["concept_id"]
    np.testing.assert_allclose(one["sfx"][50:-50] / 32768, tone(16_000, hertz=308)[50:-50], atol=2e-3)
    image = ops.decode(one["image"])
    assert image.shape == (64, 64, 3) and tuple(image[32, 32]) == (40, 0, 0) and tuple(image[2, 2]) == (255,) * 3
    spoken = sources.make(dict(source="tfds", name="tux_stamps/spoken", split="train", data_dir=str(stamps)))
    assert all(len(spoken[i]["speech"]) == 8000 and spoken[i]["spoken_caption"] for i in range(len(spoken)))
    assert spoken.class_names("lang")[spoken[0]["lang"]] == "fr"


def test_stamps_of_one_thing_are_on_one_side(tmp_path):
    files = {"badger": b"growl", "beaver": b"growl", "cow": b"moo", "cow_white": b"low", "ox": b"low", "fox": b"bark"}
    captions = {"cow": "A cow.", "cow_white": "a COW."}
    stamps, texts = {}, {}
    for stem, sfx in files.items():
        (tmp_path / f"{stem}.ogg").write_bytes(sfx)
        stamps[f"animals/{stem}"] = {"sfx": f"{stem}.ogg"}
        texts[f"animals/{stem}"] = {"en": captions.get(stem, f"A {stem}.")}
    stamps["animals/ox2"], texts["animals/ox2"] = {}, {"en": "An ox, far away."}  # no sound, and the ox's name
    found = tux_stamps.find_things(tmp_path, stamps, texts)
    assert {k.split("/")[1]: v for k, v in found.items()} == {
        "badger": "badger", "beaver": "badger", "cow": "cow", "cow_white": "cow", "ox": "cow", "ox2": "cow",
        "fox": "fox",
    }  # fmt: skip


def test_a_folder_without_stamps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TUX_STAMPS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no stamps"):
        datasets.build("tux_stamps/default", str(tmp_path / "data"))
