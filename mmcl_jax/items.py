"""Items, what a method's `score` compares: an array, or a pytree of arrays, whose leading dimension is rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Items = Any
KEPT_MIB = 1024  # of rows that stay on each device while they are compared


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What `Predictor.embed_source` found.

    Attributes:
        vectors: stream -> [M, D] float32, unit vectors or pooled features; or items, M rows.
        owners: stream -> [M] int, the record that each row belongs to.
        texts: stream -> M texts, for streams whose field is text (or a path).
        kept: field -> its value in each record.
        size: number of records.
        unreadable: values that could not be read, and have no row.
    """

    vectors: dict[str, Items]
    owners: dict[str, np.ndarray]
    texts: dict[str, list[str]]
    kept: dict[str, list[Any]]
    size: int
    unreadable: int

    def pairs(self, *names: str) -> tuple[np.ndarray, list[Items]]:
        """The records that have all of some streams, and of each stream a row of each of them, its first.

        Args:
            *names: streams.

        Returns:
            [N] int, the records, and for each stream its rows [N, ...].
        """
        first = {name: np.unique(self.owners[name], return_index=True) for name in names}
        records = functools.reduce(np.intersect1d, [owners for owners, _ in first.values()])
        rows = [at[np.searchsorted(owners, records)] for owners, at in first.values()]
        return records, [take(self.vectors[name], r) for name, r in zip(names, rows, strict=True)]


def count(items: Items) -> int:
    """The number of rows."""
    return len(jax.tree.leaves(items)[0])


def take(items: Items, rows: Any) -> Items:
    """Some of the rows; `rows` is a slice, numbers or truth values."""
    return jax.tree.map(lambda x: x[rows], items)


def concatenate(parts: Sequence[Items]) -> Items:
    """The rows of all parts."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def to_host(items: Items, n: int) -> Items:
    """The first n rows as numpy arrays: floats as float32, masks and ids as they are."""

    def fetch(x):
        return np.asarray(x, np.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)[:n]

    return jax.tree.map(fetch, items)


def block(items: Items, start: int, size: int) -> Items:
    """`size` rows from `start` on; behind the end the last one again, for a row of zeros might make NaN."""
    return take(items, np.minimum(np.arange(start, start + size), count(items) - 1))


def score_rows(
    score: Callable[[Items, Items], Any], put: Callable[[Items], Items], a: Items, b: Items, size: int
) -> Iterator[np.ndarray]:
    """Scores of every a with every b, block by block of a.

    They are made of tiles [size, size]: one compiled shape. b stays on the devices if it is not too large for that.

    Args:
        score: (block of a, block of b) -> [size, size].
        put: block on the host -> block on the devices.
        a: Na rows, the queries.
        b: Nb rows.
        size: rows of a block.

    Yields:
        [<= size, Nb] float32.
    """
    na, nb = count(a), count(b)
    starts = range(0, nb, size)
    stay = sum(x.nbytes for x in jax.tree.leaves(b)) <= KEPT_MIB * 2**20
    kept = [put(block(b, at, size)) for at in starts] if stay else None
    for start in range(0, na, size):
        rows = put(block(a, start, size))
        columns = kept if stay else (put(block(b, at, size)) for at in starts)
        tiles = [np.asarray(score(rows, c), np.float32) for c in columns]
        yield np.concatenate(tiles, axis=1)[: na - start, :nb]


def prototypes(prompts: np.ndarray) -> np.ndarray:
    """The vector of each class: the mean of its prompts' unit vectors [C, T, D], normalised again, [C, D]."""
    mean = prompts.mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
