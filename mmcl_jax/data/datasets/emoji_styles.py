"""TFDS data set `emoji_styles`: the same concepts drawn in ten styles, named in 28 languages.

One config per style. All styles share concept ids, texts and splits, so a model can be trained on
some styles and tested on others, on concepts it has seen and on concepts it has not.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmcl_jax.data.datasets import emoji_common as common
from mmcl_jax.data.datasets import emoji_tables as tables

TEXTS = common.Package("npm", "emojibase-data", "17.0.0")
# These packages tell the code points of their icons; they name the icons of those that don't.
NAMING_STYLES = ("noto", "twemoji", "openmoji", "fluent_flat")
CITATION = """
@misc{iconify_emoji,
  title  = {Emoji icon sets, as packed by Iconify},
  author = {{The authors of each set}},
  note   = {One licence per set: see the metadata of each config},
}
"""


class EmojiStyles(tfds.core.GeneratorBasedBuilder):
    """Emoji at 64 x 64 in one style, base concepts only (no skin tones), split by sibling group."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Ten styles; texts from emojibase 17.0.0."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=style, description=f"{name} {version}, {licence}, {author}.")
        for style, (name, version, licence, author) in tables.STYLES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "concept_id": text,
            "image": tfds.features.Image(shape=(common.IMAGE_SIZE, common.IMAGE_SIZE, 4)),
            "label": text,
            "labels": in_every_language(text),
            "tags": in_every_language(tfds.features.Sequence(text)),
            "group": tfds.features.ClassLabel(names=tables.GROUPS),
            "subgroup": tfds.features.ClassLabel(names=tables.SUBGROUPS),
            "is_flag": tfds.features.Scalar(np.bool_),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage="https://iconify.design",
            license=tables.STYLES[self.builder_config.name][2],
            citation=CITATION,
            metadata=tfds.core.MetadataDict(),  # filled by the build
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        style, folder = self.builder_config.name, dl_manager.download_dir
        texts = common.fetch(TEXTS, folder)
        icons = common.fetch(package(style), folder)
        records = read_texts(texts)
        icon_of, naming = coded_icons(icons), []
        if not icon_of:
            naming = [common.fetch(package(other), folder) for other in NAMING_STYLES]
            misnamed = tables.MISNAMED.get(style, ())
            icon_of = match_icons(icons, name_index(naming, records), misnamed)
        icon_set = icons.read_json("package/icons.json")
        joined = {
            concept: record | {"image": icon_svg(icon_set, icon_of[concept])}
            for concept, record in records.items()
            if concept in icon_of
        }
        self.info.metadata.update(provenance(style, icons, [texts, *naming]))
        return {k: self._generate_examples(v) for k, v in common.by_split(joined).items()}

    def _generate_examples(self, records: dict[str, dict]) -> Iterator[tuple[str, dict]]:
        for concept, record in records.items():
            flag = common.is_flag(concept, record["group"])
            image = common.render(record["image"])
            yield concept, record | {"image": image, "concept_id": concept, "is_flag": flag}


def read_texts(archive: common.Archive) -> dict[str, dict]:
    """Returns {concept: labels, tags, group, subgroup} of every base concept that has a group."""
    names = archive.read_json("package/meta/groups.json")
    entries = {  # {language: {concept: entry}}
        path.split("/")[1]: {common.concept_id(e["hexcode"]): e for e in json.loads(text)}
        for path, text in archive.read("package/*/data.json").items()
    }
    records = {}
    for concept, entry in entries["en"].items():
        if not common.is_base(concept) or "group" not in entry:
            continue  # the letters that flags are spelt with have no group
        said = {lang: entries[lang][concept] for lang in tables.EMOJIBASE_LANGUAGES}
        records[concept] = {
            "label": entry["label"],
            "labels": {lang: e["label"] for lang, e in said.items()},
            "tags": {lang: e.get("tags", []) for lang, e in said.items()},
            "group": names["groups"][str(entry["group"])],
            "subgroup": names["subgroups"][str(entry["subgroup"])],
        }
    return records


