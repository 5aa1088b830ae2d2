"""One's own images and captions: a table (csv, tsv, jsonl or parquet) beside a folder of images."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from mmcl_jax import files
from mmcl_jax.named import did_you_mean

SPLITS = {"test": 5, "validation": 10, "train": 100}  # upper ends, in percent of the hash


def make(
    path: str,
    split: str = "train",
    root: str = "",
    image: str = "image",
    caption: str = "caption",
    id: str = "",
    paths: Sequence[str] = (),
) -> Files:
    """Opens a table with a row per image, or per caption.

    Args:
        path: the table; .csv, .tsv, .jsonl / .json (an object a line) or .parquet.
        split: value of the column `split` if there is one. Otherwise rows are divided by a hash of the image's name
            into train (90 %), validation (5 %) and test (5 %); "all" takes all.
        root: folder that image paths are relative to; default: the table's.
        image: column of image paths.
        caption: column of captions, a text or (jsonl, parquet) a list of them. Rows with the same image, and
            the same `paths`, are one record with several captions. "" = images only.
        id: column of names for messages and embeddings; default: the image's path.
        paths: other columns of paths, of sounds or depth images, that are relative to the same folder.

    Raises:
        FileNotFoundError: if the table is not there.
        ValueError: if its format, a column or the split is unknown, or the split is empty.
    """
    return Files(path, split, root, image, caption, id, tuple(paths))


class Files:
    """See `make`. Records have `image` (a path), `captions` (list of str), `id`, and the table's other columns.

    The table stays as Arrow has it, and is read once for all of its splits; a record is made when it is asked for.
    """

    def __init__(self, path: str, split: str, root: str, image: str, caption: str, id: str, paths: tuple[str, ...]):
        if files.is_remote(path) or files.is_remote(root):
            raise ValueError(
                f"{path} {root}: tables and images are read from local disks; TFDS data sets also from gs://."
            )
        file = Path(path).expanduser()
        self.root = Path(root).expanduser() if root else file.parent
        self.image, self.caption, self.id, self.paths = image, caption, id, paths
        self.table = _open(file)
        columns = self.table.column_names
        for argument, column in [("image", image), ("caption", caption), ("id", id), *(("paths", p) for p in paths)]:
            if (column or argument == "image") and column not in columns:
                raise ValueError(f"{file} has no column {column!r} ({argument}){did_you_mean(column, columns)}")
        _check_texts(file, self.table, image, caption)
        by_image: dict[str, list[int]] = {}
        for n, name in enumerate(self.table[image].to_pylist()):
            # A row without an image is a record of its own, with a caption only.
            by_image.setdefault(name or f"row {n}", []).append(n)
        splits = self.table["split"].to_pylist() if "split" in columns else [None] * len(self.table)
        self.rows: list[list[int]] = []  # of each record
        found = {"all"}
        for key, rows in by_image.items():
            own = splits[rows[0]] or _split_of(key)
            for n in rows[1:]:
                if splits[n] != splits[rows[0]]:
                    both = f"{splits[rows[0]]!r} and {splits[n]!r}"
                    raise ValueError(f"{file}: {key!r} is in the splits {both}; its captions would leak.")
            found.add(own)
            if split in ("all", own):
                parts: dict[tuple, list[int]] = {}  # rows with another sound, say, are other examples
                for n in rows:
                    parts.setdefault(tuple(self.table[p][n].as_py() for p in paths), []).append(n)
                self.rows += parts.values()
        if not self.rows:
            raise ValueError(f"{file} has no rows of split {split!r}; it has {', '.join(sorted(found))}.")
        self.root.stat()  # a missing folder is said now, not as a million unreadable images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        rows = [self.table.slice(n, 1).to_pylist()[0] for n in self.rows[i]]
        record = {k: v for k, v in rows[0].items() if k not in (self.image, self.caption)}
        captions = [c for row in rows for c in _as_list(row.get(self.caption)) if c]  # an empty one is a missing one
        path = rows[0][self.image]
        name = rows[0][self.id] if self.id else path or f"row {self.rows[i][0]}"
        image = str(self.root / path) if path else None
        record |= {p: str(self.root / record[p]) if record[p] else None for p in self.paths}
        return record | {"id": str(name), "image": image, "captions": captions or None}


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _split_of(key: str) -> str:
    percent = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
    return next(name for name, end in SPLITS.items() if percent < end)


def _check_texts(file: Path, table: pa.Table, image: str, caption: str) -> None:
    t = pa.types

    def is_text(kind):
        kind = kind.value_type if t.is_dictionary(kind) else kind
        return t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind) or t.is_null(kind)

    kinds = {column: table.schema.field(column).type for column in (image, caption) if column}
    if not is_text(kinds[image]):
        raise ValueError(f"{file}: column {image!r} holds {kinds[image]}, not paths of images.")
    if not caption:
        return
    of = kinds[caption]
    lists = (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    if not is_text(of.value_type if any(is_a(of) for is_a in lists) else of):
        raise ValueError(f"{file}: column {caption!r} holds {of}, neither texts nor lists of texts.")


_tables: weakref.WeakValueDictionary[tuple[str, int], pa.Table] = weakref.WeakValueDictionary()


def _open(path: Path) -> pa.Table:
    """The table, read once as long as any of its splits is open."""
    key = (str(path.resolve()), path.stat().st_mtime_ns if path.is_file() else 0)
    table = _tables.get(key)
    if table is None:
        _tables[key] = table = _read(path).combine_chunks()  # rows of a table in many chunks are slow to find
    return table


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no table at {path}; set data.train.path to a csv, tsv, jsonl or parquet file."
        )
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            parse = pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
            # Every column is text: a caption "7" or a name "007" must not become a number.
            header = pa.csv.open_csv(path, parse_options=parse).schema.names
            convert = pa.csv.ConvertOptions(column_types={name: pa.string() for name in header})
            return pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
        if suffix in (".jsonl", ".json"):
            return pa.json.read_json(path)
        if suffix == ".parquet":
            return pa.parquet.read_table(path)
    except pa.ArrowInvalid as e:
        raise ValueError(f"{path} can't be read as {suffix[1:]}: {e}") from e
    raise ValueError(f"{path}: unknown kind of table {suffix!r}; possible: .csv, .tsv, .jsonl, .json, .parquet.")
