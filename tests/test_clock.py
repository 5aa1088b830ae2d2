"""Where the time goes: parts add up, go on when a run does, and what a crash takes is told."""

import json
import time

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from mmcl_jax import log
from mmcl_jax.clock import Clock
from mmcl_jax.profile import Trace


def test_parts_add_up():
    clock = Clock(began=time.monotonic() - 1)
    for part in ("compile", "data", "data"):
        with clock.part(part):
            time.sleep(0.02)
    time.sleep(0.05)
    assert (
        clock.seconds["start"] == pytest.approx(1, abs=0.05)
        and clock.seconds["data"] >= 0.04 > clock.seconds["compile"]
    )
    steps = clock.goodput() * clock.total()
    assert steps + sum(clock.seconds.values()) == pytest.approx(clock.total(), rel=1e-3) and steps >= 0.05
    assert str(clock).startswith("steps ") and "start 8" in str(clock) or "start 9" in str(clock)


def test_a_continued_run_goes_on_with_its_clock(tmp_path):
    """Rows behind the step that a run goes on from are dropped; the time they took was lost."""
    config = ConfigDict({"steps": 5, "batch": 8, "log": {"tensorboard": False, "wandb": ""}})
    rows = [{"step": s, "loss": 1.0, "seconds": 10.0 * s, "time/data": 2.0 * s, "time/lost": 1.0} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"step": 3, "val/n": 1}]))

    logger = log.Logger(tmp_path, config, start=2)
    row = logger.clock.row()
    assert row["time/lost"] == 11.0 and row["time/data"] == 4.0 and row["seconds"] == pytest.approx(30.0, abs=0.5)
    assert logger.clock.goodput() == pytest.approx((30 - 11 - 4) / 30, abs=0.02)
    logger.train(3, {"loss": 0.5})
    logger.close()
    assert [r["step"] for r in log.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_trace_of_some_steps(tmp_path, capsys):
    step = jax.jit(lambda x: jnp.sin(x) @ x)
    x = jnp.ones((64, 64))
    trace = Trace((2, 3), tmp_path)
    for now in range(1, 6):
        trace.before(now)
        assert trace.running == (now in (2, 3))
        trace.after(now, step(x))
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1 and "traced from step 2 on" in capsys.readouterr().out
    Trace((), tmp_path / "none").before(0)
    Trace((), tmp_path / "none").close()
    assert not (tmp_path / "none").exists()
