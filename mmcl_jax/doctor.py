"""`mmcl doctor`: what this machine has, and whether a config would run on so many devices; nothing is allocated.

Where the data is not at hand, stand-ins of its kind show the shapes: a plan for 256 devices can be checked on a laptop.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from packaging.requirements import Requirement

from mmcl_jax import config as configs
from mmcl_jax import files, log, named, optim, parallel
from mmcl_jax import machine as on
from mmcl_jax.build import Parts, build
from mmcl_jax.data import mix, pipeline
from mmcl_jax.losses import plan
from mmcl_jax.types import PyTree

GIB = 2**30


class Finding(NamedTuple):
    """One line of the report: "ok", "note", "warning" or "error"; what about; what."""

    state: str
    about: str
    text: str


def examine(spec: str, overrides: list[str], devices: int, workdir: str, compiles: bool = False) -> Iterator[Finding]:
    """Looks at the machine, and at a config if there is one.

    Args:
        spec: config file; "" = none.
        overrides: of the config.
        devices: how many it should run on; 0 = those that are here.
        workdir: where it should write.
        compiles: whether to compile the step, too; of a large model that takes minutes.
    """
    yield from machine(workdir, virtual=bool(devices))
    if spec:
        yield from _config(spec, overrides, devices, files.path(workdir), compiles)


def machine(workdir: str, virtual: bool = False) -> Iterator[Finding]:
    """Versions, devices, flags, room."""
    yield Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in on.versions().items()))
    for requirement in map(Requirement, importlib.metadata.requires("mmcl-jax") or ()):
        found = on.version(requirement.name)
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and (
            found is None or not requirement.specifier.contains(found, prereleases=True)
        ):
            yield Finding("error", "packages", f"{requirement} is needed; {found or 'none'} is installed")
    try:
        began = time.monotonic()
        found = "virtual ones, for another machine" if virtual else on.devices()
        yield Finding("ok", "devices", f"{found}; found in {time.monotonic() - began:.1f} s")
        if limit := _memory_of_a_device():
            yield Finding("ok", "devices", f"{_size(limit)} of memory each")
        if not virtual and jax.default_backend() == "cpu" and Path("/dev/nvidia0").exists():
            text = "there is an NVIDIA GPU that JAX does not use: pip install 'mmcl-jax[cuda12]'"
            yield Finding("warning", "devices", text)
    except RuntimeError as e:
        yield Finding("error", "devices", f"JAX can't start: {e}")
    for name, value in on.flags().items():
        yield Finding("note", "flags", f"{name}={value}")
    free = files.free_bytes(files.path(workdir))
    if free is not None:
        yield Finding("ok" if free > GIB else "warning", "room", f"{_size(free)} free for {workdir}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("ok", "host", f"{os.cpu_count()} cores, {memory / GIB:.1f} GiB of memory")


def _config(spec: str, overrides: list[str], devices: int, workdir: files.AnyPath, compiles: bool) -> Iterator[Finding]:
    try:
        config = configs.load(spec, overrides)
        there = jax.devices("cpu") if devices else jax.devices()  # virtual ones stand for the others
        mesh = named.checked("mesh", parallel.make_mesh, config.mesh, there[: devices or None])
        configs.validate(config, mesh.size)
        configs.resolve(config, mesh.size)
        log.check(config.log)
    except (named.ConfigError, FileNotFoundError) as e:
        yield Finding("error", "config", str(e))
        return
    shape = " x ".join(f"{k} {v}" for k, v in mesh.shape.items())
    rows = config.batch // mesh.size
    per_device = f"{rows} rows a device" + (f" in {config.chunks} chunks" if config.chunks > 1 else "")
    yield Finding(
        "ok", "config", f"{spec}: {config.method.name}, {config.steps:,} steps of {config.batch:,}: {per_device}"
    )
    yield Finding("ok", "mesh", f"{mesh.size} devices: {shape}" + (" (virtual here)" if devices else ""))

    sources = None
    try:
        opened, _ = mix.open_sources(config.data.train)
        yield _data(opened)
    except (FileNotFoundError, named.MissingError) as e:
        yield Finding("warning", "data", f"{e} The shapes below are those of stand-ins.")
        sources = [StandIn(config)]
        with config.unlocked():
            config.evals, config.data.record = ConfigDict(), ""
            config.data.tokenizer.fields = tuple(sources[0].texts)
    except named.ConfigError as e:
        yield Finding("error", "data", str(e))
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = build(config, Path(folder), mesh, sources=sources)
        yield from _shapes(config, parts, rows, workdir, compiles)
    except (named.ConfigError, FileNotFoundError) as e:
        yield Finding("error", "shapes", str(e))


def _data(opened: list[Any]) -> Finding:
    """Whether the first and the last record of each source can be read."""
    sizes = " + ".join(f"{len(s):,}" for s in opened)
    for source in opened:
        for i in (0, len(source) - 1):
            record = pipeline.read(source, i)
            if isinstance(record, Exception):
                return Finding("warning", "data", f"{sizes} records; number {i} can't be read: {record}")
    return Finding("ok", "data", f"{sizes} records; fields {', '.join(sorted(pipeline.read(opened[0], 0)))}")


def _shapes(config: ConfigDict, parts: Parts, rows: int, workdir: files.AnyPath, compiles: bool) -> Iterator[Finding]:
    """Parameters, what a device holds of the state, the form of the losses, the size of a checkpoint."""
    for name, spec in parts.streams.spec.items():
        arrays = pipeline.flat({k: v for k, v in spec.items() if k != "present"}).items()
        kept = ", ".join(f"{k} {v.dtype}[{rows}, {', '.join(map(str, v.shape))}]" for k, v in arrays)
        yield Finding("ok", "stream", f"{name}: {kept} a device")
    params = parts.shapes.params
    towers = ", ".join(f"{k} {optim.count(v):,}" for k, v in sorted(params.items()) if optim.count(v) > 1)
    yield Finding("ok", "parameters", f"{optim.count(params):,} ({towers})")
    held = {name: nbytes(getattr(parts.shapes, name), getattr(parts.sharding, name))
            for name in ("params", "opt_state", "extra")}  # fmt: skip
    held["gradients"] = held["params"]
    need = sum(held.values())
    told = ", ".join(f"{k} {_size(v)}" for k, v in held.items() if v)
    yield Finding("ok", "memory", f"{_size(need)} a device for {told}; activations come on top")
    limit = _memory_of_a_device()
    if limit and need > limit:
        yield Finding("error", "memory", f"a device here has {_size(limit)}; share weights: --config.mesh.fsdp=...")

    def rows_like(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch, *shape), dtype)

    host = {n: jax.tree.map(lambda v: rows_like(v.shape, v.dtype), s) for n, s in parts.streams.spec.items()}
    with plan.listen() as plans:
        traced = parts.train_step.trace(parts.shapes, {"streams": host, "position": rows_like((2,), np.uint32)})
    for each in plans:
        yield Finding("ok", "loss", str(each))
    if compiles:
        memory = traced.lower().compile().memory_analysis()
        arguments, temporary = (_size(n) for n in (memory.argument_size_in_bytes, memory.temp_size_in_bytes))
        where = jax.default_backend()
        yield Finding("ok", "compiled", f"for {where}: {arguments} of arguments, {temporary} temporary a device")
    size = nbytes(parts.shapes, None)
    kept = (config.checkpoint.keep + 1) * size
    free = files.free_bytes(workdir)
    yield Finding("ok" if free is None or kept < free else "warning", "checkpoints",
                  f"{_size(size)} each, up to {_size(kept)} at a time in {workdir}")  # fmt: skip


def nbytes(shapes: PyTree, sharding: PyTree | None) -> int:
    """Bytes that one device holds of arrays of these shapes, or, without a sharding, of all of them."""
    leaves = jax.tree.leaves(shapes)
    where = jax.tree.leaves(sharding) if sharding is not None else [None] * len(leaves)
    own = (x.shape if s is None else s.shard_shape(x.shape) for x, s in zip(leaves, where, strict=True))
    return sum(int(np.prod(shape)) * x.dtype.itemsize for shape, x in zip(own, leaves, strict=True))


class StandIn:
    """A source of one record that has what the streams ask for: a text for texts and tags, else a grey image.

    Args:
        config: of a run.
    """

    def __init__(self, config: ConfigDict):
        self.record: dict[str, Any] = {"id": "stand-in"}
        self.texts: list[str] = []
        for part in (config.data.streams, config.data.eval_streams):
            for name, text in part.items():
                field = pipeline.parse_stream(name, text).field
                is_text = "tokenize" in text or "multi_hot" in text
                self._put(field.split("/"), "a stand-in" if is_text else np.full((640, 480, 3), 128, np.uint8))
                self.texts += [field] if "tokenize" in text and field not in self.texts else []

    def _put(self, path: list[str], value: Any) -> None:
        node = self.record
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.record


def _size(n: float) -> str:
    return f"{n / GIB:.2f} GiB" if n >= 0.1 * GIB else f"{n / 2**20:.1f} MiB"


def _memory_of_a_device() -> int:
    """Bytes; 0 if the backend doesn't tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
