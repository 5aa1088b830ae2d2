"""`mmcl bench step`: the train step of a config: speed, use of the hardware, compile time, memory, waiting for data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mmcl_jax import config as configs
from mmcl_jax import parallel
from mmcl_jax.bench import hlo, timing
from mmcl_jax.bench.flops import matmul_flops
from mmcl_jax.build import build
from mmcl_jax.data import mix, pipeline
from mmcl_jax.types import Ctx

GEMM = 2048  # side of the matrix product that stands for what the hardware can do


def measure(config: ConfigDict, devices: int = 0, rounds: int = 7, data_steps: int = 20) -> dict[str, Any]:
    """Measures the step on all devices of this process.

    Args:
        config: as for training; nothing of it is saved.
        devices: default: all.
        rounds: how often the step and the matrix product are timed, in turns.
        data_steps: steps taken as in training, behind the real input pipeline.

    Returns:
        `examples_per_s` of the clock, as in training, behind the real input pipeline, and `data_wait`, the share of
        that time in which the loop waits for it; `step_ms` without it; `gflop_per_s`, from the matrix products of
        the forward pass, thrice (recomputation does not count); `utilisation`, that over what one large matrix
        product of the same dtype reaches in the same run; `trace_s` and `compile_s`; MiB a device; collectives.
        `step_ms` and what follows from it is CPU time of all threads where the devices are CPUs.
    """
    mesh = parallel.make_mesh(config.mesh, timing.devices(devices))
    configs.validate(config, mesh.size)
    configs.resolve(config, mesh.size)
    with tempfile.TemporaryDirectory() as workdir:
        parts = build(config, Path(workdir), mesh)
    state = jax.jit(parts.init, out_shardings=parts.sharding)(jax.random.key(config.seed))
    records = mix.mixed(config.data, parts.sources, parts.weights, config.seed, config.batch)
    records.streams = None  # one step is measured, that of batches that hold all streams
    data = pipeline.Pipeline(records, parts.streams, config.batch)
    batches = data.batches(0, config.data.threads, config.data.prefetch, config.data.workers)

    def next_rows():
        batch = next(batches)
        return parallel.put_rows({k: batch[k] for k in ("streams", "position")}, mesh)

    rows = next_rows()
    began = time.perf_counter()
    lowered = parts.train_step.lower(state, rows)
    traced = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    found = hlo.collectives(compiled.as_text()) if mesh.size > 1 else []  # with one device they are no-ops
    flops = step_flops(parts, state, rows, mesh)

    def step():
        nonlocal state
        state, metrics = parts.train_step(state, rows)
        return metrics

    times = timing.alternate({"step": step, "gemm": gemm(config.dtype, mesh)}, rounds)
    seconds_step, gemm_flops = times.median("step"), 2 * GEMM**3 * mesh.size

    waited, began_steps = 0.0, time.perf_counter()
    for _ in range(data_steps):
        waiting = time.perf_counter()
        rows = next_rows()
        waited += time.perf_counter() - waiting
        state, metrics = parts.train_step(state, rows)
        jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began_steps
    return {
        "method": config.method.name, "batch": config.batch, "chunks": config.chunks, "dtype": config.dtype,
        "devices": mesh.size, "mesh": "x".join(str(n) for n in mesh.shape.values()),
        "examples_per_s": round(config.batch * data_steps / seconds, 1), "data_wait": round(waited / seconds, 3),
        "step_ms": round(1e3 * seconds_step, 1),
        "gflop": round(flops / 1e9, 2), "gflop_per_s": round(flops / seconds_step / 1e9, 1),
        "gemm_gflop_per_s": round(gemm_flops / times.median("gemm") / 1e9, 1),
        "utilisation": round(flops / gemm_flops * times.ratio("gemm", "step"), 3),
        "trace_s": round(traced - began, 2), "compile_s": round(compile_s, 2),
        "temp_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "state_mib": round(memory.alias_size_in_bytes / 2**20, 1), "peak_mib": round(_peak(memory), 1),
        "collective_mib": round(hlo.mib(found), 2), "collectives": len(found),
        "collectives_in_loops": sum(c.in_loop for c in found),
    }  # fmt: skip


def _peak(memory: Any) -> float:
    """MiB that a device has had in use, if it tells; else those of the compiled step, its arguments included."""
    stats = jax.local_devices()[0].memory_stats() or {}
    compiled = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return stats.get("peak_bytes_in_use", compiled) / 2**20


def step_flops(parts: Any, state: Any, rows: Any, mesh: Any) -> float:
    """Operations of a step's matrix products on all devices: the forward pass's, and twice as many for gradients."""
    ctx = Ctx(mesh, parallel.BATCH_AXES, loss={"impl": "shared_tile"})
    method = parts.predictor.method

    def forward(params, rows):
        return method.loss(params, state.extra, parts.device(rows), ctx)[0]

    return 3 * matmul_flops(forward, state.params, rows)


def gemm(dtype: str, mesh: Any) -> Callable[[], Any]:
    """A plain matrix product on each device at once; a batched one would be slower, and flatter the step."""
    rows = P(parallel.BATCH_AXES)
    a = jax.device_put(jnp.ones((mesh.size * GEMM, GEMM), dtype), parallel.by_rows(mesh))
    product = jax.jit(jax.shard_map(jnp.dot, mesh=mesh, in_specs=(rows, rows), out_specs=rows))
    return lambda: product(a, a)


def compile_times(arguments: list[str]) -> dict[str, float]:
    """Starts `mmcl bench step` twice more, with an empty compilation cache and with the one that it has left.

    Args:
        arguments: of the command line, without --compile.

    Returns:
        `compile_cold_s`, `compile_warm_s` and `compile_ratio`.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # fmt: skip
        command = [sys.executable, "-m", "mmcl_jax.cli", "bench", "step", *arguments, "--json", "--rounds", "1"]
        found = []
        for _ in range(2):
            done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1])["compile_s"])
    return {"compile_cold_s": found[0], "compile_warm_s": found[1], "compile_ratio": round(found[1] / found[0], 3)}
