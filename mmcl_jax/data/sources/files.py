"""One's own images and captions: a table (csv, tsv, jsonl or parquet) beside a folder of images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from mmcl_jax.named import did_you_mean

SPLITS = {"test": 5, "validation": 10, "train": 100}  # upper ends, in percent of the hash


def make(
    path: str, split: str = "train", root: str = "", image: str = "image", caption: str = "caption", id: str = ""
) -> Files:
    """Opens a table with a row per image, or per caption.

    Args:
        path: the table; .csv, .tsv, .jsonl / .json (an object a line) or .parquet.
        split: value of the column `split` if there is one. Otherwise rows are divided by a hash of the image's name
            into train (90 %), validation (5 %) and test (5 %); "all" takes all.
        root: folder that image paths are relative to; default: the table's.
        image: column of image paths.
        caption: column of captions, a text or (jsonl, parquet) a list of them. Rows with the same image are one
            record with several captions.
        id: column of names for messages and embeddings; default: the image's path.

    Raises:
        FileNotFoundError: if the table is not there.
        ValueError: if its format, a column or the split is unknown, or the split is empty.
    """
    return Files(path, split, root, image, caption, id)


class Files:
    """See `make`. Records have `image` (a path), `captions` (list of str), `id`, and the table's other columns."""

    def __init__(self, path: str, split: str, root: str, image: str, caption: str, id: str):
        table = Path(path).expanduser()
        self.root = Path(root).expanduser() if root else table.parent
        rows = _read(table)
        columns = list(rows[0]) if rows else []
        for argument, column in (("image", image), ("caption", caption)) + ((("id", id),) if id else ()):
            if column not in columns:
                raise ValueError(f"{table} has no column {column!r} ({argument}){did_you_mean(column, columns)}")
        by_image: dict[str, dict[str, Any]] = {}
        for n, row in enumerate(rows):
            value = row[caption]
            captions = [value] if isinstance(value, str) else list(value or [])
            # A row without an image is a record of its own, with a caption only; an empty caption is a missing one.
            record = by_image.setdefault(row[image] or f"row {n}", row | {"captions": []})
            record["captions"] += [c for c in captions if c]
            if record.get("split") != row.get("split"):
                splits = f"{record['split']!r} and {row['split']!r}"
                raise ValueError(f"{table}: {row[image]!r} is in the splits {splits}; its captions would leak.")
        wanted = [(key, r) for key, r in by_image.items() if split in ("all", _split_of(r, key))]
        if not wanted:
            possible = sorted({_split_of(r, key) for key, r in by_image.items()} | {"all"})
            raise ValueError(f"{table} has no rows of split {split!r}; it has {', '.join(possible)}.")
        self.records = [
            {k: v for k, v in r.items() if k not in (image, caption)}
            | {"image": r[image], "id": str(r[id] if id else key), "captions": r["captions"] or None}
            for key, r in wanted
        ]
        self.root.stat()  # a missing folder is said now, not as a million unreadable images

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        record = dict(self.records[i])
        record["image"] = str(self.root / record["image"]) if record["image"] else None
        return record


def _split_of(record: dict[str, Any], key: str) -> str:
    if record.get("split"):
        return record["split"]
    percent = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
    return next(name for name, end in SPLITS.items() if percent < end)


def _read(path: Path) -> list[dict[str, Any]]:
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
            return pa.csv.read_csv(path, parse_options=parse, convert_options=convert).to_pylist()
        if suffix in (".jsonl", ".json"):
            return pa.json.read_json(path).to_pylist()
        if suffix == ".parquet":
            return pa.parquet.read_table(path).to_pylist()
    except pa.ArrowInvalid as e:
        raise ValueError(f"{path} can't be read as {suffix[1:]}: {e}") from e
    raise ValueError(f"{path}: unknown kind of table {suffix!r}; possible: .csv, .tsv, .jsonl, .json, .parquet.")
