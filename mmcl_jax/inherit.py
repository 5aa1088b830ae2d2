"""What a run takes over from another one, `config.init_from`: weights, and the tokenizer that they know."""

from __future__ import annotations

import collections
import json
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmcl_jax import files, log, optim, parallel
from mmcl_jax import method as methods
from mmcl_jax.checkpoint import holds_run, rename, rename_and_fit
from mmcl_jax.encoders.vit import resize_positions
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import load
from mmcl_jax.types import PyTree, TrainState


def check_fold(config: ConfigDict) -> None:
    """Refuses weights of a run that was trained on what is tested here: one of other folds (source `folds`).

    Raises:
        ConfigError: with what differs.
    """
    ours = config.data.train.to_dict()
    if not config.init_from.run or ours.get("source") != "folds":
        return
    saved = holds_run(files.path(config.init_from.run)) / "config.json"
    theirs = json.loads(saved.read_text())["data"]["train"]
    if theirs.get("source") != "folds":
        log.warn(f"{config.init_from.run} (init_from.run) was not trained in folds: it may know what is tested here.")
        return
    keys = ("of", "fold", "k", "by", "needs", "part")
    ours, theirs = ({k: json.dumps(train.get(k)) for k in keys} for train in (ours, theirs))
    other = [f"{k}={theirs[k]} instead of {ours[k]}" for k in keys if theirs[k] != ours[k]]
    if other:
        raise ConfigError(
            f"{config.init_from.run} (init_from.run) was trained in other folds, {', '.join(other)}: it has seen "
            "what is tested here. Start from a run of the same fold."
        )


def tokenizer(config: ConfigDict) -> files.AnyPath | None:
    """The tokenizer of the run in `config.init_from`, if token embeddings of that run are taken over.

    Raises:
        FileNotFoundError: if there is no such run.
    """
    if not config.init_from.run:
        return None
    path = holds_run(files.path(config.init_from.run)) / "tokenizer.json"
    taken = any(rename(f"{modality}/tokens/embedding", config.init_from.rules) for modality in tokenized(config))
    return path if taken and path.exists() else None


def tokenized(config: ConfigDict) -> set[str]:
    """The modalities of which a stream is tokenized."""
    return {name.split("/")[0] for name, text in config.data.streams.items() if "tokenize" in text}


def start_from(config: Any, state: TrainState, method: methods.Method, optimizer: Any, sharding: PyTree) -> TrainState:
    """A fresh state whose weights start, as far as they fit, from those of another run: `config.init_from`.

    Weights are parameters and the batch statistics that belong to them.

    Args:
        config: `run`, the other's workdir, and `rules`, see `checkpoint.rename_and_fit`.
        state: freshly initialised.
        method: what is trained.
        optimizer: whose state starts anew from the new parameters.
        sharding: of the state.

    Raises:
        FileNotFoundError: if there is no such run.
        ConfigError: if nothing fits.
    """
    other = load(config.run, mesh=jax.tree.leaves(sharding)[0].mesh)

    def by_path(params, extra):
        weights = [*jax.tree_util.tree_leaves_with_path(params)]
        weights += jax.tree_util.tree_leaves_with_path(extra.get("batch_stats", {}))
        return {parallel.path_name(path): value for path, value in weights}

    theirs, ours = by_path(other.params, other.extra), by_path(state.params, state.extra)

    def resize(path, value, shape):
        is_table = path.endswith("image/positions") and value.shape[1:] == shape[1:]
        return resize_positions(value, shape[0]) if is_table else None

    fitted, taken = rename_and_fit(ours, theirs, config.rules, resize)
    log.say(f"init_from {config.run}: {len(taken)} of {len(ours)} weights taken over")
    fresh = collections.Counter("/".join(path.split("/")[:3]) for path in ours.keys() - set(taken))
    if fresh:
        told = ", ".join(f"{k} ({n})" for k, n in sorted(fresh.items()))
        log.warn(f"not taken from {config.run}, but from scratch: {told}")

    def fit(tree):
        return jax.tree.map(lambda name, old: jnp.asarray(fitted[name], old.dtype), optim.paths(tree), tree)

    params = jax.jit(lambda p: p, out_shardings=sharding.params)(fit(state.params))
    stats = {k: fit(v) for k, v in state.extra.items() if k == "batch_stats"}
    extra = jax.jit(method.restart, out_shardings=sharding.extra)(params, state.extra | stats)
    opt_state = jax.jit(optimizer.init, out_shardings=sharding.opt_state)(params)
    return state.replace(params=params, opt_state=opt_state, extra=extra)
