"""TFDS data set `tux_stamps`: the stamps of Tux Paint, pictures with a caption, a spoken name and a sound effect.

Not every stamp has everything, so that missing modalities are real: of 950 stamps with a caption 130 have a sound
effect that is not silent, and nearly all a spoken name, in one language or in ten. The stamps are under the GPL 2 and
are never part of this package: they are read from where Debian's package `tuxpaint-stamps-default` installs them, from
the folder that the environment variable TUX_STAMPS_DIR names, or fetched with `apt-get download`, which needs no root.
Where there is no apt-get, unpack the package (`ar x`, then `tar xf data.tar.xz`) and set TUX_STAMPS_DIR.
"""

import collections
import hashlib
import io
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mmcl_jax.data import sound
from mmcl_jax.data.datasets import emoji_common as common

PACKAGE = common.Package("apt", "tuxpaint-stamps-default", "")  # whichever version the distribution has
INSTALLED = pathlib.Path("/usr/share/tuxpaint/stamps")
CATEGORIES = (
    "animals", "clothes", "food", "hobbies", "household", "medical", "military", "naturalforces", "people", "plants",
    "seasonal", "space", "sports", "symbols", "town", "vehicles",
)  # fmt: skip
# Languages with some 700 captions or more; of them, and of those, names are spoken in.
LANGUAGES = (
    "be", "bg", "ca", "cs", "da", "de", "el", "en", "es", "fi", "fr", "hu", "it", "ja", "ko", "lv", "nb", "nl", "pl",
    "pt", "ro", "ru", "sk", "sl", "sv", "tr", "uk", "vi",
)  # fmt: skip
SPOKEN = ("be", "bg", "ca", "da", "el", "en", "es", "fr", "lt", "nl", "ro", "ru")
RATE = 16_000  # Hz
LICENCE = "GPL-2.0-or-later"
CITATION = """
@misc{tuxpaint_stamps,
  title  = {Tux Paint stamps},
  author = {{The Tux Paint contributors}},
  note   = {GPL-2.0-or-later, https://tuxpaint.org},
}
"""


