"""`mmcl bench data`: records a second of each stage of a config's input pipeline, and of all of it together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mmcl_jax import parallel, predict
from mmcl_jax.bench import timing
from mmcl_jax.data import mix, pipeline


def measure(config: ConfigDict, devices: int = 0, records: int = 512, batches: int = 20) -> Iterator[dict[str, Any]]:
    """Times the stages one after another in one thread, then the pipeline as training runs it.

    Args:
        config: as for training.
        devices: default: all.
        records: how many the single stages are timed on.
        batches: how many the whole pipeline is timed on, after as many or an epoch: what is kept in memory is there.

    Yields:
        A row per stage: `records_per_s` by the clock, `us_per_record`, and what the stage makes of a record, in bytes.
    """
    mesh = parallel.make_mesh(config.mesh, timing.devices(devices))
    sources, weights = mix.open_sources(config.data.train)
    with tempfile.TemporaryDirectory() as workdir:
        tokenizer = pipeline.make_tokenizer(config.data, sources, Path(workdir))
    streams = pipeline.Streams(config.data.streams, config.seed, tokenizer, config.data.record, config.data.cache_mib)
    streams.find_spec(*sources)
    mixed = mix.mixed(config.data, sources, weights, config.seed, config.batch)

    def each(name: str, function: Callable[[Any], Any], inputs: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        began = time.perf_counter()
        made = [function(x) for x in inputs]
        return _row(name, len(inputs), time.perf_counter() - began), made

    positions = list(range(records))
    row, read = each("read", lambda i: pipeline.read(mixed, i), positions)
    yield row
    read = [r for r in read if not isinstance(r, Exception)]
    if config.data.record:
        row, read = each("record ops", lambda r: streams.record(r, 0), read)
        yield row
    for name in streams.spec:
        row, made = each(f"stream {name}", lambda r, name=name: streams.run(name, r, 0)[0], read)
        sizes = [sum(v.nbytes for v in jax.tree.leaves(m)) for m in made if m is not None]
        yield row | {"bytes": max(sizes, default=0)}

    data = pipeline.Pipeline(mixed, streams, config.batch)
    ready = iter(data.batches(0, config.data.threads, config.data.prefetch, config.data.workers))
    epoch = sum(len(s) for s in sources) // config.batch + 1
    for _ in range(min(batches, epoch) + config.data.prefetch):
        batch = next(ready)
    began = time.perf_counter()
    for _ in range(batches):
        batch = next(ready)
    how = f"{config.data.workers} workers" if config.data.workers else f"{config.data.threads} threads"
    yield _row(f"all, {how}, batches of {config.batch}", batches * config.batch, time.perf_counter() - began)

    rows = {k: batch[k] for k in ("streams", "position")}
    device = jax.jit(predict.device_streams(streams, config.seed).__call__)
    jax.block_until_ready(device(parallel.put_rows(rows, mesh)))
    stages = {"to the devices": lambda: parallel.put_rows(rows, mesh)}
    there = parallel.put_rows(rows, mesh)
    stages["device ops"] = lambda: device(there)
    for name, stage in stages.items():
        began = time.perf_counter()
        for _ in range(batches):
            jax.block_until_ready(stage())
        yield _row(name, batches * config.batch, time.perf_counter() - began) | {
            "bytes": sum(x.nbytes for x in jax.tree.leaves(stage())) // config.batch
        }


def _row(stage: str, records: int, seconds: float) -> dict[str, Any]:
    return {"stage": stage, "records_per_s": round(records / seconds, 1),
            "us_per_record": round(1e6 * seconds / records, 1)}  # fmt: skip
