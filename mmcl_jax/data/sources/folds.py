"""Cross-validation: records too few for a test split of their own are all tested in turn, a fold at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import sources
from mmcl_jax.data.record import is_there, look_up
from mmcl_jax.named import ConfigError, did_you_mean

PARTS = ("train", "test")


def make(of: Mapping[str, Any], fold: int = 0, k: int = 5, part: str = "train", by: str = "id",
         needs: Sequence[str] = (), complete: bool = False) -> Folds:  # fmt: skip
    """One of k ways to part a source. Its records are read once for it: for sets of up to some 100,000.

    Records to be tested are dealt out to k folds, as many values of `by` to each; the way it is done depends on these
    values alone. What is trained on has no value of `by` in common with what is tested.

    Args:
        of: the source, as in `data.train`.
        fold: which fold is tested, 0 .. k - 1.
        k: how many there are.
        part: "test", the fold; or "train", all records that don't belong to what it tests.
        by: field of what must not be on both sides: near-twins, a speaker.
        needs: fields without which a record is never tested.
        complete: whether to train on nothing but records that have these fields, too.

    Raises:
        ConfigError: if the fold or the part does not exist.
        ValueError: if a record lacks `by`, or fewer than k values of it can be tested.
    """
    if part not in PARTS:
        raise ConfigError(f"folds: part={part!r}{did_you_mean(part, PARTS)}")
    if k < 2 or not 0 <= fold < k:
        raise ConfigError(f"folds: fold={fold} is not one of 0 .. {k - 1}; k={k} folds, of which there must be two.")
    source = sources.make(of, "folds.of")
    values, testable = [], []
    for i in range(len(source)):
        record = source[i]
        values.append(look_up(record, by))
        if not isinstance(values[-1], str | int | np.integer):
            raise ValueError(
                f"folds: record {i} has no field {by!r} of a name or a number; it has {', '.join(sorted(record))}."
            )
        testable.append(all(is_there(look_up(record, field)) for field in needs))
    groups = sorted({v for v, t in zip(values, testable, strict=True) if t}, key=str)
    if len(groups) < k:
        lack = f" with {', '.join(needs)}" if needs else ""
        raise ValueError(f"folds: {len(groups)} values of {by!r}{lack} can't make k={k} folds.")
    order = np.random.default_rng(0).permutation(len(groups))
    tested = {groups[i] for i in order[fold::k]}
    there = [v in tested for v in values]
    if part == "test":
        return Folds(source, [i for i, (g, t) in enumerate(zip(there, testable, strict=True)) if g and t])
    keep = testable if complete else [True] * len(there)
    return Folds(source, [i for i, (g, kept) in enumerate(zip(there, keep, strict=True)) if kept and not g])


class Folds:
    """See `make`."""

    def __init__(self, source: Any, places: Sequence[int]):
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[self.places[i]]

    @property
    def attribution(self) -> str:
        """Whom to credit wherever a picture of the set is shown."""
        return getattr(self.source, "attribution", "")

    def class_names(self, field: str) -> list[str] | None:
        """Names of the classes of a field, if the source knows them."""
        return sources.class_names(self.source, field)
