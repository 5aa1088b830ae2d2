"""Examples that can't be read: counted by reason, and too many of them stop the run."""

from __future__ import annotations

import collections
from typing import Any

from mmcl_jax.named import RunError


class FaultCounter:
    """Counts what could not be read, by reason, and stops the run when it is too much of the data.

    Missing fields are not faults; they are normal.

    Args:
        budget: largest share of faulty examples among the last WINDOW; checked from the 100th example on. A share of
            all that was ever seen would let a long run go on for thousands of steps once its data is gone.
        before: faulty examples of the run before it was continued.
    """

    WINDOW = 10_000

    def __init__(self, budget: float, before: int = 0):
        self.budget, self.faulty = budget, before
        self.recent: collections.deque[tuple[int, int]] = collections.deque()  # per batch: examples, faulty ones
        self.reasons: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}

    def add(self, batch: dict[str, Any]) -> list[str]:
        """Counts a batch; returns the reasons that are new, with the first example of each.

        Raises:
            RunError: over the budget, with the five most frequent reasons and an example of each.
        """
        new = []
        before = self.faulty
        for fault, identity in zip(batch["fault"], batch["id"], strict=True):
            if not fault:
                continue
            self.faulty += 1
            # Messages name files and addresses; what comes before the second colon is the kind of fault.
            reason = ":".join(str(fault).split(":")[:2])
            if reason not in self.reasons:
                self.examples[reason] = f"{identity} ({fault})"
                new.append(f"{reason}, first at {self.examples[reason]}")
            self.reasons[reason] += 1
        self.recent.append((len(batch["fault"]), self.faulty - before))
        while len(self.recent) > 1 and sum(n for n, _ in self.recent) - self.recent[0][0] >= self.WINDOW:
            self.recent.popleft()
        seen, faulty = (sum(column) for column in zip(*self.recent, strict=True))
        if seen >= 100 and faulty > self.budget * seen:
            top = "\n".join(f"  {n} x {r}, first at {self.examples[r]}" for r, n in self.reasons.most_common(5))
            raise RunError(
                f"{faulty} of the last {seen} examples could not be read, more than data.fault_budget={self.budget} "
                f"allows. Since the start:\n{top}\nMend the data, or raise the budget."
            )
        return new
