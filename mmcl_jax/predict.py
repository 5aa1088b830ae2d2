"""A trained model at work: embed, score, classify. `mmcl_jax.load("runs/x")` makes one from a run."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmcl_jax import files, items, log, named, parallel
from mmcl_jax import method as methods
from mmcl_jax.augment import DeviceStreams
from mmcl_jax.augment import ops as device_ops
from mmcl_jax.checkpoint import Checkpoints, holds_run
from mmcl_jax.data import pipeline, tokenizers
from mmcl_jax.data.chain import resolve
from mmcl_jax.data.record import look_up, nest
from mmcl_jax.items import Embeddings, Items
from mmcl_jax.types import Batch, Ctx, PyTree

TEMPLATES = ("{}",)
THREADS = 8  # that read and decode what is evaluated


def _pooled(method: methods.Method, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx) -> dict[str, Any]:
    encoded, _ = method.encode(params, extra, batch, ctx)
    return {name: methods.mean_of_clips(e.pooled, batch[name]) for name, e in encoded.items()}


# What can be had of rows, beside functions of one's own.
FUNCTIONS = {
    "embed": lambda method, *rest: method.embed(*rest),
    "items": lambda method, *rest: method.items(*rest),
    "pooled": _pooled,
}


@functools.cache
def fused(names: tuple[str, ...]) -> Callable:
    """The function of a model that represents examples by these streams."""
    return lambda method, params, extra, batch, ctx: method.fuse(params, extra, {n: batch[n] for n in names}, ctx)[0]


def device_streams(streams: pipeline.Streams, seed: int) -> DeviceStreams:
    """The device half that belongs to a host half."""
    chains = {name: [(op, resolve(op, device_ops)) for op in chain.device] for name, chain in streams.chains.items()}
    return DeviceStreams(chains, streams.source_of, seed)


def sample_batch(streams: pipeline.Streams, device: DeviceStreams) -> Batch:
    """One row of zeros in the shape of each stream, as the method sees it; for `Method.init`."""
    host = {
        name: jax.tree.map(lambda v: jnp.zeros((1, *v.shape), v.dtype), spec)
        | {"present": jnp.ones((1, *spec["present"].shape), bool)}
        for name, spec in streams.spec.items()
    }
    return device({"streams": host, "position": jnp.zeros((1, 2), jnp.uint32)})


@dataclasses.dataclass
class Predictor:
    """A method with weights, and the evaluation streams that feed it.

    Attributes:
        method: what was trained.
        params: its weights.
        extra: its other state.
        streams: host half of the evaluation streams.
        device: device half.
        mesh: devices; rows are spread over them.
        batch: rows that are encoded at a time; results don't depend on it.
        step: steps that the weights were trained for.
        sources: those of its evaluations, so that they stay open between them.
    """

    method: methods.Method
    params: PyTree
    extra: PyTree
    streams: pipeline.Streams
    device: DeviceStreams
    mesh: Mesh
    batch: int = 128
    step: int = 0
    sources: list[Any] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        """Compiles lazily, once per combination of streams."""
        self.batch = -(-self.batch // self.mesh.size) * self.mesh.size
        whole = parallel.replicated(self.mesh)
        # The step is an argument of what is compiled: weights of another one need no other program.
        ctx = functools.partial(Ctx, self.mesh, parallel.BATCH_AXES)

        def embed(params, extra, step, host, of):
            return FUNCTIONS.get(of, of)(self.method, params, extra, self.device(host), ctx(step=step))

        def score(params, extra, step, a, b):
            b = jax.lax.with_sharding_constraint(b, whole)  # each device compares its rows of a with all of b
            return self.method.score(params, extra, a, b, ctx(step=step))

        self._embed = jax.jit(embed, static_argnames="of", out_shardings=whole)
        self._score = jax.jit(score, out_shardings=whole)
        self._init = jax.jit(self.method.init)
        # Methods that leave `score` as it is compare vectors by their product: numpy does that where they lie.
        self._compares_vectors = type(self.method).score is methods.Method.score

    def embed(self, **values: Sequence[Any]) -> dict[str, np.ndarray]:
        """Embeds raw values: `embed(image=["cat.jpg"], text=["a cat", "a dog"])`.

        Args:
            **values: stream -> what its field holds: paths, encoded bytes or uint8 arrays [H, W, 3] for images, str for
                text.

        Returns:
            stream -> float32 unit vectors [N, D].

        Raises:
            ValueError: for a stream that does not exist, or a value that its ops can't read.
        """
        return self._of_values(values, "embed")

    def items(self, **values: Sequence[Any]) -> dict[str, Items]:
        """What `score` compares, of raw values as for `embed`; arrays or pytrees of them, with leading rows N."""
        return self._of_values(values, "items")

    def compute(self, function: Callable, **values: Sequence[Any]) -> dict[str, Items]:
        """What a function of the model makes of raw values, as `embed` takes them; for analyses.

        Args:
            function: (method, params, extra, batch, ctx) -> {stream: pytree of arrays with leading rows}, in JAX; it is
                compiled once for each stream.
            **values: as for `embed`.
        """
        return self._of_values(values, function)

    def fuse(self, **values: Sequence[Any]) -> np.ndarray:
        """Represents examples by whatever they have: `fuse(image=["cat.jpg", None], text=["a cat", "a dog"])`.

        Args:
            **values: as for `embed`, as many of each stream; None is missing.

        Returns:
            float32 [N, D], as `Method.fuse` makes them: not normalised, zeros for an example that has nothing.

        Raises:
            ValueError: as `embed`; or if there are more of one stream than of another.
        """
        self._check_streams(values, set(self.streams.chains) & set(self.method.encoders))
        lengths = {name: len(given) for name, given in values.items()}
        if len(set(lengths.values())) != 1 or not max(lengths.values()):
            raise ValueError(f"fuse needs as many values of each stream, one at least; there are {lengths}.")
        names, examples, rows = tuple(values), [*zip(*values.values(), strict=True)], []
        for start in range(0, len(examples), self.batch):
            block = [dict(zip(names, example, strict=True)) for example in examples[start : start + self.batch]]
            block = [{name: self.streams.one_or_none(name, v) for name, v in example.items()} for example in block]
            rows.append(self._run(pipeline.stack(block), len(block), fused(names)))
        return items.concatenate(rows)

    def begun(self, seed: int) -> Predictor:
        """The same model as it is before the first step: with the weights that a run with this seed starts from.

        Args:
            seed: `config.seed`; of a run that starts from scratch, whatever `config.init_from` says of this one.
        """
        other = copy.copy(self)  # what is compiled is shared
        other.params, extra = self._init(jax.random.key(seed), sample_batch(self.streams, self.device))
        other.extra, other.step = self.method.to_embed(extra), 0
        return other

    def _check_streams(self, values: Mapping[str, Any], possible: Iterable[str]) -> None:
        unknown = sorted(set(values) - set(possible))
        if unknown:
            raise ValueError(f"There is no stream {unknown[0]!r}; possible here: {sorted(possible)}.")

    def _of_values(self, values: Mapping[str, Sequence[Any]], of: str | Callable) -> dict[str, Items]:
        self._check_streams(values, self.streams.chains)
        found = {}
        for name, given in values.items():
            rows = []
            for start in range(0, len(given), self.batch):
                chunk = [self.streams.one(name, v) for v in given[start : start + self.batch]]
                rows.append(self._run({name: pipeline.stack(chunk)}, len(chunk), of)[name])
            if not rows:
                raise ValueError(f"{name}=[]: nothing to embed.")
            found[name] = items.concatenate(rows)
        return found

    def embed_source(
        self, source: Any, names: Sequence[str], keep: Sequence[str] = (), limit: int = 0, of: str | Callable = "embed"
    ) -> Embeddings:
        """Embeds every record of a source, a batch at a time.

        Where a stream's field holds a list of texts, each of them becomes a row: several captions of one image.
        What is missing or can't be read gets no row.

        Args:
            source: records.
            names: streams.
            keep: fields of the records that the caller wants back: labels, flags.
            limit: only so many records; 0 = all.
            of: what is wanted of them: "embed", unit vectors of the shared space; "items", what the method's `score`
                compares; "pooled", the encoder's pooled features, before any projection and not normalised: what
                probes are fitted on; or a function, as for `compute`.

        Raises:
            ConfigError: if a stream has no encoder, or finds nothing at all.
        """
        encoders = sorted(self.method.encoders)
        for name in names:
            if name.split("/")[0] not in encoders:
                raise named.ConfigError(f"Stream {name!r} can't be embedded: it has no encoder; encoders: {encoders}.")
        n = min(len(source), limit) if limit else len(source)
        vectors: dict[str, list[Items]] = {name: [] for name in names}
        owners: dict[str, list[int]] = {name: [] for name in names}
        texts: dict[str, list[str]] = {name: [] for name in names}
        waiting: dict[str, list[dict]] = {name: [] for name in names}
        kept: dict[str, list[Any]] = {field: [] for field in keep}
        faults: list[str] = []

        def flush(name: str) -> None:
            rows = waiting[name]
            vectors[name].append(self._run({name: pipeline.stack(rows)}, len(rows), of)[name])
            rows.clear()

        def prepare(i: int):
            return self._prepare(pipeline.read(source, i), i, names, keep)

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, n, self.batch):  # a batch at a time: what is prepared ahead takes memory
                block = range(start, min(start + self.batch, n))
                for i, (fields, rows, problems) in zip(block, pool.map(prepare, block), strict=True):
                    for field, value in fields.items():
                        kept[field].append(value)
                    faults += problems
                    for name, value, arrays in rows:
                        owners[name].append(i)
                        texts[name] += [value] if isinstance(value, str) else []
                        waiting[name].append(arrays)
                        if len(waiting[name]) == self.batch:
                            flush(name)
        if faults:
            log.warn(f"left out of the evaluation: {len(faults)} that can't be read, the first is {faults[0]}")
        for name in names:
            if waiting[name]:
                flush(name)
            if not vectors[name]:
                field = self.streams.chains[name].field
                raise named.ConfigError(f"Nothing to evaluate: no record has a readable {field!r} (stream {name!r}).")
        return Embeddings(
            {k: items.concatenate(v) for k, v in vectors.items()},
            {k: np.array(v) for k, v in owners.items()},
            texts,
            kept,
            n,
            len(faults),
        )

    def together(
        self, source: Any, names: Sequence[str], of: Callable, keep: Sequence[str] = (), limit: int = 0
    ) -> tuple[Items, dict[str, list[Any]]]:
        """What a function makes of several streams of every record at once, some of which may be missing.

        Args:
            source: records.
            names: streams.
            of: as for `compute`, but of all these streams; what an example lacks is zeros with present=False.
            keep: fields of the records that the caller wants back.
            limit: only so many records; 0 = all.

        Returns:
            Its result with a row for each record, and field -> its values.
        """
        n = min(len(source), limit) if limit else len(source)
        rows, kept, faults = [], {field: [] for field in keep}, []
        wanted = {name: self.streams.source_of[name] for name in names}

        def prepare(i: int):
            record, fault = self.streams.prepared(pipeline.read(source, i), i)
            element = self.streams.element_of(record, fault, i, wanted.values())
            return element, [look_up(record, field) for field in keep]

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, n, self.batch):
                elements = []
                for element, values in pool.map(prepare, range(start, min(start + self.batch, n))):
                    elements.append({name: element["streams"][source] for name, source in wanted.items()})
                    faults += [str(element["fault"])] if str(element["fault"]) else []
                    for field, value in zip(keep, values, strict=True):
                        kept[field].append(value)
                rows.append(self._run(pipeline.stack(elements), len(elements), of))
        if faults:
            log.warn(f"missing from the evaluation: {len(faults)} that can't be read, the first is {faults[0]}")
        return items.concatenate(rows), kept

    def _prepare(self, record: Any, i: int, names: Sequence[str], keep: Sequence[str]) -> tuple[dict, list, list]:
        """The fields to keep of a record, its rows (stream, value, arrays) and what could not be read."""
        if isinstance(record, Exception):
            return dict.fromkeys(keep), [], [f"record {i}: {type(record).__name__}: {record}"]
        record = self.streams.record(record, i)
        rows, problems = [], []
        for name in names:
            field = self.streams.chains[name].field
            for v in self.streams.values(name, record):
                arrays, problem = self.streams.run(name, nest(field, v), i)
                if problem:
                    problems.append(f"record {record.get('id', i)}, {name}: {problem}")
                if arrays is not None:
                    rows.append((name, v, arrays))
        return {field: look_up(record, field) for field in keep}, rows, problems

    def _run(self, host: Mapping[str, dict[str, np.ndarray]], n: int, of: str | Callable) -> dict[str, Items]:
        """Embeds n rows of host streams; fills them up to the batch, so that there is one compiled shape.

        Streams that share their host half are embedded together with the one that is asked for.
        """
        row = np.arange(self.batch) < n
        streams = {self.streams.source_of[k]: items.block(v, 0, self.batch) for k, v in host.items()}
        streams = {k: v | {"present": (row & v["present"].T).T} for k, v in streams.items()}  # [B], or [B, K] of clips
        host = {"streams": streams, "position": np.zeros((self.batch, 2), np.uint32)}
        rows = parallel.put_rows(host, self.mesh, whole=True)
        return items.to_host(self._embed(self.params, self.extra, np.int32(self.step), rows, of=of), n)

    def score(self, a: Items, b: Items) -> np.ndarray:
        """Similarity [Na, Nb] of every a, the queries, to every b, float32, as the method compares them.

        a and b are a stream's `items` each, which for dual encoders are its unit vectors; the score is their cosine.
        """
        if self._compares_vectors:
            return np.asarray(a) @ np.asarray(b).T
        rows = [*self._score_rows(a, b)]
        return np.concatenate(rows) if rows else np.zeros((0, items.count(b)), np.float32)

    def _score_rows(self, a: Items, b: Items) -> Iterator[np.ndarray]:
        """`score`, a batch of rows after another."""
        put = functools.partial(parallel.put_rows, mesh=self.mesh, whole=True)
        compare = functools.partial(self._score, self.params, self.extra, np.int32(self.step))
        return items.score_rows(compare, put, a, b, self.batch)

    def class_scores(self, images: Items, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
        """Scores [N, C] of images for classes, each described by several prompts.

        For dual encoders the cosine with the class's vector: each prompt normalised, averaged over templates,
        normalised again. Other items have no mean: there the scores of the prompts are averaged, as in FILIP
        (Yao et al. 2021, arXiv 2111.07783).

        Args:
            images: their items [N, ...].
            classes: C names.
            templates: prompts, "a photo of a {}.".
        """
        texts = self.items(text=[t.format(c) for c in classes for t in templates])["text"]
        shape = (-1, len(classes), len(templates))
        if not self._compares_vectors:
            return np.concatenate([rows.reshape(shape).mean(-1) for rows in self._score_rows(images, texts)])
        return self.score(images, items.prototypes(texts.reshape(*shape[1:], -1)))

    def zero_shot(
        self, images: Sequence[Any], classes: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> tuple[list[str], np.ndarray]:
        """Classifies images by the names of the classes.

        Args:
            images: as for `embed`.
            classes: names.
            templates: prompts, "a photo of a {}."; several are averaged.

        Returns:
            The best class of each image, and the scores [N, C]; for dual encoders cosines.
        """
        scores = self.class_scores(self.items(image=images)["image"], classes, templates)
        return [classes[i] for i in scores.argmax(1)], scores


def load(run: str | Path, step: int | None = None, batch: int = 128, mesh: Mesh | None = None) -> Predictor:
    """Opens a run.

    Args:
        run: its workdir.
        step: of the checkpoint; default: the newest that can be used.
        batch: rows encoded at a time.
        mesh: devices; default: all, as the run's `config.mesh` says if that fits them.

    Raises:
        FileNotFoundError: if the workdir holds no run, or no checkpoint yet.
    """
    run = holds_run(files.path(run))
    config = ConfigDict(json.loads((run / "config.json").read_text()))
    tokenizer = tokenizers.load(run / "tokenizer.json") if (run / "tokenizer.json").exists() else None
    streams = pipeline.Streams(config.data.eval_streams, config.seed, tokenizer, pipeline.eval_record(config.data))
    streams.read_spec(run / "eval_streams.json")
    predictor = untrained(config, streams, mesh or parallel.mesh_or_all(config.mesh), batch)
    # Only what is needed: the optimizer's moments would take twice the memory of the weights.
    weights = {"opt_state": {"average": predictor.params}} if config.optim.average else {"params": predictor.params}
    # Likewise queues and momentum twins.
    kept = predictor.method.to_embed(predictor.extra)
    wanted = weights | ({"extra": kept} if kept else {})
    rules = config.mesh.get("rules", ())
    sharding = parallel.state_sharding(wanted, predictor.mesh, rules, predictor.params)
    wanted = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), wanted, sharding)
    restored = Checkpoints(run, read_only=True).restore(wanted, step)
    if restored is None:
        raise FileNotFoundError(f"{run} has no checkpoint yet.")
    predictor.step, found = restored
    predictor.params = found["opt_state"]["average"] if config.optim.average else found["params"]
    predictor.extra = found.get("extra", {})
    return predictor


def untrained(config: ConfigDict, streams: pipeline.Streams, mesh: Mesh, batch: int = 128) -> Predictor:
    """A predictor of the config's method whose params are only shapes; put weights in before use."""
    model = methods.build(config)
    device = device_streams(streams, config.seed)
    sample = named.checked("data.eval_streams", sample_batch, streams, device)
    # Shapes that don't fit each other are found here, in a second, before anything compiles.
    params, extra = named.checked("encoders", jax.eval_shape, lambda: model.init(jax.random.key(0), sample))
    return Predictor(model, params, extra, streams, device, mesh, batch)
