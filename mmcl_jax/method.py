"""What a method is: a frozen object of pure functions. The trainer and the evaluators know nothing else of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax import named, parallel
from mmcl_jax.losses import unit
from mmcl_jax.losses.softmax import product
from mmcl_jax.types import Array, Batch, Ctx, Encoded, PyTree, Stream, first_clips, fold_candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: encoders, readouts and the functions that most of them share.

    Of the functions, `loss` must be written; the others have a default that suits dual encoders.
    Parameters live under the encoder's name, its readout's under "<name>_readout", a head's under its own name; those
    that readouts have in common, as their attribute `shared` says, under the name that they have there.
    Batch statistics of any of them live in `extra["batch_stats"]`, under the same name.

    Attributes:
        encoders: one per modality; stream "image/v1" is encoded by encoders["image"].
        readouts: one per modality that has a place in a shared space.
        heads: further readouts for losses of the method's own: "<modality>_<what for>" reads what the encoder gave,
            "<modality>_readout_<what for>" (as `Encoded.pooled`) what the modality's readout made of that.
        streams: the streams that `loss` requires; checked against the config before anything compiles.
        spaces: the embedding spaces and the modalities that live in each.
    """

    encoders: Mapping[str, nn.Module]
    readouts: Mapping[str, nn.Module]
    heads: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)

    streams: ClassVar[tuple[str, ...]] = ()
    spaces: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        """Initial (params, extra) for streams like those of `batch`; one row of each is enough."""
        params, stats = {}, {}
        batch = first_clips(batch)

        def add(name, module, key, x):
            out, variables = module.init_with_output(key, x)
            own = variables.get("params", {})
            shared = getattr(module, "shared", ())
            for part in shared:
                params.setdefault(part, own[part])
            params[name] = {k: v for k, v in own.items() if k not in shared}
            if "batch_stats" in variables:
                stats[name] = variables["batch_stats"]
            return out

        for i, (name, encoder) in enumerate(sorted(self.encoders.items())):
            key_encoder, key_readout = jax.random.split(jax.random.fold_in(rng, i))
            encoded = add(name, encoder, key_encoder, batch[self._sample_of(name, batch)])
            if name in self.readouts:
                read = Encoded(pooled=add(f"{name}_readout", self.readouts[name], key_readout, encoded))
            for j, head in enumerate(sorted(h for h in self.heads if h.split("_")[0] == name), 1):
                source = read if head.startswith(f"{name}_readout_") else encoded
                add(head, self.heads[head], jax.random.fold_in(key_readout, j), source)
        return params, {"batch_stats": stats} if stats else {}

    def encode(self, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx) -> tuple[dict[str, Encoded], PyTree]:
        """Encodes every stream of the batch that has an encoder; side data is left out. In chunks, if ctx says so.

        Of a stream of K candidates or clips per example, arrays are [B, K, ...].
        """
        streams = {name: s for name, s in batch.items() if name.split("/")[0] in self.encoders}
        streams, unfold = _fold(streams)
        encoded, extra = _in_chunks(self._encode, params, extra, streams, ctx)
        return unfold(encoded), extra

    def project(self, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx) -> tuple[dict[str, Array], PyTree]:
        """Unit vectors [B, D] of every stream of the batch that has an encoder and a readout; in chunks likewise.

        Of a stream of K candidates or clips per example they are [B, K, D].
        """

        def project(params, extra, streams, ctx):
            encoded, extra = self._encode(params, extra, streams, ctx)
            return self._read(params, extra, encoded, streams, ctx)

        streams = {name: s for name, s in batch.items() if name.split("/")[0] in self.readouts}
        streams, unfold = _fold(streams)
        if any(f"{name.split('/')[0]}_readout" in extra.get("batch_stats", {}) for name in streams):
            encoded, extra = self.encode(params, extra, streams, ctx)  # in chunks, but not what needs the whole batch
            z, extra = self._read(params, extra, encoded, streams, ctx)
        else:
            z, extra = _in_chunks(project, params, extra, streams, ctx)
        return unfold(z), extra

    def read(
        self, name: str, params: PyTree, extra: PyTree, encoded: Encoded, ctx: Ctx, present: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Unit vectors that a readout or a head makes of what its modality's encoder gave, [B, D]; see `apply`."""
        out, extra = self.apply(name, params, extra, encoded, ctx, present)
        return unit(out), extra

    def apply(
        self, name: str, params: PyTree, extra: PyTree, encoded: Encoded, ctx: Ctx, present: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """What a readout or a head makes of what its modality's encoder gave, as it is.

        Args:
            name: "<modality>_readout" or the head's.
            params: of the method.
            extra: of the method.
            encoded: of a stream.
            ctx: the surroundings.
            present: [B] bool, the stream's.

        Returns:
            That, and `extra` with the batch statistics brought up to date.
        """
        module = self.heads[name] if name in self.heads else self.readouts[name.removesuffix("_readout")]
        variables = {"params": params[name] | {k: params[k] for k in getattr(module, "shared", ())}}
        stats = extra.get("batch_stats", {})
        own = {"batch_stats": stats[name]} if name in stats else {}
        train = ctx.train and name not in ctx.frozen

        def apply(variables, rows):
            encoded, present = rows
            state = dict(train=train, present=present, step=ctx.step) if own else {}
            return module.apply(variables, encoded, **state, mutable=["batch_stats"])

        out, new = parallel.with_whole_weights(apply, ctx.mesh)(variables | own, (encoded, present))
        return out, extra | {"batch_stats": stats | {name: new["batch_stats"]}} if own else extra

    def _read(self, params, extra, encoded, streams, ctx):
        vectors = {}
        for name, e in encoded.items():
            readout = f"{name.split('/')[0]}_readout"
            vectors[name], extra = self.read(readout, params, extra, e, ctx, streams[name].present)
        return vectors, extra

    def _encode(self, params: PyTree, extra: PyTree, streams: Batch, ctx: Ctx) -> tuple[dict[str, Encoded], PyTree]:
        encoded, stats = {}, extra.get("batch_stats", {})
        for name, stream in streams.items():
            modality = name.split("/")[0]
            train = ctx.train and modality not in ctx.frozen
            rngs = {"dropout": ctx.key(f"dropout {name}")} if train and ctx.rng is not None else {}
            own = {"batch_stats": stats[modality]} if modality in stats else {}

            def apply(variables, stream, encoder=self.encoders[modality], train=train, rngs=rngs):
                return encoder.apply(variables, stream, train=train, rngs=rngs, mutable=["batch_stats"])

            apply = parallel.with_whole_weights(apply, ctx.mesh)
            encoded[name], new = apply({"params": params[modality]} | own, stream)
            stats = stats | {modality: new["batch_stats"]} if own else stats
        return encoded, extra | {"batch_stats": stats} if stats else extra

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        """The science: (loss, (extra, metrics)). Metrics are scalars that are worth a place in the log."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(params, extra, batch, ctx).")

    def trains_on(self, names: Iterable[str]) -> bool:
        """Whether `loss` trains anything on batches that hold no other streams than these."""
        return set(self.streams) <= set(names)

    def check_batch(self, batch: Batch) -> None:
        """Refuses, by a ConfigError, streams that `loss` can't take: here those of several clips per example."""
        check_single(self, batch, "training takes one")

    def after_update(self, params: PyTree, extra: PyTree, ctx: Ctx) -> tuple[PyTree, PyTree]:
        """What happens to the parameters after the optimizer's step: clamps and the like."""
        return params, extra

    def to_embed(self, extra: PyTree) -> PyTree:
        """The part of `extra` that `embed` and `score` read: batch statistics. A run is opened with nothing more."""
        return {name: value for name, value in extra.items() if name == "batch_stats"}

    def restart(self, params: PyTree, extra: PyTree) -> PyTree:
        """`extra` for parameters that come from another run (`config.init_from`): copies of them must be made anew."""
        return extra

    def embed(
        self, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx, space: str | None = None
    ) -> dict[str, Array]:
        """Unit vectors [B, D] of what the batch has of a space (default: the method's first).

        Several clips of an example are averaged once they are of unit length, as in ImageBind's official code; here
        the mean is brought to unit length again, so that a product is a cosine also where these are searched.
        """
        members = self.spaces[space or next(iter(self.spaces))]
        wanted = {k: v for k, v in batch.items() if k.split("/")[0] in members}
        z, _ = self.project(params, extra, wanted, ctx)
        return {k: unit(mean_of_clips(v, batch[k])) if batch[k].several else v for k, v in z.items()}

    def fuse(self, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx) -> tuple[Array, Array]:
        """One vector of each example from whatever it has of the batch's streams; for evaluations with missing ones.

        Here it is the mean of the embeddings that there are.

        Returns:
            [B, D], not normalised, and [B] bool, whether there is any.
        """
        z = self.embed(params, extra, batch, ctx)
        return mean_of_present([z[name] for name in z], [batch[name].is_present() for name in z])

    def items(self, params: PyTree, extra: PyTree, batch: Batch, ctx: Ctx) -> dict[str, PyTree]:
        """What `score` compares: arrays or pytrees of them, with leading rows B; here the embeddings."""
        return self.embed(params, extra, batch, ctx)

    def score(self, params: PyTree, extra: PyTree, items_a: PyTree, items_b: PyTree, ctx: Ctx) -> Array:
        """Similarity [Na, Nb] of every a, the queries, to every b; higher is closer. It need not be symmetric.

        It is called on blocks of rows: an entry depends on its own two items alone.
        """
        return product(items_a, items_b.T)

    def _sample_of(self, modality: str, batch: Batch) -> str:
        for name in batch:
            if name.split("/")[0] == modality:
                return name
        raise ValueError(
            f"There is an encoder for {modality!r}, but the batch has no such stream; it has {sorted(batch)}. "
            f"Add data.streams.{modality} to the config, or remove encoders.{modality}."
        )


def mean_of_present(vectors: Sequence[Array], present: Sequence[Array]) -> tuple[Array, Array]:
    """The mean [B, D] of the vectors [B, D] of an example that are there, [B] bool each; and if any is, [B] bool."""
    there = jnp.stack(present)  # [M, B]
    total = jnp.where(there[..., None], jnp.stack(vectors), 0).sum(0)
    return total / jnp.maximum(there.sum(0), 1)[:, None], there.any(0)


def mean_of_clips(vectors: Array, stream: Stream) -> Array:
    """The mean [B, D] of the vectors [B, K, D] of the clips that an example has; of a stream without, as it is."""
    if not stream.several:
        return vectors
    return mean_of_present(vectors.swapaxes(0, 1), stream.present.T)[0]


def _fold(streams: Batch) -> tuple[Batch, Callable[[Mapping[str, PyTree]], dict[str, PyTree]]]:
    """Candidates and clips as rows, and a function that brings what is made of the streams back to [B, K, ...]."""
    folded, back = dict(streams), {}
    for name, stream in streams.items():
        if stream.several:
            folded[name], back[name] = fold_candidates(stream)
    return folded, lambda made: {k: jax.tree.map(back[k], v) if k in back else v for k, v in made.items()}


def weights_of_terms(given: Mapping[str, float] | None, possible: Iterable[str]) -> dict[str, float]:
    """The weights of a loss's terms where they are not 1, `config.method.weights`: gradient blending's, say.

    Raises:
        ValueError: for a term that does not exist, or a negative weight.
    """
    weights, possible = dict(given or {}), sorted(possible)
    for name, value in weights.items():
        if name not in possible:
            raise ValueError(f"method.weights has {name!r}{named.did_you_mean(name, possible)}")
        if value < 0:
            raise ValueError(f"method.weights.{name}={value} must not be negative.")
    return weights


def _in_chunks(encode: Callable, params: PyTree, extra: PyTree, streams: Batch, ctx: Ctx) -> tuple[PyTree, PyTree]:
    """`encode(params, extra, streams, ctx)`, as many chunks as ctx says, each with randomness of its own.

    Chunks leave `extra` as it is: encoders that would change it are refused by `check_chunks`.
    """
    if ctx.chunks == 1:
        return encode(params, extra, streams, ctx)

    def one(weights, streams, number):
        params, rng = weights
        rng = None if rng is None else jax.random.fold_in(rng, number)
        return encode(params, {}, streams, dataclasses.replace(ctx, rng=rng, chunks=1))[0]

    return parallel.in_chunks(one, ctx.chunks, ctx.mesh)((params, ctx.rng), streams), extra


def check_chunks(method: Method, batch: Batch, chunks: int) -> None:
    """Refuses to encode in chunks what needs the whole batch at once.

    Args:
        method: its encoders are looked at.
        batch: a row of each stream.
        chunks: `config.chunks`.

    Raises:
        ConfigError: naming the encoder that keeps state beside its parameters, as batch normalisation does.
    """
    for name, encoder in method.encoders.items() if chunks > 1 else ():
        stream = next((s for key, s in batch.items() if key.split("/")[0] == name), None)
        if stream is None:
            continue  # made of the others, as GMC's joint encoder
        state = set(jax.eval_shape(encoder.init, jax.random.key(0), stream)) - {"params"}
        if state:
            raise named.ConfigError(
                f"chunks={chunks}, but encoders.{name} keeps {', '.join(sorted(state))}, which must see the whole "
                "batch: a chunk's statistics are others. Set --config.chunks=1, or take a norm without statistics."
            )


def check_single(method: Method, batch: Batch, why: str, prefix: str = "data.streams") -> None:
    """Refuses several clips or candidates per example where one is wanted.

    Args:
        method: its encoders are looked at.
        batch: what was given.
        why: one is wanted.
        prefix: of the streams' keys in the config.

    Raises:
        ConfigError: naming the stream.
    """
    for name, stream in batch.items():
        if name.split("/")[0] in method.encoders and stream.several:
            raise named.ConfigError(
                f"{prefix}.{name} gives {stream.present.shape[1]} clips of an example, but {why}. Take one: excerpt or "
                "center_excerpt instead of excerpts."
            )


def build(config: Any) -> Method:
    """Builds the method and the encoders that a config names.

    `config.method.name` is a file of `mmcl_jax/methods` or a dotted path of one's own; the rest of `config.method`
    are the arguments of that file's `make(encoders, ...)`. Encoders likewise.

    Raises:
        ConfigError: for a name or an argument that does not exist, with what does; for a stream that is missing.
    """
    encoders = {}
    for name, part in config.encoders.items():
        arguments = dict(dtype=config.dtype) | {k: v for k, v in part.items() if k != "name"}
        encoders[name] = named.call("mmcl_jax.encoders", part.name, arguments, f"encoders.{name}")
    arguments = {k: v for k, v in config.method.items() if k != "name"}
    method = named.call("mmcl_jax.methods", config.method.name, arguments, "method", encoders)
    missing = [s for s in method.streams if s not in config.data.streams]
    if missing:
        raise named.ConfigError(
            f"Method {config.method.name!r} needs the streams {', '.join(method.streams)}; data.streams lacks "
            f"{', '.join(missing)}. Add data.streams.{missing[0]}='...ops...'."
        )
    return method
