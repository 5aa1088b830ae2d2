"""Several sources as one endless sequence of records, mixed by weights, record by record or batch by batch."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data import sources
from mmcl_jax.named import ConfigError, did_you_mean

WAYS = ("records", "batches")
SPAN = 2**40  # batches of one source, at most


def open_sources(config: Mapping[str, Any]) -> tuple[list[Any], list[float]]:
    """The sources of `data.train` and their weights.

    Args:
        config: one source (it has a key `source`), or several by name, each with an optional `weight`: how often its
            records come, relative to those of the others (default: 1, all records equally often), and `streams`,
            see `held`.

    Raises:
        ConfigError: if a weight is not positive.
    """
    configs = _named(config)
    opened = [sources.make(c, _where(k)) for k, c in configs.items()]
    for name, c in configs.items():
        if c.get("weight", 1.0) <= 0:
            raise ConfigError(f"{_where(name)}.weight={c['weight']} must be positive; leave the source out instead.")
    weights = [c.get("weight", 1.0) * len(s) for c, s in zip(configs.values(), opened, strict=True)]
    return opened, [w / sum(weights) for w in weights]


def held(config: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The streams that batches of sources hold, where the config names them: the others are not sent and encoded.

    Args:
        config: `config.data`. With mix="batches", `data.train.<source>.streams` may name those that its records have.
            A stream that is made like one of them (two views of one image, say) comes with it.

    Returns:
        "data.train.<source>" -> streams.

    Raises:
        ConfigError: for a stream that does not exist, or streams named of sources that share batches.
    """
    found = {}
    for name, part in _named(config["train"]).items():
        where, own = _where(name), part.get("streams")
        if own is None:
            continue
        if config.get("mix") != "batches":
            raise ConfigError(
                f"{where}.streams names what batches of this source hold, but with data.mix={config.get('mix')!r} its "
                "records share them with others. Set data.mix='batches', or leave it out."
            )
        if isinstance(own, str):
            raise ConfigError(f"{where}.streams={own!r} must be a tuple: ({own!r},).")
        for stream in own:
            if stream not in config["streams"]:
                raise ConfigError(f"{where}.streams has {stream!r}{did_you_mean(stream, sorted(config['streams']))}")
        found[where] = frozenset(own)
    return found


def _where(name: str) -> str:
    return ".".join(filter(None, ("data.train", name)))


def _named(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"": config} if "source" in config else dict(config)


def mixed(config: Mapping[str, Any], parts: Sequence[Any], weights: Sequence[float], seed: int, batch: int) -> Mixed:
    """The training sequence of a run.

    Args:
        config: `config.data`; its `mix` is "records" (None is, too), or "batches" for batches of one source each, whose
            examples have the same modalities.
        parts: sources.
        weights: their shares.
        seed: of the run.
        batch: the global batch.

    Raises:
        ConfigError: for another `mix`.
    """
    how = config.get("mix") or "records"  # runs from before there was such a key have none
    if how not in WAYS:
        raise ConfigError(f"data.mix={how!r} does not exist{did_you_mean(str(how), WAYS)}")
    own = held(config)
    streams = [own.get(_where(name)) for name in _named(config["train"])] if own else None
    return Mixed(parts, weights, seed, batch if how == "batches" else 1, streams)


class Mixed:
    """Each source shuffled by its own seed and repeated (another order each epoch); then mixed by weights.

    grain orders the records' numbers only: the records themselves it would measure, field by field.

    Args:
        parts: sources.
        weights: their shares.
        seed: of the run.
        block: records in a row that come from one source.
        streams: what is made of the records of each source, None = all that there is; None = all of every source.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        weights: Sequence[float],
        seed: int,
        block: int = 1,
        streams: Sequence[frozenset[str] | None] | None = None,
    ):
        import grain

        self.parts, self.block, self.streams = parts, block, streams
        self.ends = list(itertools.accumulate(len(part) for part in parts))
        self.each = [
            grain.MapDataset.range(end - len(part), end).shuffle(seed=(seed + 7919 * i) % 2**32).repeat()
            for i, (part, end) in enumerate(zip(parts, self.ends, strict=True))
        ]
        if len(parts) == 1:
            self.order = self.each[0]
        elif block == 1:
            self.order = grain.MapDataset.mix(self.each, weights=list(weights))
        else:  # which source a block is from, and which of that source's blocks it is
            numbers = [grain.MapDataset.range(i * SPAN, (i + 1) * SPAN) for i in range(len(parts))]
            self.order = grain.MapDataset.mix(numbers, weights=list(weights))

    def __getitem__(self, position: int) -> dict[str, Any]:
        number = self._number(position)
        part = self._part(number)
        return self.parts[part][number - self.ends[part] + len(self.parts[part])]

    def streams_at(self, position: int) -> frozenset[str] | None:
        """The streams that are made of the record at a position; None = all."""
        return self.streams and self.streams[self._part(self._number(position))]

    def _part(self, number: int) -> int:
        return bisect.bisect_right(self.ends, number)

    def _number(self, position: int) -> int:
        """Of the record among those of all sources."""
        if self.block == 1 or len(self.parts) == 1:
            return int(self.order[position])
        block, row = divmod(position, self.block)
        part, nth = divmod(int(self.order[block]), SPAN)
        return int(self.each[part][nth * self.block + row])
