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


def test_parts_add_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(began=98.0)  # two seconds before it was made
    for part, seconds in (("compile", 3.0), ("data", 1.0), ("data", 1.5)):
        with clock.part(part):
            now[0] += seconds
    now[0] += 12.5  # in steps
    assert clock.seconds == {"start": 2.0, "compile": 3.0, "data": 2.5, "checkpoint": 0, "evaluation": 0, "lost": 0}
    assert clock.total() == 20.0 and clock.goodput() == 12.5 / 20
    assert str(clock) == "steps 62% (goodput), start 10%, compile 15%, data 12%"


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
