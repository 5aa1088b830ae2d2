"""The data set of all that is known of an emoji, built from packages of our own making, and the voice."""

import io
import json
import tarfile

import numpy as np
import pytest

from mmcl_jax.data import datasets, ops, sources
from mmcl_jax.data.datasets import emoji_modalities, emoji_styles, openmoji, speech
from mmcl_jax.data.datasets import emoji_tables as tables
from mmcl_jax.data.pipeline import Streams
from mmcl_jax.named import ConfigError

CONCEPTS = [f"{0x1F400 + i:04X}" for i in range(40)]  # animals, from the rat on


def svg(colour):
    rect = f'<rect width="16" height="16" fill="{colour}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{rect}</svg>'


def put(folder, package, members):
    """Writes a package where `fetch` finds what it has fetched before."""
    home = folder / "packages" / package.client / f"{package.name}-{package.version}"
    home.mkdir(parents=True)
    with tarfile.open(home / "package.tgz", "w:gz") as tarball:
        for name, content in members.items():
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tarball.addfile(info, io.BytesIO(data))


@pytest.fixture
def data_dir(tmp_path):
    downloads = tmp_path / "downloads"
    entry = {"tags": "a,b", "openmoji_tags": "", "group": "animals-nature", "subgroups": "animal-mammal"}
    put(downloads, openmoji.PACKAGES["pair"][0], {
        "data/openmoji.json": [entry | {"hexcode": c, "annotation": f"animal {c}"} for c in CONCEPTS],
        **{f"color/svg/{c}.svg": svg("#ff0000") for c in CONCEPTS},
        **{f"black/svg/{c}.svg": svg("#000000") for c in CONCEPTS},
    })  # fmt: skip
    groups = {"groups": {"3": "animals-nature"}, "subgroups": {"7": "animal-mammal"}}
    said = [{"hexcode": c, "tags": ["beast"], "group": 3, "subgroup": 7} for c in CONCEPTS]
    texts = {f"{lang}/data.json": [e | {"label": f"{lang} {e['hexcode']}"} for e in said]
             for lang in tables.EMOJIBASE_LANGUAGES}  # fmt: skip
    put(downloads, emoji_styles.TEXTS, {"meta/groups.json": groups, **texts})
    for style in emoji_modalities.DRAWN:
        title, _, licence, author = tables.STYLES[style]
        drawn = CONCEPTS if style != "fluent_flat" else CONCEPTS[::2]
        icons = {c: {"body": '<rect width="16" height="16" fill="#0000ff"/>'} for c in drawn}
        terms = {"spdx": licence, "title": licence, "url": "u"}
        info = {"name": title, "author": {"name": author, "url": "u"}, "license": terms}
        drawings = {"chars.json": {c.lower(): c for c in drawn}, "icons.json": {"icons": icons}, "info.json": info}
        put(downloads, emoji_styles.package(style), drawings)
    return tmp_path


def test_a_record_has_all_that_is_known_of_a_concept(data_dir):
    datasets.build("emoji_modalities/speech", str(data_dir))
    how = dict(source="tfds", name="emoji_modalities/speech", data_dir=str(data_dir))
    source = sources.make(how | dict(split="train"))
    streams = Streams(
        {"image": "decode", "line": "line_art: decode", "blue": "images/fluent_flat: first|decode",
         "speech": "speech/fr: sound(16000)|center_excerpt(8000)"}, seed=0,
    )  # fmt: skip
    streams.find_spec(source)
    for i in range(len(source)):
        record = source[i]
        drawn = CONCEPTS.index(record["concept_id"]) % 2 == 0
        element = streams.element(record, i)["streams"]
        colours = {k: tuple(element[k]["data"][32, 32]) for k in ("image", "line")}
        assert colours == {"image": (255, 0, 0), "line": (0, 0, 0)}
        assert bool(element["blue"]["present"]) == drawn, "a style that does not draw it is missing"
        assert not drawn or tuple(element["blue"]["data"][32, 32]) == (0, 0, 255)
        assert np.abs(element["speech"]["data"]).max() > 0.05
        assert record["labels"]["de"] == f"de {record['concept_id']}" and record["tags"]["fr"] == ["beast"]
        assert set(record["speech"]) == set(emoji_modalities.VOICES) and len(record["images"]["noto"]) == 1
    sizes = [len(sources.make(how | dict(split=s))) for s in ("train", "validation", "test")]
    assert sum(sizes) == 40
    for credit in ("OpenMoji", "noto", "CC-BY-4.0"):
        assert credit in source.attribution


def test_a_voice_speaks_several_languages():
    said = speech.speak({"en": "a cat", "de": "eine Katze"}, {"en": "en-us", "de": "de"}, 16_000)
    for samples in said.values():
        assert samples.dtype == np.int16 and 4000 < len(samples) < 32_000
        assert np.abs(ops.sound(samples, 16_000)).max() > 0.1
    assert len(said["en"]) != len(said["de"])
    assert speech.speaker().say("", "en-us", 16_000).size == 0
    with pytest.raises(ConfigError, match="no voice 'klingonese'"):
        speech.speaker().say("cat", "klingonese", 16_000)
