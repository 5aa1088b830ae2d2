"""Time, fairly: variants alternate, so that what else the machine does hits all; medians; CPU time where shared."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import jax

from mmcl_jax.named import ConfigError


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int, unit: int = 1) -> dict[str, float]:
    """Median seconds of each variant.

    Args:
        variants: name -> what to run; what it returns is waited for. Each is run once before, to compile.
        rounds: how often each is run.
        unit: calls in a row that make one measurement, for what takes less than a clock can tell.

    Returns:
        name -> seconds a call: CPU seconds of all threads of this process on a CPU, else seconds of the clock.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for run in variants.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            began = clock()
            for _ in range(unit):
                jax.block_until_ready(run())
            seconds[name].append((clock() - began) / unit)
    return {name: statistics.median(s) for name, s in seconds.items()}


def devices(n: int) -> list[jax.Device]:
    """The first n devices; 0 = all.

    Raises:
        ConfigError: if there are not so many.
    """
    found = jax.devices()
    if n > len(found):
        raise ConfigError(f"--devices {n}: there are {len(found)}.")
    return found[: n or len(found)]


def pin() -> None:
    """Keeps this process, and threads that it starts from now on, on one core; call it before JAX makes its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
