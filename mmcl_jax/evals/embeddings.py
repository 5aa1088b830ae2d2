"""What all evaluators ask of embeddings, and how embeddings are written to files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mmcl_jax import files
from mmcl_jax.data.pipeline import Streams, read
from mmcl_jax.items import Items, count
from mmcl_jax.named import ConfigError, did_you_mean
from mmcl_jax.predict import Predictor


def check_finite(*items: Items) -> None:
    """Refuses embeddings that are not finite: comparisons with NaN are false, which can look like perfect recall.

    Raises:
        ValueError: with the number of bad rows.
    """
    for x in items:
        finite = [np.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in jax.tree.leaves(x)]
        bad = ~np.all(finite, axis=0)
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {count(x)} embeddings are not finite; metrics of them would mean nothing."
            )


def check_streams(streams: Streams, names: Sequence[str], where: str) -> None:
    """Refuses streams that data.eval_streams does not have.

    Raises:
        ConfigError: with those that it has.
    """
    for name in names:
        if name not in streams.chains:
            raise ConfigError(f"{where}: there is no stream {name!r}{did_you_mean(name, streams.chains)}")


def check_choice(where: str, name: str, value: Any, possible: Iterable[str]) -> None:
    """Refuses the value of an argument that is one of a few words.

    Raises:
        ConfigError: with those words.
    """
    if value not in possible:
        raise ConfigError(f"{where}.{name}={value!r} does not exist{did_you_mean(str(value), possible)}")


def first_records(streams: Streams, source: Any, count: int = 64) -> list[dict[str, Any]]:
    """Those of a source's first records that can be read, after the record ops: for checks of their fields."""
    found = [read(source, i) for i in range(min(count, len(source)))]
    return [streams.record(r, i) for i, r in enumerate(found) if not isinstance(r, Exception)]


def booleans(values: Sequence[Any], field: str) -> np.ndarray:
    """A field's values as [N] bool; tables may have them as text.

    Raises:
        ValueError: if one is neither a truth value nor the name of one.
    """
    words = {"true": True, "false": False, "1": True, "0": False}
    found = [words.get(str(v).lower()) for v in values]
    if None in found:
        raise ValueError(f"Field {field!r} has the value {values[found.index(None)]!r}; possible: true, false, 1, 0.")
    return np.array(found, bool)


def write(
    predictor: Predictor, source: Any, out: files.AnyPath, names: Sequence[str] = ()
) -> list[tuple[files.AnyPath, int]]:
    """Embeds a source and writes each stream's embeddings, as npz and as parquet.

    Args:
        predictor: the model.
        source: records.
        out: folder for "<stream>.npz" (arrays `id` [M] str and `embedding` [M, D] float32) and "<stream>.parquet"
            (the same as columns, and `text` where the stream is made of text).
        names: streams; default: all.

    Returns:
        The paths written, and the number of rows in each.
    """
    check_streams(predictor.streams, names, "streams")
    out.mkdir(parents=True, exist_ok=True)
    found = predictor.embed_source(source, list(names or predictor.streams.chains), ("id",))
    written = []
    for name, vectors in found.vectors.items():
        ids = [str(found.kept["id"][i] if found.kept["id"][i] is not None else i) for i in found.owners[name]]
        texts = found.texts[name] if len(found.texts[name]) == len(ids) else None
        npz, table = (out / f"{name.replace('/', '_')}.{kind}" for kind in ("npz", "parquet"))
        with npz.open("wb") as f:
            np.savez_compressed(f, id=np.array(ids), embedding=vectors)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        columns = {"id": pa.array(ids), "embedding": rows} | ({"text": pa.array(texts)} if texts else {})
        with table.open("wb") as f:
            pa.parquet.write_table(pa.table(columns), f)
        written += [(npz, len(ids)), (table, len(ids))]
    return written
