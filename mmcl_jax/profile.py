"""A trace of some steps, to be looked at with `xprof` (pip install 'mmcl-jax[profile]'): `config.profile.steps`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from mmcl_jax import files, log
from mmcl_jax.types import PyTree


class Trace:
    """Traces from the start of one step to the end of another, if both lie before this part of the run's end.

    Args:
        steps: the first and the last, or none.
        folder: where traces go, each process its own.
        told: where they will be found; default: there.
    """

    def __init__(self, steps: Sequence[int], folder: Path, told: files.AnyPath | None = None):
        self.first, self.last = steps or (-1, -1)
        self.folder, self.told, self.running = folder, told or folder, False

    def before(self, step: int) -> None:
        """To be called before a step is begun."""
        if step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def after(self, step: int, metrics: PyTree) -> None:
        """To be called once a step was begun, with something that it computes."""
        if self.running and step == self.last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is under way."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            log.say(f"traced from step {self.first} on; look at it with: xprof --logdir {self.told}")
