"""From sources to batches. Row r of step s is a pure function of (seed, s, r): see `Pipeline`.

A batch of the host is {"streams": {name: {"data", "mask", "present"}}, "position": [b, 2] uint32, "id": [b] str,
"fault": [b] str}; "data" is an array or a dict of arrays. Streams that share a deterministic host half are there once,
under the first one's name; `Streams.source_of` says where each stream's rows are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data import ops as host_ops
from mmcl_jax.data import record as record_ops_module
from mmcl_jax.data import tokenizers
from mmcl_jax.data.chain import Chain, HostOps, Memory, parse_ops, parse_stream
from mmcl_jax.data.record import look_up
from mmcl_jax.files import AnyPath
from mmcl_jax.named import ConfigError, checked

ENDLESS = 2**62  # length of the training stream
RARE = 10_000  # records that are looked at for a stream that few have
WIDE = ("i8", "f8")
Element = dict[str, Any]


class Streams:
    """The host half of all streams: a record at a position -> one element of a batch.

    Args:
        config: stream name -> chain, as in `data.streams`.
        seed: of the run.
        tokenizer: for `tokenize`.
        record: chain of record ops that comes first.
        cache_mib: memory for what the ops before the first random one make, decoded images above all; 0 = none.

    Raises:
        ValueError: if a chain can't be read or names an op that does not exist.
    """

    def __init__(self, config: Mapping[str, str], seed: int, tokenizer: Any = None, record: str = "",
                 cache_mib: float = 0):  # fmt: skip
        memory = Memory(int(cache_mib * 2**20)) if cache_mib else None
        resources = {"tokenizer": tokenizer}
        self.tokenizer = tokenizer
        self.chains: dict[str, Chain] = {name: parse_stream(name, text) for name, text in sorted(config.items())}
        self.record = HostOps(parse_ops("record", record), record_ops_module, seed, resources)
        self.hosts = {name: HostOps(c.host, host_ops, seed, resources, memory) for name, c in self.chains.items()}
        self.source_of: dict[str, str] = {}
        shared: dict[tuple, str] = {}
        for name, chain in self.chains.items():
            key = (chain.field, tuple((op.name, op.args, op.kwargs, op.p, op.tied and op.draw) for op in chain.host))
            self.source_of[name] = shared.setdefault(key, name) if self.hosts[name].shareable else name
        self.spec: dict[str, dict[str, np.ndarray]] = {}

    def find_spec(self, *sources: Any, tries: int = 64) -> None:
        """Finds the shape and dtype of every stream from the first record on which its ops succeed.

        Args:
            sources: of the records.
            tries: number of records of each source that are looked at if need be, spread over it; where streams are
                missing from all of these, and none has failed, many more are.

        Raises:
            ConfigError: if a stream fails on all of them: a fault of the config rather than of the data.
        """
        problems: dict[str, str] = {}
        unreadable = ""
        wanted = set(self.source_of.values())
        fields: set[str] = set()
        places = [np.unique(np.linspace(0, len(s) - 1, tries).astype(int)) for s in sources]
        for source, i in ((s, int(i)) for s, at in zip(sources, places, strict=True) for i in at):
            record = read(source, i)
            if isinstance(record, Exception):
                unreadable = f"{type(record).__name__}: {record}"
                continue
            record = self.record(record, 0)
            fields |= set(record)
            for name in sorted(wanted - set(self.spec)):
                value, problem = self.run(name, record, 0)
                if problem is None and value is not None:
                    self.spec[name] = each(np.zeros_like, value)
                elif problem:
                    problems[name] = problem
            if wanted == set(self.spec):
                return
        absent = sorted(wanted - set(self.spec))
        if fields and not any(name in problems for name in absent) and tries < RARE:  # not faulty: it may be rare
            return self.find_spec(*sources, tries=RARE)
        name = next((name for name in absent if name in problems), absent[0])
        missing = f"field {self.chains[name].field!r} is missing or empty"
        what = problems.get(name, missing if fields else unreadable)
        raise ConfigError(
            f"Stream {name!r} could not be made from any of {sum(map(len, places))} records: "
            f"{what}. Its field is {self.chains[name].field!r}; records have {sorted(fields)}."
        )

    def prepared(self, record: dict[str, Any] | Exception, position: int) -> tuple[dict[str, Any], str]:
        """A record after the record ops, and "", or what went wrong; it is empty but for its id then."""
        identity = {"id": position if isinstance(record, Exception) else record.get("id", position)}
        try:
            if isinstance(record, Exception):
                raise record
            return identity | self.record(record, position), ""
        except Exception as e:  # noqa: BLE001 - data can be wrong in any way; it is masked, counted and told
            return identity, f"record: {type(e).__name__}: {e}"

    def element(self, record: dict[str, Any] | Exception, position: int) -> Element:
        """One element: a stream that fails or is missing is zeros with present=False; all are, of a failed record."""
        return self.element_of(*self.prepared(record, position), position, self.spec)

    def element_of(self, record: dict[str, Any], fault: str, position: int, names: Iterable[str]) -> Element:
        """As `element`, of some streams of what `prepared` gives."""
        streams, faults = {}, [fault] if fault else []
        for name in names:
            value, problem = self.run(name, record, position)
            if problem is not None:
                faults.append(f"{name}: {problem}")
            streams[name] = self.spec[name] if value is None else value
        return {
            "streams": streams,
            "position": np.array([position >> 32, position & 0xFFFFFFFF], np.uint32),
            "id": np.asarray(str(record["id"])),
            "fault": np.asarray("; ".join(faults)),
        }

    def one(self, name: str, value: Any) -> dict[str, np.ndarray]:
        """The arrays of one raw value of a stream.

        Raises:
            ValueError: if its ops can't read it.
        """
        arrays = _arrays(self.hosts[name](value, 0))
        problem = self._misfit(name, arrays)
        if problem:
            raise ValueError(f"{name}: {problem}")
        return arrays

    def one_or_none(self, name: str, value: Any) -> dict[str, Any]:
        """As `one`, with `present`; of None zeros that are not."""
        return self.spec[self.source_of[name]] if value is None else self.one(name, value)

    def values(self, name: str, record: dict[str, Any]) -> list[Any]:
        """What is evaluated one by one of a stream's field: each text and each image of a list, else the whole."""
        value = look_up(record, self.chains[name].field)
        alone = {"tokenize", "decode"} & {op.name for op in self.chains[name].host}
        return value if alone and isinstance(value, list) else [value]

    def run(self, name: str, record: dict[str, Any], position: int) -> tuple[dict | None, str | None]:
        """A stream of a record: (arrays, None); (None, None) if its field is missing; or (None, what went wrong)."""
        value = look_up(record, self.chains[name].field)
        if value is None or (isinstance(value, list | np.ndarray) and not len(value)):
            return None, None
        try:
            value = _arrays(self.hosts[name](value, position))
        except Exception as e:  # noqa: BLE001 - as above
            return None, f"{type(e).__name__}: {e}"
        problem = self._misfit(name, value)
        return (None, problem) if problem else (value, None)

    def _misfit(self, name: str, arrays: dict[str, np.ndarray]) -> str | None:
        found = flat(arrays)
        for key, value in found.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                return f"{key}: {(~np.isfinite(value)).sum()} of {value.size} numbers are not finite"
        for key, like in flat(self.spec.get(name, {})).items():
            if found[key].shape != like.shape or found[key].dtype != like.dtype:
                return f"{key} is {found[key].dtype}{found[key].shape}, expected {like.dtype}{like.shape}"
        return None

    def write_spec(self, path: AnyPath) -> None:
        """Saves shapes and dtypes, so that a model can be opened without its data."""
        path.write_text(json.dumps(each(lambda v: [v.dtype.name, list(v.shape)], self.spec)))

    def read_spec(self, path: AnyPath) -> None:
        """Reads what `write_spec` saved."""
        found = each(lambda v: np.zeros(v[1], v[0]), json.loads(path.read_text()))
        self.spec = {name: {"present": np.False_} | arrays for name, arrays in found.items()}  # older runs have none


