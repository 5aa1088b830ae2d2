"""What all evaluators ask of embeddings."""

import numpy as np


def check_finite(*arrays: np.ndarray) -> None:
    """Refuses embeddings that are not finite: comparisons with NaN are false, which can look like perfect recall.

    Raises:
        ValueError: with the number of bad rows.
    """
    for x in arrays:
        bad = ~np.isfinite(x).all(-1)
        if bad.any():
            raise ValueError(f"{bad.sum()} of {len(x)} embeddings are not finite; metrics of them would mean nothing.")