def coded_icons(archive: common.Archive) -> dict[str, str]:
    """Returns {concept: icon name} as the package itself tells it, or {} if it does not."""
    if not archive.read("package/chars.json"):
        return {}
    chars = archive.read_json("package/chars.json")
    return {common.concept_id(code): icon for code, icon in chars.items()}


def name_index(naming: Iterable[common.Archive], records: Mapping[str, dict]) -> dict[str, str]:
    """Returns {squashed name: concept} from icon names and aliases, labels and Unicode names.

    A name that two sources give to different concepts is left out: better no picture than a wrong
    one. So is the name of an icon that draws several concepts, such as the flag of Norway, which
    is also that of Svalbard.
    """
    concepts = defaultdict(set)
    for concept, record in records.items():
        concepts[squash(record["label"])].add(concept)
        if "-" not in concept:
            concepts[squash(unicodedata.name(chr(int(concept, 16)), concept))].add(concept)
    for archive in naming:
        for name, concept in _unique_names(archive).items():
            concepts[squash(name)].add(concept)
    return {name: concept for name, (concept, *others) in concepts.items() if not others and concept in records}


def match_icons(archive: common.Archive, index: Mapping[str, str], misnamed: Collection[str]) -> dict[str, str]:
    """Returns {concept: icon name} for a package that does not tell code points."""
    matched = {}
    for icon in archive.read_json("package/icons.json")["icons"]:
        concept = index.get(squash(icon))
        if concept and icon not in misnamed:
            matched.setdefault(concept, icon)
    return matched


def squash(name: str) -> str:
    """Strips a name to its letters and digits, the one spelling that all sources agree on.

    >>> squash("flag-for-flag-cote-divoire") == squash("flag: Côte d’Ivoire")
    True
    """
    name = re.sub("^flag-for-(flag-)?", "flag-", name.lower().replace("&", "and"))
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]", "", ascii_only)


def icon_svg(icon_set: Mapping[str, Any], name: str) -> str:
    """Returns the whole SVG of one icon of an Iconify set."""
    icon = icon_set["icons"][name]
    box = " ".join(
        str(icon.get(key, icon_set.get(key, default)))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def _unique_names(archive: common.Archive) -> dict[str, str]:
    """Returns {icon name or alias: concept} of icons that draw one concept only."""
    concepts = defaultdict(list)
    for concept, icon in coded_icons(archive).items():
        concepts[icon].append(concept)
    names = {icon: drawn[0] for icon, drawn in concepts.items() if len(drawn) == 1}
    for alias, target in archive.read_json("package/icons.json").get("aliases", {}).items():
        if target.keys() == {"parent"} and target["parent"] in names:  # not turned, not mirrored
            names.setdefault(alias, names[target["parent"]])
    return names


def provenance(style: str, icons: common.Archive, others: Iterable[common.Archive]) -> dict[str, Any]:
    """Returns the metadata of a style: its licence, whom to credit, what it was made from."""
    info = icons.read_json("package/info.json")
    _, _, licence, author = tables.STYLES[style]
    stated = info["license"]["spdx"], info["author"]["name"]
    if stated != (licence, author):
        raise ValueError(f"{icons.path.name} states {stated}, the table says {licence, author}.")
    attribution = "{name} by {author[name]} ({author[url]}), {license[title]} ({license[url]})"
    return common.provenance([icons, *others], license=licence, attribution=attribution.format(**info))


def package(style: str) -> common.Package:
    """Returns the package that holds a style."""
    name, version, _, _ = tables.STYLES[style]
    return common.Package("npm", name, version)


def in_every_language(feature: tfds.features.FeatureConnector) -> tfds.features.FeaturesDict:
    """Returns the feature once for each language of emojibase."""
    return tfds.features.FeaturesDict({lang: feature for lang in tables.EMOJIBASE_LANGUAGES})