@dataclasses.dataclass
class Pipeline:
    """The endless training stream of one process.

    Sources are shuffled, repeated and mixed into one endless global sequence of records. With global batch B over
    P processes, b = B / P, item i of process p is at position `(i // b) * B + p * b + i % b` of that sequence, so
    that neither rows nor their order nor an example's random draws depend on how many processes or workers there are.

    Attributes:
        records: random access to the global sequence, as `mix.Mixed` gives it.
        streams: what is made of a record.
        batch: B, the global batch.
        process: p.
        processes: P.
    """

    records: Any
    streams: Streams
    batch: int
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Element:
        b = self.batch // self.processes
        position = (i // b) * self.batch + self.process * b + i % b
        wanted = self.records.streams_at(position)
        names = self.streams.spec if wanted is None else sorted({self.streams.source_of[name] for name in wanted})
        return self.streams.element_of(*self.streams.prepared(read(self.records, position), position), position, names)

    def batches(self, step: int, threads: int = 2, prefetch: int = 4, workers: int = 0) -> Iterator[Element]:
        """Batches of this process from `step` on; nothing else is needed to resume.

        Args:
            step: number of batches to pass over, without reading them.
            threads: threads that read and decode, each a batch. Small pictures want one, photos more.
            prefetch: batches kept ready.
            workers: processes that read and decode, instead of this one's threads.
        """
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain's workers read absl's flags
            flags.FLAGS.mark_as_parsed()
        # A batch is one element for grain: per record it costs more than small records themselves do.
        ds = grain.MapDataset.source(Batches(self))[step:]
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)  # its unit: batches
        ds = ds.to_iter_dataset(options)
        if workers:
            ds = ds.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_as_worker)
        return iter(ds)


