"""`mmcl bench eval`: what the evaluations of a config cost: embedding, and the evaluators themselves."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mmcl_jax import config as configs
from mmcl_jax import evals, parallel
from mmcl_jax.bench import timing
from mmcl_jax.build import build
from mmcl_jax.data import sources


def measure(config: ConfigDict, devices: int = 0, records: int = 512) -> Iterator[dict[str, Any]]:
    """Times embedding and each evaluator, with initial weights: what they cost does not depend on them.

    Args:
        config: as for training.
        devices: default: all.
        records: at most so many of the evaluation's are embedded.

    Yields:
        A row per stream, `records_per_s` read, decoded and embedded; a row per evaluator, its `seconds` the second
        time, when nothing is left to compile.
    """
    mesh = parallel.make_mesh(config.mesh, timing.devices(devices))
    configs.resolve(config, mesh.size)
    with tempfile.TemporaryDirectory() as workdir:
        parts = build(config, Path(workdir), mesh)
    predictor = parts.predictor
    state = jax.jit(parts.init, out_shardings=parts.sharding)(jax.random.key(config.seed))
    predictor.params, predictor.extra = state.params, state.extra
    source = sources.make(evals.with_source(_first_data(config), config.data.train), "evals")
    for name in predictor.streams.chains:
        predictor.embed_source(source, (name,), limit=predictor.batch)
        began = time.perf_counter()
        found = predictor.embed_source(source, (name,), limit=records)
        seconds = time.perf_counter() - began
        yield {"what": f"embed {name}", "records": found.size, "seconds": round(seconds, 3),
               "records_per_s": round(found.size / seconds, 1)}  # fmt: skip
    for name, part in config.evals.items():
        for _ in range(2):
            began = time.perf_counter()
            evals.run(predictor, name, part, config.data.train)
        seconds = time.perf_counter() - began
        yield {"what": f"evals.{name} ({part['name']})", "seconds": round(seconds, 3)}


def _first_data(config: ConfigDict) -> dict[str, Any]:
    """The data of the first evaluator that has some, or the training data."""
    return next((dict(part.data) for part in config.evals.values() if "data" in part), {})
