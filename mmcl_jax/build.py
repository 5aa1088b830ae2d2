"""Everything that a config describes, made and checked before anything compiles: data, model, optimizer, step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmcl_jax import evals, files, inherit, log, named, optim, parallel, predict, processes, step
from mmcl_jax import method as methods
from mmcl_jax.augment import DeviceStreams
from mmcl_jax.data import mix, pipeline, tokenizers
from mmcl_jax.types import PyTree, TrainState


@dataclasses.dataclass
class Parts:
    """What `build` makes.

    Attributes:
        sources: of the training data.
        weights: their shares.
        streams: host half of the training streams.
        device: device half.
        eval_streams: host half of the evaluation streams.
        predictor: of the method, without weights.
        optimizer: whose state is part of the run's.
        init: key -> the state before the first step; to be jitted with `sharding`.
        shapes: of that state.
        sharding: where it lives.
        train_step: (state, rows) -> (state, metrics), jitted.
    """

    sources: list[Any]
    weights: list[float]
    streams: pipeline.Streams
    device: DeviceStreams
    eval_streams: pipeline.Streams
    predictor: predict.Predictor
    optimizer: Any
    init: Callable
    shapes: TrainState
    sharding: PyTree
    train_step: Callable


def build(config: ConfigDict, workdir: files.AnyPath, mesh: Mesh, begun: bool = False,
          sources: Sequence[Any] | None = None) -> Parts:  # fmt: skip
    """Makes the parts of a run.

    Args:
        config: resolved and validated.
        workdir: where the tokenizer is read from and saved to.
        mesh: the devices.
        begun: whether the workdir holds a run that goes on.
        sources: instead of those of `config.data.train`.

    Raises:
        ConfigError: if the config can't work.
        FileNotFoundError: if some data is not there.
    """
    if sources is None:
        sources, weights = mix.open_sources(config.data.train)
    else:
        weights = [1 / len(sources)] * len(sources)
    if not begun:
        inherit.check_fold(config)
    inherited = None if begun else inherit.tokenizer(config)

    processes.from_first(lambda: bool(pipeline.make_tokenizer(config.data, sources, workdir, begun, inherited)))
    tokenizer = pipeline.make_tokenizer(config.data, sources, workdir, True)  # what the first process made
    streams = pipeline.Streams(config.data.streams, config.seed, tokenizer, config.data.record, config.data.cache_mib)
    eval_streams = pipeline.Streams(config.data.eval_streams, config.seed, tokenizer, pipeline.eval_record(config.data))
    for part in (streams, eval_streams):
        part.find_spec(*sources)
    device = predict.device_streams(streams, config.seed)

    predictor = predict.untrained(config, eval_streams, mesh, batch=min(config.batch, 256))
    method = predictor.method
    for where, names in mix.held(config.data).items():
        if not method.trains_on(names):
            raise named.ConfigError(
                f"{where}.streams={tuple(sorted(names))}: on batches of these alone {config.method.name!r} trains "
                f"nothing; its streams are {', '.join(method.streams)}. Leave it out, and what is missing is masked."
            )
    optimizer, schedule, by = named.checked("optim", optim.build, config.optim, config.steps, config.batch,
                                            predictor.params)  # fmt: skip
    asleep = sorted(optim.frozen(by))
    if asleep and not config.init_from.run and not begun:
        log.warn(f"{', '.join(asleep)}: frozen by optim.rules, and untrained, for init_from.run names no run.")
    sample = named.checked("data.streams", predict.sample_batch, streams, device)
    methods.check_chunks(method, sample, config.chunks)
    method.check_batch(sample)

    def init(key):
        return step.init_state(method, optimizer, sample, key)

    shapes = jax.eval_shape(init, jax.random.key(config.seed))
    sharding = named.checked("mesh.rules", parallel.state_sharding, shapes, mesh, config.mesh.rules, shapes.params)
    check_vocabulary(config, tokenizer, shapes.params)
    evals.check(predictor, config.evals, config.data.train)
    train_step = step.make_train_step(method, optimizer, by, schedule, device, mesh, config)
    train_step = step.compile_step(train_step, sharding, mesh)
    return Parts(sources, weights, streams, device, eval_streams, predictor, optimizer, init, shapes, sharding,
                 train_step)  # fmt: skip


def check_vocabulary(config: ConfigDict, tokenizer: tokenizers.Tokenizer | None, params: PyTree) -> None:
    """Refuses a tokenizer with more tokens than a tower has embeddings: they would silently share the last one."""
    tables = dict(zip(jax.tree.leaves(optim.paths(params)), jax.tree.leaves(params), strict=True))
    for modality in inherit.tokenized(config):
        table = tables.get(f"{modality}/tokens/embedding")
        if table is not None and len(tokenizer) > table.shape[0]:
            raise named.ConfigError(
                f"The tokenizer has {len(tokenizer)} tokens, encoders.{modality}.vocab={table.shape[0]}. Set "
                f"--config.encoders.{modality}.vocab={len(tokenizer)} or a smaller data.tokenizer.vocab."
            )
