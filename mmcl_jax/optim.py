"""The optimizer: AdamW, SGD or LARS, warm-up and cosine, path rules, clipping, an optional average of the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmcl_jax import parallel
from mmcl_jax.types import Array, PyTree

OPTIMIZERS = ("adamw", "sgd", "lars")
# Of the learning rate by the batch: Goyal et al., arXiv 1706.02677, and the two of SimCLR.
SCALINGS = {"none": lambda batch: 1.0, "linear": lambda batch: batch / 256, "sqrt": lambda batch: batch**0.5}


def warmup_cosine(
    peak: float,
    steps: int,
    warmup: int,
    *,
    start: float = 0.0,
    end: float = 0.0,
    inclusive: bool = False,
    hold: int = 1,
) -> optax.Schedule:
    """Learning rate: linear from `start` to `peak` over `warmup` steps, then half a cosine to `end` at `steps`.

    Loshchilov & Hutter, SGDR, arXiv 1608.03983. Step 0 has `start`, step `warmup` has `peak`.

    Args:
        peak: the largest rate.
        steps: length of the run.
        warmup: steps of the ramp.
        start: rate of step 0.
        end: rate of step `steps`, which is the first that is not taken.
        inclusive: whether the ramp's last step has the peak already, which thus comes twice (SLIP's official code).
        hold: steps for which a rate is held; those of an epoch for a cosine per epoch (MoCo).

    Example:
        >>> schedule = warmup_cosine(1.0, steps=10, warmup=2)
        >>> [round(float(schedule(s)), 3) for s in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def schedule(step):
        step = step // hold * hold
        ramp = start + (peak - start) * step / max(warmup - inclusive, 1)
        progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        return jnp.where(step < warmup, ramp, end + (peak - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    return schedule


def paths(params: PyTree) -> PyTree:
    """The tree with each parameter's path in its place, "image/transformer/block0/mlp/in/kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: parallel.path_name(path), params)


class Multipliers(NamedTuple):
    """Per parameter: what its learning rate and its decay are multiplied by, as trees of floats."""

    lr: PyTree
    decay: PyTree


def multipliers(params: PyTree, rules: Sequence[str], no_decay: str) -> Multipliers:
    """Reads the path rules.

    Args:
        params: arrays or shapes.
        rules: "path regex: lr=0.1 decay=0" each; the first whose regex matches the start of the path counts.
        no_decay: regex of paths (searched) that are not decayed, whatever the rules say of lr.

    Raises:
        ValueError: if a rule can't be read, or matches no parameter.
    """
    parsed = [_parse_rule(rule) for rule in rules]
    names = paths(params)
    all_names = jax.tree.leaves(names)
    for rule, (pattern, _) in zip(rules, parsed, strict=True):
        if not any(re.match(pattern, n) for n in all_names):
            tops = sorted({"/".join(n.split("/")[:2]) for n in all_names})
            raise ValueError(f"optim.rules: {rule!r} matches no parameter. Paths begin with: {', '.join(tops)}.")

    def of(name: str, key: str) -> float:
        return next((values.get(key, 1.0) for pattern, values in parsed if re.match(pattern, name)), 1.0)

    decays = jax.tree.map(lambda n: 0.0 if no_decay and re.search(no_decay, n) else of(n, "decay"), names)
    return Multipliers(jax.tree.map(lambda n: of(n, "lr"), names), decays)


def _parse_rule(rule: str) -> tuple[str, dict[str, float]]:
    pattern, _, values = rule.rpartition(":")
    try:
        pairs = {k: float(v) for k, v in (pair.split("=") for pair in values.split())}
    except ValueError:
        pairs = {}
    if not pattern or not pairs or set(pairs) - {"lr", "decay"}:
        raise ValueError(f"optim.rules: can't read {rule!r}; write 'path regex: lr=0.1 decay=0' (lr=0 freezes).")
    return pattern, pairs


def frozen(by: Multipliers) -> frozenset[str]:
    """Top-level names of the parameters of which none is trained: whole towers, readouts."""
    rates = {name: jax.tree.leaves(part) for name, part in by.lr.items()}
    return frozenset(name for name, each in rates.items() if each and not any(each))


def freeze(params: PyTree, by: Multipliers) -> PyTree:
    """Stops the gradient of parameters whose learning rate is 0, so that nothing is computed for them."""
    return jax.tree.map(lambda p, lr: p if lr else jax.lax.stop_gradient(p), params, by.lr)


def build(
    config: Any, steps: int, batch: int, params: PyTree
) -> tuple[optax.GradientTransformation, optax.Schedule, Multipliers]:
    """The optimizer of `config.optim`.

    AdamW: Loshchilov & Hutter, arXiv 1711.05101. SGD: with momentum; decay is added to the gradient, as in PyTorch.
    LARS: You et al., arXiv 1708.03888, as SimCLR has it: what is not decayed is not adapted either, and the learning
    rate goes into the momentum.

    Args:
        config: `config.optim`.
        steps: length of the run, where the cosine ends.
        batch: global batch, for the scaling of the learning rate.
        params: arrays or shapes.

    Returns:
        The optimizer, its schedule (for the log) and the multipliers (for `freeze`).

    Raises:
        ValueError: for an optimizer, a scaling or a rule that does not exist.
    """
    for key, possible in (("name", OPTIMIZERS), ("scaling", SCALINGS)):
        if config[key] not in possible:
            raise ValueError(f"optim.{key}={config[key]!r}; possible: {', '.join(possible)}.")
    by = multipliers(params, config.rules, config.no_decay)
    peak = config.lr * SCALINGS[config.scaling](batch)
    shape = dict(start=config.start_lr, end=config.end_lr, inclusive=config.warmup_inclusive, hold=config.hold)
    schedule = warmup_cosine(peak, steps, config.warmup, **shape)

    def add_decay(updates, params):
        return jax.tree.map(lambda u, p, d: u + config.decay * d * p, updates, params, by.decay)

    def multiply(updates, params):
        return jax.tree.map(lambda u, lr: u * lr, updates, by.lr)

    decay, rate = optax.stateless(add_decay), optax.scale_by_learning_rate(schedule)
    clip = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.name == "adamw":
        parts = [optax.scale_by_adam(config.b1, config.b2, config.eps), decay, rate]
    elif config.name == "sgd":
        parts = [decay, optax.trace(config.momentum), rate]
    else:
        adapted = jax.tree.map(bool, by.decay)
        trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=config.trust), adapted)
        parts = [decay, trust, rate, optax.trace(config.momentum)]
    optimizer = optax.chain(*clip, *parts, optax.stateless(multiply))
    return (with_average(optimizer, config.average) if config.average else optimizer), schedule, by


class AverageState(NamedTuple):
    """State of an optimizer that also averages the weights."""

    inner: Any
    average: PyTree
    count: Array


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Keeps an exponential average of the weights beside an optimizer.

    The decay grows from 0.1 with the number of steps, min(decay, (1 + n) / (10 + n)), so that the average soon
    forgets the initial weights.
    """

    def init(params):
        # A copy: the same buffers as the parameters could not be donated.
        return AverageState(optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(grads, state, params):
        updates, inner = optimizer.update(grads, state.inner, params)
        count = state.count + 1
        d = jnp.minimum(decay, (1 + count) / (10 + count))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: d * a + (1 - d) * p, state.average, new)
        return updates, AverageState(inner, average, count)

    return optax.GradientTransformation(init, update)


def to_evaluate(params: PyTree, opt_state: Any) -> PyTree:
    """The average of the weights if there is one, else the weights."""
    return opt_state.average if isinstance(opt_state, AverageState) else params


def count(params: PyTree) -> int:
    """Number of parameters."""
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
