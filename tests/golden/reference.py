"""Reference arrays. MMCL_GOLDEN_DIR points at another folder with files of the same names, other seeds and shapes."""

import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("MMCL_GOLDEN_DIR", Path(__file__).parent))


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
