"""TFDS data set `emoji_modalities`: a record per emoji, with all that is known of it.

Colour drawings of several styles, OpenMoji's line drawing, names and tags in 28 languages; config `speech` adds the
names spoken by eSpeak NG in four of them. A style that does not draw the emoji is missing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmcl_jax.data.datasets import emoji_common as common
from mmcl_jax.data.datasets import emoji_styles as styles
from mmcl_jax.data.datasets import emoji_tables as tables
from mmcl_jax.data.datasets import openmoji, speech

DRAWN = ("noto", "twemoji", "fluent_flat")  # beside OpenMoji; their packages tell code points
VOICES = {"en": "en-us", "de": "de", "fr": "fr", "es": "es"}
RATE = 16_000  # Hz
CITATION = openmoji.CITATION + styles.CITATION


class EmojiModalities(tfds.core.GeneratorBasedBuilder):
    """Emoji at 64 x 64 in up to four styles and as line art, named in 28 languages, split by sibling group."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "OpenMoji 17.0.0, three Iconify styles, emojibase 17.0.0."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="default", description="Drawings, line art and texts."),
        tfds.core.BuilderConfig(name="speech", description="Also names spoken by eSpeak NG in four languages."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        image = tfds.features.Image(shape=(common.IMAGE_SIZE, common.IMAGE_SIZE, 4))
        features = {
            "concept_id": text,
            "image": image,  # OpenMoji's
            "line_art": image,
            # One PNG, or none: bytes, since a sequence of images would be decoded whether it is wanted or not.
            "images": tfds.features.FeaturesDict({style: tfds.features.Sequence(text) for style in DRAWN}),
            "label": text,
            "labels": styles.in_every_language(text),
            "tags": styles.in_every_language(tfds.features.Sequence(text)),
            "group": tfds.features.ClassLabel(names=tables.GROUPS),
            "subgroup": tfds.features.ClassLabel(names=tables.SUBGROUPS),
            "is_flag": tfds.features.Scalar(np.bool_),
        }
        if self.builder_config.name == "speech":
            audio = tfds.features.Tensor(shape=(None,), dtype=np.int16)
            features["speech"] = tfds.features.FeaturesDict({lang: audio for lang in VOICES})
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage="https://openmoji.org",
            license=LICENCE,
            citation=CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.builder_config.name == "speech":
            speech.speaker()  # what is not installed is told before anything is fetched
        folder = dl_manager.download_dir
        drawings, texts = common.fetch(openmoji.PACKAGES["pair"][0], folder), common.fetch(styles.TEXTS, folder)
        sets = {style: common.fetch(styles.package(style), folder) for style in DRAWN}
        licence = {style: styles.provenance(style, archive, [])["attribution"] for style, archive in sets.items()}
        attribution = "  ".join([openmoji.ATTRIBUTION, *licence.values()])
        archives = [drawings, texts, *sets.values()]
        self.info.metadata.update(common.provenance(archives, license=LICENCE, attribution=attribution))
        records = join(drawings, texts, sets)
        return {k: self._generate_examples(v) for k, v in common.by_split(records).items()}

    def _generate_examples(self, records: dict[str, dict]) -> Iterator[tuple[str, dict]]:
        for concept, record in records.items():
            drawn = {k: common.render(record[k]) for k in ("image", "line_art")}
            drawn["images"] = {
                style: [common.render(record["images"][style])] if style in record["images"] else [] for style in DRAWN
            }
            flag = common.is_flag(concept, record["group"])
            made = record | drawn | {"concept_id": concept, "is_flag": flag}
            if self.builder_config.name == "speech":
                made["speech"] = speech.speak(record["labels"], VOICES, RATE)
            yield concept, made


LICENCE = "CC-BY-SA-4.0 (OpenMoji), Apache-2.0 (Noto), CC-BY-4.0 (Twemoji), MIT (Fluent, emojibase)"


def join(drawings: common.Archive, texts: common.Archive, sets: dict[str, common.Archive]) -> dict[str, dict[str, Any]]:
    """{concept: SVGs of OpenMoji and of the sets that draw it, and texts} of each concept that both have."""
    pairs, said = openmoji.pair_records(drawings), styles.read_texts(texts)
    icons = {style: (styles.coded_icons(a), a.read_json("package/icons.json")) for style, a in sets.items()}
    joined = {}
    for concept in pairs.keys() & said.keys():
        images = {
            style: styles.icon_svg(icon_set, names[concept])
            for style, (names, icon_set) in icons.items()
            if concept in names
        }
        own = {k: pairs[concept][k] for k in ("image", "line_art")}
        joined[concept] = said[concept] | own | {"images": images}
    return joined