class TuxStamps(tfds.core.GeneratorBasedBuilder):
    """Stamps at 64 x 64 with captions, sound effects and spoken names at 16 kHz, split by the thing they show."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "tuxpaint-stamps 2022.06.04; the field `thing`, by which it is split."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="default", description="A record per stamp, with its name spoken in English."),
        tfds.core.BuilderConfig(name="spoken", description="A record per stamp and language of its spoken name."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text, audio = tfds.features.Text(), tfds.features.Tensor(shape=(None,), dtype=np.int16)
        features = {
            "concept_id": text,  # path of the stamp
            "image": tfds.features.Image(shape=(common.IMAGE_SIZE, common.IMAGE_SIZE, 4)),
            "caption": text,
            "captions": tfds.features.FeaturesDict({lang: tfds.features.Sequence(text) for lang in LANGUAGES}),
            "sfx": audio,  # empty where there is none
            "speech": audio,
            "category": tfds.features.ClassLabel(names=CATEGORIES),
            "folder": text,
            "thing": text,  # what splits are made by: stamps of one thing have the same
            "is_letter": tfds.features.Scalar(np.bool_),
        }
        if self.builder_config.name == "spoken":
            features |= {"lang": tfds.features.ClassLabel(names=SPOKEN), "spoken_caption": tfds.features.Sequence(text)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage="https://tuxpaint.org",
            license=LICENCE,
            citation=CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder, archives = stamps_folder(dl_manager.download_dir)
        attribution = "Stamps of Tux Paint by its contributors (https://tuxpaint.org), GPL-2.0-or-later"
        self.info.metadata.update(common.provenance(archives, license=LICENCE, attribution=attribution))
        stamps = find_stamps(folder)
        captions = {stem: read_captions((folder / found["txt"]).read_bytes()) for stem, found in stamps.items()}
        things = find_things(folder, stamps, captions)
        return {
            split: self._generate_examples(
                folder, {k: v for k, v in stamps.items() if split_of(things[k]) == split}, captions, things
            )
            for split in common.SPLITS
        }

    def _generate_examples(
        self,
        folder: pathlib.Path,
        stamps: dict[str, dict[str, str]],
        captions_of: dict[str, dict[str, str]],
        things: dict[str, str],
    ) -> Iterator[tuple[str, dict]]:
        for stem, found in stamps.items():
            captions = captions_of[stem]
            record = {
                "concept_id": stem,
                "image": picture(folder / found["image"]),
                "caption": captions["en"],
                "captions": {lang: [captions[lang]] if lang in captions else [] for lang in LANGUAGES},
                "sfx": recording(folder, found.get("sfx")),
                "category": stem.split("/")[0],
                "folder": "/".join(stem.split("/")[:2]),
                "thing": things[stem],
                "is_letter": stem.startswith("symbols/alphabets/"),
            }
            if self.builder_config.name == "default":
                yield stem, record | {"speech": recording(folder, found.get("speech/en"))}
                continue
            for lang in SPOKEN:
                if f"speech/{lang}" in found:
                    said = {"speech": recording(folder, found[f"speech/{lang}"]), "lang": lang}
                    said["spoken_caption"] = [captions[lang]] if lang in captions else []
                    yield f"{stem}/{lang}", record | said


def stamps_folder(downloads: str | os.PathLike) -> tuple[pathlib.Path, list[common.Archive]]:
    """Finds the stamps, or fetches them: their folder, and what they were fetched as.

    Raises:
        FileNotFoundError: if TUX_STAMPS_DIR is no folder of stamps.
        RunError: if there is no `apt-get`, or it does not know the package.
    """
    named = os.environ.get("TUX_STAMPS_DIR")
    if named or INSTALLED.exists():
        folder = pathlib.Path(named or INSTALLED)
        if not (folder / "animals").is_dir():
            raise FileNotFoundError(f"TUX_STAMPS_DIR={folder} holds no stamps: there is no folder {folder}/animals.")
        return folder, []
    archive = common.fetch(PACKAGE, downloads)
    unpacked = archive.path.parent.parent / f"{archive.path.stem}-unpacked"
    folder = unpacked / str(INSTALLED).lstrip("/")
    if not folder.exists():
        subprocess.run(["dpkg-deb", "-x", archive.path, unpacked], check=True)
    return folder, [archive]


def find_stamps(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """What there is of each stamp that has a picture and a caption: {stem: {what: path in the folder}}.

    "image" is its pixels rather than its drawing where there are both, since a drawing may ask for fonts; "txt" are its
    captions, "sfx" is its sound, "speech/<language>" its spoken name. A stamp that is another one in the mirror is left
    out: it has no caption.
    """
    stamps: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for path in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")):
        stem, _, kind = path.rpartition(".")
        said = re.fullmatch(r"(.+)_desc(?:_([a-zA-Z]+))?", stem)
        if kind in ("png", "svg"):
            stamps[stem].setdefault("image", path)  # in this order
        elif kind == "txt":
            stamps[stem]["txt"] = path
        elif kind in ("ogg", "wav") and said:
            stamps[said.group(1)][f"speech/{said.group(2) or 'en'}"] = path
        elif kind in ("ogg", "wav"):
            stamps[stem]["sfx"] = path
    return {stem: found for stem, found in sorted(stamps.items()) if {"image", "txt"} <= found.keys()}


def thing_of(stem: str) -> str:
    """What a stamp shows: the letter A filled, outlined and small is one thing.

    >>> {thing_of(f"symbols/alphabets/{a}") for a in ("filled/A_filled", "outline/lower/a_outline", "A2")}
    {'a'}
    """
    name = re.sub(r"_(filled|outline).*", "", stem.rpartition("/")[2].lower())
    return re.sub(r"[-_\d]+$", "", name) or name


def find_things(
    folder: pathlib.Path, stamps: dict[str, dict[str, str]], captions: dict[str, dict[str, str]]
) -> dict[str, str]:
    """The thing that each stamp shows: stamps with one name, one English caption or one sound effect show the same.

    A badger has the beaver's sound, and there are several cows; none of them may be on both sides of a split.
    """
    marks: dict[str, set[str]] = {}
    for stem, found in stamps.items():
        marks[stem] = {f"name {thing_of(stem)}", f"caption {captions[stem]['en'].lower()}"}
        if "sfx" in found:
            marks[stem].add(f"sound {hashlib.sha256((folder / found['sfx']).read_bytes()).hexdigest()}")
    group: dict[str, str] = {}  # mark -> the name of its thing, the first of all that are linked

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            name = group[name]
        return name

    for linked in marks.values():
        first, *others = sorted({root(mark) for mark in linked}, key=lambda r: (not r.startswith("name"), r))
        group.update(dict.fromkeys(others, first))
    return {stem: root(f"name {thing_of(stem)}").removeprefix("name ") for stem in stamps}


def split_of(thing: str) -> str:
    """About 80/10/10 by the thing that is shown."""
    bucket = int(hashlib.sha256(thing.encode()).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def read_captions(text: bytes) -> dict[str, str]:
    r"""Captions by language: the first line is English, the others are `fr.utf8=...`; empty ones are left out.

    >>> read_captions("A cat.\nfr.utf8=Un chat.\nde.utf8=".encode())
    {'en': 'A cat.', 'fr': 'Un chat.'}
    """
    first, *others = text.decode("utf-8", errors="replace").splitlines()
    pairs = (line.partition(".utf8=") for line in others)
    captions = {"en": first.strip()} | {lang.strip(): said.strip() for lang, mark, said in pairs if mark}
    return {lang: said for lang, said in captions.items() if said}


def picture(path: pathlib.Path) -> bytes:
    """A stamp as a square RGBA PNG, whole and centred."""
    if path.suffix == ".svg":
        return common.render(path.read_text())
    image = Image.open(path).convert("RGBA")
    scale = common.IMAGE_SIZE / max(image.size)
    size = tuple(max(1, round(scale * side)) for side in image.size)
    buffer = io.BytesIO()
    common.squared(image.resize(size, Image.Resampling.LANCZOS)).save(buffer, "PNG")
    return buffer.getvalue()


def recording(folder: pathlib.Path, path: str | None) -> np.ndarray:
    """A sound as int16 at `RATE`; empty if there is none, or it is no use: four animals say nothing, in silence."""
    try:
        samples = sound.read((folder / path).read_bytes(), RATE) if path else np.zeros(0)
    except ValueError as e:
        print(f"{path} is left out: {e}")
        samples = np.zeros(0)
    return np.round(32767 * samples).astype(np.int16)
