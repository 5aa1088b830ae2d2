"""Arrays in a numpy file: features, trajectories, spectrograms and small images that others have prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def make(path: str, split: str = "train") -> Arrays:
    """Opens a file of arrays; each of them is a field, a row of each a record.

    Args:
        path: an .npz; "{split}" in it is replaced by the split.
        split: as above.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such file, is empty, or its arrays have different lengths.
    """
    file = Path(path.replace("{split}", split)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of arrays at {file}; data.train.path names an .npz.")
    try:
        with np.load(file) as found:
            arrays = dict(found)
    except (ValueError, TypeError, OSError) as e:
        raise ValueError(f"{file} can't be read as .npz without pickled objects: {e}") from e
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1 or not max(lengths.values()):
        raise ValueError(f"{file}: arrays must have one length, and a row at least; they have {lengths}.")
    return Arrays(arrays)


class Arrays:
    """See `make`. A float row of NaN throughout is a missing value; numbers [N] come as Python's own."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = {name: a[i].item() if a.ndim == 1 else a[i] for name, a in self.arrays.items()}
        there = {k: v for k, v in row.items() if not _missing(v)}
        return {"id": str(i)} | there


def _missing(value: Any) -> bool:
    return isinstance(value, float | np.ndarray) and np.asarray(value).dtype.kind == "f" and bool(np.isnan(value).all())