def _as_worker(worker: int, workers: int) -> None:
    """A worker's first act: signals to stop, which schedulers send to all processes, are for the one that trains.

    When that one is gone, however it ended, so is the worker.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass
class Batches:
    """A pipeline as random access to the batches of its process.

    Attributes:
        pipeline: of elements.
    """

    pipeline: Pipeline

    def __len__(self) -> int:
        return ENDLESS // self.pipeline.batch

    def __getitem__(self, step: int) -> Element:
        b = self.pipeline.batch // self.pipeline.processes
        return stack([self.pipeline[step * b + i] for i in range(b)])


def read(source: Any, i: int) -> dict[str, Any] | Exception:
    """A record of a source, or why it can't be read: that is masked and counted like any other fault."""
    try:
        return source[i]
    except Exception as e:  # noqa: BLE001 - data can be wrong in any way
        return e


def eval_record(config: Any) -> str:
    """The record ops of evaluation: `data.eval_record`, or training's where it says nothing (None)."""
    own = config.get("eval_record")  # runs from before there was such a key have none
    return config.record if own is None else own


def make_tokenizer(
    config: Any, opened: list[Any], workdir: AnyPath, begun: bool = False, inherited: AnyPath | None = None
) -> tokenizers.Tokenizer | None:
    """The run's tokenizer: its own from before, or the config's, or one trained on the captions.

    Args:
        config: `config.data`.
        opened: the training sources.
        workdir: of the run, where it is read from and saved to.
        begun: whether the run goes on from a checkpoint, whose tokens mean what its own tokenizer says.
        inherited: tokenizer of the run whose token embeddings this one starts from; it comes before the config's.

    Returns:
        The tokenizer, or None if no stream is tokenized.

    Raises:
        ConfigError: if the fields that it should be trained on hold no text, if the config names another one than
            the inherited, or if a stream masks tokens (`mlm`) and the tokenizer was made without `<mask>`.
    """
    if not any("tokenize" in text for text in config.streams.values()):
        return None
    chains = {name: parse_stream(name, text).host for name, text in config.streams.items()}
    masking = [name for name, host in chains.items() if any(op.name == "mlm" for op in host)]
    path = workdir / "tokenizer.json"
    if begun and path.exists():
        return _with_mask(tokenizers.load(path), masking, path, "begin a new run in another workdir")
    if inherited:
        mend = "drop the token embeddings that init_from takes over: init_from.rules=('text:',)"
        tokenizer = _with_mask(tokenizers.load(inherited), masking, inherited, mend)
        if config.tokenizer.path and tokenizers.load(config.tokenizer.path) != tokenizer:
            raise ConfigError(
                f"data.tokenizer.path={config.tokenizer.path} is not the tokenizer of the token embeddings that "
                f"init_from takes over, {inherited}. Leave it empty, or drop them: init_from.rules=('text:',)."
            )
    elif config.tokenizer.path:
        tokenizer = checked("data.tokenizer.path", tokenizers.load, config.tokenizer.path)
        mend = "leave data.tokenizer.path empty, so that one is trained with it"
        _with_mask(tokenizer, masking, config.tokenizer.path, mend)
    else:
        texts = _captions(config, opened)
        tokenizer = tokenizers.train(texts, config.tokenizer.vocab, config.tokenizer.lower, bool(masking))
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    return tokenizer


