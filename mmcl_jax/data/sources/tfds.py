"""TensorFlow Datasets, read without TensorFlow: random access to array_record files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mmcl_jax import files


def make(name: str, split: str = "train", data_dir: str = "", in_memory: bool = False) -> Tfds:
    """Opens a data set that is on disk.

    Args:
        name: "openmoji/color", "emoji_styles/noto", or any set prepared with `file_format="array_record"`.
        split: a split, "train[:50%]" and "train+validation" included.
        data_dir: TFDS's folder, also on gs://; default: TFDS_DATA_DIR of the environment, or ~/tensorflow_datasets.
        in_memory: keep records once they are read, images still encoded; for sets that are small.

    Raises:
        FileNotFoundError: if it has not been built there.
        ValueError: if the split does not exist or is empty, or the format can't be read at random.
    """
    return Tfds(name, split, data_dir, in_memory)


class Tfds:
    """See `make`. Images stay encoded, texts are str, nested features are dicts.

    Beside a ClassLabel, a number, stands what it says, "<field>_words": "food drink" for the class "food-drink".
    """

    def __init__(self, name: str, split: str, data_dir: str, in_memory: bool):
        import tensorflow_datasets as tfds  # slow to import

        files.path(data_dir or os.environ.get("TFDS_DATA_DIR", ""))  # refuses what can't be read
        try:
            builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
        except (tfds.core.DatasetNotFoundError, ValueError, FileNotFoundError) as e:
            raise FileNotFoundError(_how_to_build(name, data_dir or tfds.core.constants.DATA_DIR)) from e
        if not builder.info.splits:
            raise FileNotFoundError(_how_to_build(name, builder.data_dir))
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{name} is stored as {builder.info.file_format}; only array_record can be read at random. Rebuild it "
                'with download_and_prepare(file_format="array_record").'
            )
        self.info = builder.info
        # Images stay as the bytes they are: the stream's `decode` opens them, and counts those that don't open.
        skip = {
            k: tfds.decode.SkipDecoding() for k, f in self.info.features.items() if isinstance(f, tfds.features.Image)
        }
        try:
            self.records = builder.as_data_source(split=split, decoders=skip)
        except (ValueError, KeyError) as e:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(self.info.splits)}. ({e})") from e
        if not len(self.records):
            raise ValueError(f"Split {split!r} of {name} is empty; it has {dict(_sizes(self.info))}.")

        self.words = {
            f"{k}_words": (k, [name.replace("-", " ").replace("_", " ") for name in f.names])
            for k, f in self.info.features.items()
            if isinstance(f, tfds.features.ClassLabel)
        }
        self.kept: dict[int, dict[str, Any]] | None = {} if in_memory else None

    @property
    def attribution(self) -> str:
        """Whom to credit wherever a picture of the set is shown; "" if the set doesn't say."""
        return (self.info.metadata or {}).get("attribution", "")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if self.kept is None:
            return self._read(i)
        if i not in self.kept:
            self.kept[i] = self._read(i)
        return self.kept[i]

    def _read(self, i: int) -> dict[str, Any]:
        record = {k: _plain(v) for k, v in self.records[i].items()}
        record |= {words: said[record[k]] for words, (k, said) in self.words.items() if record[k] >= 0}
        return {"id": record.get("concept_id", str(i))} | record

    def class_names(self, field: str) -> list[str] | None:
        """Names of the classes of a ClassLabel field, else None."""
        return getattr(dict(self.info.features.items()).get(field), "names", None)


def _sizes(info):
    return ((name, split.num_examples) for name, split in info.splits.items())


def _how_to_build(name: str, data_dir) -> str:
    return (
        f"Data set {name!r} is not under {data_dir}. Build one of ours with `mmcl data build {name}`, or say where it "
        "is: TFDS_DATA_DIR=folder, or data_dir in the config."
    )


def _plain(value: Any) -> Any:
    """Bytes of text to str, arrays of texts to lists; encoded images stay bytes."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:  # no encoded image is UTF-8: their signatures see to that
            return value
    if isinstance(value, np.ndarray) and value.dtype == object or isinstance(value, list):
        return [_plain(v) for v in value]
    return value
