"""Configs: Python files with `get_config(arg)`, changed from the command line, checked before anything compiles.

`configs/clip.py:tiny` is the file `configs/clip.py`, asked for its variant `tiny`.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmcl_jax import files
from mmcl_jax.named import ConfigError, checked, did_you_mean

# Parts whose keys are arguments of the thing they name; that thing's own signature says which keys exist.
OPEN = ("method", "encoders", "data.train", "data.streams", "data.eval_streams", "evals")
# How a run is computed and watched, not what comes out of it: this, and its length, may change when it is continued.
HOW = ("evals", "eval_every", "log", "profile", "checkpoint", "data.threads", "data.workers", "data.prefetch",
       "data.cache_mib", "data.fault_budget", "mesh", "loss", "chunks", "max_bad_steps")  # fmt: skip
IMPLS = ("auto", "shared_tile", "chunked", "ring")  # of losses: see losses/plan.py
# Where the training data lies; the same data may lie elsewhere on the machine that goes on.
PLACES = ("path", "root", "data_dir")


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config file and applies overrides.

    Args:
        spec: "path/to/file.py", "path/to/file.py:arg", or the config.json of a run.
        overrides: "a.b=value" each; values are Python literals, or else strings.

    Raises:
        ConfigError: if the file is not there or has no `get_config`, or an override names an unknown key or has
            the wrong type.
    """
    file, arg = _find(spec)
    if file.suffix == ".json":
        config = ConfigDict(json.loads(file.read_text()))
    else:
        module = _module(file)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{file} has no function get_config(arg).")
        config = checked(str(file), module.get_config, *filter(None, [arg]))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--config.{override}: write --config.{key}=value.")
        _override(config, key, value)
    return config


def sweep(spec: str) -> list[dict[str, Any]]:
    """The runs that a config file's own `sweep()` asks for, {"optim.lr": 1e-3, "seed": 1} each; [{}] if it has none.

    Raises:
        ConfigError: if there is no such file, or it asks for something else.
    """
    file, _ = _find(spec)
    function = getattr(_module(file), "sweep", None) if file.suffix == ".py" else None
    runs = list(checked(str(file), function)) if function else [{}]
    for run in runs:
        if not isinstance(run, Mapping) or not all(isinstance(key, str) for key in run):
            raise ConfigError(f"{file}: sweep() gave {run!r}; each of its runs is a dict, {{'optim.lr': 1e-3}} say.")
    return [dict(run) for run in runs]


def _find(spec: str) -> tuple[files.AnyPath, str]:
    path, _, arg = (spec, "", "") if files.is_remote(spec) else spec.partition(":")
    file = files.path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py") if p.stem not in ("common", "__init__"))
        raise ConfigError(f"There is no config {path}." + (f" There is: {', '.join(near)}." if near else ""))
    return file, arg