def _with_mask(
    tokenizer: tokenizers.Tokenizer, masking: list[str], path: AnyPath | str, mend: str
) -> tokenizers.Tokenizer:
    """Refuses a tokenizer without `<mask>` where streams mask tokens."""
    if masking and tokenizer.mask is None:
        raise ConfigError(
            f"data.streams.{masking[0]} masks tokens (mlm), but the tokenizer {path} was made without <mask>. "
            f"Leave out mlm, or {mend}."
        )
    return tokenizer


def _captions(config: Any, opened: list[Any], limit: int = 1_000_000) -> Iterator[str]:
    """Texts of the tokenizer's fields in all sources, evenly spaced records where there are more than `limit`."""
    record_ops = HostOps(parse_ops("record", config.record), record_ops_module, 0, {})
    found, seen = 0, set()
    for source in opened:
        for i in range(0, len(source), max(1, len(source) * len(opened) // limit)):
            record = read(source, i)
            if isinstance(record, Exception):
                continue
            record = record_ops(record, i)
            seen |= set(record)
            for field in config.tokenizer.fields:
                value = look_up(record, field)
                texts = [value] if isinstance(value, str) else value or []
                found += len(texts)
                yield from texts
    if not found:
        fields = ", ".join(config.tokenizer.fields)
        raise ConfigError(f"data.tokenizer.fields=({fields}) hold no text; records have {sorted(seen)}.")


def _arrays(value: Any) -> dict[str, Any]:
    """What a stream's host half makes of a field, as arrays; of several clips, it says itself which are there."""
    value = value if isinstance(value, dict) else {"data": value}
    return {"present": np.True_} | each(_narrow, value)


def _narrow(value: Any) -> np.ndarray:
    """An array of at most 32 bits a number, as devices have them: Python's numbers are of 64."""
    array = np.asarray(value)
    if array.dtype.kind == "i" and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise ValueError(f"{array.max()} is a whole number of more than 32 bits")
    return array.astype({"i": np.int32, "f": np.float32}[array.dtype.kind]) if array.dtype.str[1:] in WIDE else array


def stack(elements: Sequence[Element]) -> Element:
    """Elements to a batch; nested dicts of arrays are stacked along a new leading axis."""
    return each(lambda *arrays: np.stack(arrays), *elements)


def each(function: Callable, *trees: Any) -> Any:
    """Calls a function with the arrays at each place of nested dicts that have the same keys.

    Example:
        >>> each(sum, {"data": {"ids": [1, 2]}, "mask": [3]})
        {'data': {'ids': 3}, 'mask': 3}
    """
    first = trees[0]
    return {k: each(function, *(t[k] for t in trees)) for k in first} if isinstance(first, dict) else function(*trees)


def flat(tree: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested dicts as one, by path.

    Example:
        >>> flat({"data": {"ids": 1, "labels": 2}, "mask": 3})
        {'data/ids': 1, 'data/labels': 2, 'mask': 3}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{start}{key}/") if isinstance(value, dict) else {start + key: value}
    return found
