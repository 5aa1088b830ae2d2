"""Folders on disks, and on Google Cloud Storage (gs://) through etils and gcsfs.

An object store has no appending, no renaming and no locks: files are written whole, and what grows (metrics.jsonl) does
so in a local folder, which is copied.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.config
from etils import epath

from mmcl_jax.named import ConfigError

# Or what another process writes would stay unseen, and a file that has grown be read as long as it was.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)

AnyPath = Path | epath.Path


def path(where: str | os.PathLike) -> AnyPath:
    """A local path, or one on an object store.

    Raises:
        ConfigError: for a kind of address that is not known, or whose package is not installed.
    """
    text = os.fspath(where)
    if not is_remote(text):
        return Path(text).expanduser()
    if not text.startswith("gs://"):
        raise ConfigError(f"{text}: folders are local or on gs://.")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"{text} needs the package gcsfs: pip install 'mmcl-jax[gcs]'.")
    return epath.Path(text)


def is_remote(where: str | os.PathLike) -> bool:
    """Whether this is an address on an object store."""
    return "://" in os.fspath(where)


def write_whole(where: AnyPath, text: str) -> None:
    """Writes a file such that a crash leaves the old one or the new one, never half of it."""
    if is_remote(where):
        where.write_text(text)  # seen by nobody before it is complete
        return
    temporary = where.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(where)


def sizes(folder: AnyPath) -> dict[str, int]:
    """Path within the folder -> bytes, of all files in it and its folders."""
    if not is_remote(folder):
        found = {}
        for p in sorted(folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                if p.is_file():
                    found[str(p.relative_to(folder))] = p.stat().st_size
        return found
    root = os.fspath(folder).removeprefix("gs://") + "/"
    found = _store().find(os.fspath(folder), detail=True)
    return {name.removeprefix(root): info["size"] for name, info in sorted(found.items())}


def free_bytes(folder: AnyPath) -> int | None:
    """Room on the disk of a folder, which need not be there yet; None for an object store."""
    if is_remote(folder):
        return None
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def copy_tree(source: Path, target: epath.Path, last: str) -> None:
    """Copies a local folder to an object store, the files named `last` at the end: they say that the rest is there."""
    for name in sorted(sizes(source), key=lambda name: Path(name).name == last):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _store().put_file(source / name, os.fspath(target / name))


def _store() -> Any:
    # The instance that etils uses: another one would have another cache.
    return fsspec.filesystem("gcs", finalize_on_close=True)


class Mirror:
    """A local folder for what grows during a run; on an object store it is copied there now and then.

    Args:
        workdir: of the run. A local one is the folder itself, and nothing is copied.
        fetch: files to begin with, if they are there.
        owned: whether the workdir is still this run's; where it is not, nothing is copied.
    """

    def __init__(self, workdir: AnyPath, fetch: tuple[str, ...], owned: Callable[[], bool]):
        self.workdir, self.owned, self.pushed = workdir, owned, dict[str, tuple[int, int]]()
        self.folder = workdir
        if not is_remote(workdir):
            return
        self.folder = Path(tempfile.mkdtemp(prefix="mmcl_")) / workdir.name
        self.folder.mkdir()
        for name in fetch:
            if (workdir / name).exists():
                (self.folder / name).write_bytes((workdir / name).read_bytes())
        self._changed()  # what was fetched is there already

    def push(self) -> None:
        """Copies what has changed since the last time."""
        if is_remote(self.workdir) and self.owned():
            for name in self._changed():
                target = self.workdir / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((self.folder / name).read_bytes())

    def _changed(self) -> list[str]:
        now = {}
        for name in sizes(self.folder):
            with contextlib.suppress(FileNotFoundError):  # W&B tidies up its own files
                stat = (self.folder / name).stat()
                now[name] = stat.st_mtime_ns, stat.st_size
        changed = [name for name in now if self.pushed.get(name) != now[name]]
        self.pushed = now
        return changed

    def close(self) -> None:
        """Copies the rest, and deletes the local folder if it was only a copy."""
        self.push()
        if is_remote(self.workdir):
            shutil.rmtree(self.folder.parent)