def _module(file: Path) -> types.ModuleType:
    """Runs a file; its folder acts as a package, so that `from . import common` works."""
    package = f"_mmcl_configs_{abs(hash(file.resolve().parent))}"
    if package not in sys.modules:
        module = types.ModuleType(package)
        module.__path__ = [str(file.resolve().parent)]
        sys.modules[package] = module
    loader = importlib.machinery.SourceFileLoader(f"{package}.{file.stem}", str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def _override(config: ConfigDict, key: str, text: str) -> None:
    *parents, leaf = key.split(".")
    node, walked = config, []
    for part in parents:
        if not isinstance(node, ConfigDict) or part not in node:
            raise _unknown(node, part, ".".join(walked), key)
        node = node[part]
        walked.append(part)
    where = ".".join(walked)
    if not isinstance(node, ConfigDict) or (leaf not in node and not where.startswith(OPEN)):
        raise _unknown(node, leaf, where, key)
    value = literal(text)
    if leaf in node:
        value = _like(value, node[leaf], key, text)
    with node.unlocked(), node.ignore_type():
        if leaf == _selector(where) and value != node.get(leaf):
            for other in [k for k in node if k not in ("data", "weight")]:
                del node[other]  # arguments of what was there before
        node[leaf] = value


def literal(text: str) -> Any:
    """The value of a text from the command line: a Python literal, true, false, or else the text itself.

    Example:
        >>> literal("3"), literal("true"), literal("pairs.csv"), literal("(1, 2)")
        (3, True, 'pairs.csv', (1, 2))
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def _selector(where: str) -> str | None:
    """The key that says what the other keys of a node are arguments of."""
    if where.startswith(("method", "encoders.")) or where.startswith("evals.") and where.count(".") == 1:
        return "name"
    return "source" if where.startswith(("data.train", "evals.")) else None


def _like(value: Any, old: Any, key: str, text: str) -> Any:
    """`value`, if it may stand where `old` stood; an int may stand for a float, a bool for no number."""
    if isinstance(old, ConfigDict) and value == {} and key == "evals":
        return ConfigDict()
    if isinstance(old, ConfigDict):
        raise ConfigError(f"--config.{key} has parts, set one of them: {', '.join(f'{key}.{k}' for k in old)}.")
    if isinstance(old, str):
        return text.strip("'\"") if not isinstance(value, str) else value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple | list) and isinstance(value, str | tuple | list):
        return type(old)((value,) if isinstance(value, str) else value)
    if old is not None and type(value) is not type(old):
        raise ConfigError(f"--config.{key}={text}: expected {type(old).__name__}, like {old!r}.")
    return value


def _unknown(node: Any, part: str, where: str, key: str) -> ConfigError:
    keys = list(node) if isinstance(node, ConfigDict) else []
    hint = did_you_mean(part, keys, f"{where}." if where else "")
    return ConfigError(f"--config.{key}: there is no {part!r} in {where or 'the config'}{hint}")


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All (path, value) pairs, ("optim.lr", 0.001)."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _lists(value)


def _lists(value: Any) -> Any:
    """Tuples as lists, also in each other: as they come back from JSON."""
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs: path -> (old, new), with None where it is not there.

    Example:
        >>> diff({"optim": {"lr": 0.1}, "batch": 8}, {"optim": {"lr": 0.2}, "batch": 8})
        {'optim.lr': (0.1, 0.2)}
    """
    a, b = dict(flat(old)), dict(flat(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def is_how(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a key only says how a run is computed and watched, in a config that has it."""
    if key == "chunks" and any(
        k.endswith((".dropout", "_dropout", ".drop_path")) and value for k, value in flat(config)
    ):
        return False  # what is dropped depends on it
    return key.startswith(HOW)


def content(config: Mapping[str, Any], also: Sequence[str] = ()) -> dict[str, Any]:
    """What makes a run what it is, key -> value: not how it is computed and watched, nor where TFDS's folder lies.

    Args:
        config: resolved.
        also: keys that count in any case.
    """
    kept = ((k, v) for k, v in flat(config) if not is_how(k, config) and not k.endswith(".data_dir") or k in also)
    return {k: v for k, v in kept if v is not None}  # None says nothing: a run from before there was such a key


def to_json(config: ConfigDict) -> str:
    """The resolved config as text; `load` reads it back."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"


def check_continuation(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a continued run has changed, if it may.

    Raises:
        ConfigError: if something differs that would make it another experiment.
    """
    changed = diff(saved, config)

    def soft(key):
        if key.startswith("data.train.") and key.split(".")[-1] in PLACES:
            return True
        return key == "steps" or is_how(key, config)

    hard = {k: v for k, v in changed.items() if not soft(k)}
    if hard:
        lines = "\n".join(f"  {k}: {old!r} -> {new!r}" for k, (old, new) in hard.items())
        raise ConfigError(
            f"The workdir holds a run with another config:\n{lines}\nChoose another --workdir, or take the changes "
            f"back. A continued run may only change steps, {', '.join(HOW)}, "
            "and where the training data lies."
        )
    return changed


def resolve(config: ConfigDict, devices: int, saved: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Settles, in place, what a config leaves to the machine on which the run begins.

    Args:
        config: `bn_groups=0` anywhere becomes the number of devices, so that it stays that on another machine.
        devices: number of devices that the batch is spread over.
        saved: the config of a run that goes on, whose number stays.

    Returns:
        Key -> number, of all that there are.

    Raises:
        ConfigError: if the batch can't be parted into so many groups.
    """
    before, settled = dict(flat(saved or {})), {}
    for key, groups in [(k, v) for k, v in flat(config) if k.endswith(".bn_groups")]:
        if not isinstance(groups, int):
            raise ConfigError(f"{key}={groups!r} must be a whole number; 0 = the number of devices.")
        node = config
        for part in key.split(".")[:-1]:
            node = node[part]
        node.bn_groups = settled[key] = groups = groups or before.get(key) or devices
        if groups < 1 or config.batch % groups or config.batch // groups < 2:
            raise ConfigError(
                f"{key}={groups}: batch={config.batch} can't be parted into so many equal groups of two rows or more, "
                f"over which batch statistics are taken. Set --config.{key}=1 for those of the whole batch, or another "
                "batch."
            )
    return settled


def _is_range(steps: Sequence[int]) -> bool:
    return len(steps) == 0 or len(steps) == 2 and 0 < steps[0] <= steps[1]


def validate(config: ConfigDict, devices: int) -> None:
    """Refuses what can be seen to fail, naming the field.

    Args:
        config: resolved.
        devices: number of devices that the batch is spread over.

    Raises:
        ConfigError: with what was given, what is possible and how to set it.
    """
    o = config.optim
    rules = (
        ("batch", config.batch > 0, "must be positive"),
        ("steps", config.steps > 0, "must be positive"),
        ("optim.lr", o.lr > 0, "must be positive"),
        ("optim.hold", o.hold > 0, "must be positive; 1 = the rate changes at each step"),
        ("optim.warmup", 0 <= o.warmup <= config.steps, f"must lie between 0 and steps={config.steps}"),
        ("optim.average", 0 <= o.average < 1, "must be 0 (off) or a decay below 1, like 0.999"),
        ("optim.clip", o.clip >= 0, "must be 0 (off) or a gradient norm, like 1.0"),
        ("log.every", config.log.every > 0, "must be positive"),
        ("checkpoint.every", config.checkpoint.every > 0, "must be positive"),
        ("checkpoint.keep", config.checkpoint.keep > 0, "must be positive, or nothing would be kept"),
        ("eval_every", config.eval_every >= 0, "must be 0 (at the end only) or a number of steps"),
        ("max_bad_steps", config.max_bad_steps > 0, "must be positive"),
        ("data.threads", config.data.threads > 0, "must be positive"),
        ("data.prefetch", config.data.prefetch > 0, "must be positive"),
        ("data.fault_budget", 0 <= config.data.fault_budget <= 1, "is a share, between 0 and 1"),
        ("data.cache_mib", config.data.cache_mib >= 0, "must be 0 (none) or a number of MiB"),
        ("data.workers", config.data.workers >= 0, "must not be negative"),
        ("profile.steps", _is_range(config.profile.steps), "must be empty or two steps, like 10,20"),
        ("chunks", config.chunks > 0, "must be positive; 1 = all rows at once"),
        ("loss.impl", config.loss.impl in IMPLS, f"possible: {', '.join(IMPLS)}"),
        ("loss.budget_mib", config.loss.budget_mib > 0, "must be positive"),
        ("loss.chunk", config.loss.chunk > 0, "must be positive"),
        ("dtype", config.dtype in ("float32", "bfloat16"), "possible: float32, bfloat16"),
    )
    for key, fine, problem in rules:
        if not fine:
            value = dict(flat(config))[key]
            raise ConfigError(f"{key}={value!r} {problem}. Set --config.{key}=...")
    if config.batch % devices:
        below, above = config.batch // devices * devices, -(-config.batch // devices) * devices
        near = " or ".join(str(b) for b in (below, above) if b)
        raise ConfigError(f"batch={config.batch} does not divide among {devices} devices. Set --config.batch={near}.")
    if config.batch // devices % config.chunks:
        fitting = [n for n in range(1, config.batch // devices + 1) if config.batch // devices % n == 0]
        raise ConfigError(
            f"chunks={config.chunks} does not divide the {config.batch // devices} rows of each device. Set "
            f"--config.chunks={max(n for n in fitting if n < config.chunks)}."
        )
