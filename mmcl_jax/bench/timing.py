"""Time, fairly: variants alternate, so that what else the machine does hits all; medians; CPU time where shared."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import jax

from mmcl_jax.named import ConfigError


class Times(dict[str, list[float]]):
    """Variant -> seconds of each round."""

    def median(self, name: str) -> float:
        """Seconds of a variant."""
        return statistics.median(self[name])

    def ratio(self, name: str, base: str) -> float:
        """How much longer one takes than another: a median over rounds, within which the machine is much the same."""
        return statistics.median(a / b for a, b in zip(self[name], self[base], strict=True))


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Times variants in turns, each the second time in its turn: what memory and caches the one before left is its own.

    Args:
        variants: name -> what to run; what it returns is waited for.
        rounds: how often each is run.

    Returns:
        Seconds: of all threads of this process together on a CPU, else of the clock.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times = Times({name: [] for name in variants})
    for _ in range(rounds):
        for name, run in variants.items():
            jax.block_until_ready(run())
            began = clock()
            jax.block_until_ready(run())
            times[name].append(clock() - began)
    return times


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
