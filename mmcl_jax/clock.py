"""Where a run's time goes, over all the times that it was started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

# Before the loop; making the step; waiting for batches, saves, evaluations; steps taken anew after a crash.
PARTS = ("start", "compile", "data", "checkpoint", "evaluation", "lost")


class Clock:
    """Seconds of a run by part; what belongs to none of them went into steps.

    Args:
        before: the last row that the run wrote before it was continued.
        lost: seconds of steps that came after that row, and are taken again.
        began: time.monotonic() when this part of the run began; default: now.
    """

    def __init__(self, before: Mapping[str, Any] | None = None, lost: float = 0.0, began: float | None = None):
        before = before or {}
        now = time.monotonic()
        self.seconds = {part: float(before.get(f"time/{part}", 0.0)) for part in PARTS}
        self.seconds["lost"] += lost
        began = now if began is None else began
        self.seconds["start"] += now - began
        self.began = began - before.get("seconds", 0.0) - lost

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens within as a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began

    def total(self) -> float:
        """Seconds that the run took, all its parts together."""
        return time.monotonic() - self.began

    def goodput(self) -> float:
        """The share of the time that went into steps, each counted once."""
        total = self.total()
        return max(total - sum(self.seconds.values()), 0.0) / max(total, 1e-9)

    def row(self) -> dict[str, float]:
        """For metrics.jsonl, from which a continued run takes it up."""
        return {"seconds": round(self.total(), 1)} | {f"time/{k}": round(v, 2) for k, v in self.seconds.items()}

    def __str__(self) -> str:
        total = max(self.total(), 1e-9)
        parts = ", ".join(f"{k} {100 * v / total:.0f}%" for k, v in self.seconds.items() if v >= 0.005 * total)
        return f"steps {100 * self.goodput():.0f}% (goodput), {parts}"
