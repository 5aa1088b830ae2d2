"""`mmcl sweep`: many runs of one question. `mmcl table` compares them.

    OUT/<method>-<hash>/   the workdir of a run; the hash is that of its resolved config
    OUT/sweep.json         run -> its config and overrides

A run is known by what it computes: asked for again, by another grid even, it is found and not run twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mmcl_jax import config as configs
from mmcl_jax import files, log, method
from mmcl_jax.named import PREEMPTED, ConfigError

INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        spec: its config file, "configs/clip.py:tiny".
        overrides: "optim.lr=0.001" each.
        workdir: named by what the run computes.
        config: resolved.
    """

    spec: str
    overrides: tuple[str, ...]
    workdir: files.AnyPath
    config: Any

    @property
    def state(self) -> str:
        """Whether it is "finished", "begun" (it goes on, or is only evaluated anew) or "new"."""
        summary, saved = self.workdir / "summary.json", self.workdir / "config.json"
        if not saved.exists():
            return "new"
        same = json.loads(saved.read_text())["evals"] == json.loads(configs.to_json(self.config))["evals"]
        done = summary.exists() and json.loads(summary.read_text())["steps"] == self.config.steps
        return "finished" if done and same else "begun"

    @property
    def arguments(self) -> list[str]:
        """Those of `mmcl train`."""
        return ["--config", self.spec, "--workdir", str(self.workdir), *[f"--config.{o}" for o in self.overrides]]


def plan(specs: Sequence[str], grid: Sequence[str], overrides: Sequence[str], out: str) -> list[Run]:
    """The runs of a sweep: each config x what its own `sweep()` asks for x the grid.

    Args:
        specs: config files.
        grid: "optim.lr=1e-3,3e-4" each.
        overrides: of all runs, "steps=100" each.
        out: folder of the workdirs.

    Raises:
        ConfigError: if a config, a key or a value can't be, or two of the runs would be the same.
    """
    axes = [values(axis) for axis in grid]
    runs: dict[str, Run] = {}
    for spec in specs:
        for own, chosen in itertools.product(configs.sweep(spec), itertools.product(*axes)):
            varied = (*(f"{k}={_written(v)}" for k, v in own.items()), *chosen)
            config = configs.load(spec, [*overrides, *varied])
            configs.validate(config, devices=1)
            method.build(config)  # knows its own arguments
            name = f"{config.method.name.split('.')[-1]}-{content_hash(config, varied)}"
            run = Run(spec, (*overrides, *varied), files.path(out) / name, config)
            if name in runs:
                raise ConfigError(
                    f"Two runs of the sweep are the same: {_told(runs[name])} and {_told(run)}. Change the grid."
                )
            runs[name] = run
    return list(runs.values())


def content_hash(config: Any, varied: Sequence[str] = ()) -> str:
    """Ten hex digits of what a run computes: of its config without the keys that only say how.

    Args:
        config: resolved.
        varied: overrides whose keys count in any case.
    """
    keys = {override.partition("=")[0] for override in varied}
    plain = config.to_dict()
    content = json.dumps(configs.content(plain, sorted(keys)), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def values(axis: str) -> list[str]:
    """The overrides of an axis of the grid; commas in brackets or quotes don't part values.

    Example:
        >>> values("optim.lr=1e-3,3e-4"), values("optim.rules=('text/: lr=0',),()")
        (['optim.lr=1e-3', 'optim.lr=3e-4'], ["optim.rules=('text/: lr=0',)", 'optim.rules=()'])

    Raises:
        ConfigError: if there is no key, no value, or an empty one.
    """
    key, equals, text = axis.partition("=")
    found, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        else:
            depth += (c in "([{") - (c in ")]}")
            if c == "," and not depth:
                found.append("")
                continue
        found[-1] += c
    found = [value.strip() for value in found]
    if not key or not equals or not all(found) or depth or quote:
        raise ConfigError(f"--grid {axis}: write key=value,value,... with at least one value and none empty.")
    return [f"{key}={value}" for value in found]


def _written(value: Any) -> str:
    """A value as the command line has it; numpy's numbers as Python's."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str) else repr(value)


def command(r: Run, submit: str = "") -> list[str]:
    """What starts a run: here, or as a job of a scheduler."""
    parts = shlex.split(submit) if submit else [sys.executable, "-m", "mmcl_jax.train"]
    return [part.replace("{name}", r.workdir.name) for part in parts] + r.arguments


def run(runs: Sequence[Run], out: str, submit: str = "", relaunches: int = 3) -> int:
    """Runs what is not finished, one after another here, or each as a job of a scheduler.

    Args:
        runs: from `plan`.
        out: folder of the workdirs.
        submit: command that takes the arguments of `mmcl train` behind its own, "sbatch launch/slurm/train.sbatch" say,
            in which {name} stands for the run's; "" = run here.
        relaunches: how often a run that was preempted (exit code 42) is started again.

    Returns:
        0 if all are finished (or submitted), 1 if one failed, 42 or 130 if the sweep itself was told to stop.
    """
    _remember(runs, files.path(out))
    waiting = [r for r in runs if r.state != "finished"]
    log.say(f"{len(runs)} runs in {out}: {len(runs) - len(waiting)} finished, {len(waiting)} to go")
    failed = []
    with Child() as child:
        for i, r in enumerate(waiting, 1):
            log.say(f"[{i}/{len(waiting)}] {r.workdir.name} ({r.state}): {_told(r)}")
            sys.stdout.flush()  # what the run prints comes behind it
            code = until_done(child, command(r, submit), 0 if submit else relaunches)
            if child.told or code == INTERRUPTED:
                return PREEMPTED if child.told == signal.SIGTERM else INTERRUPTED
            if code:
                log.warn(f"{r.workdir.name} ended with exit code {code}; the same command tries it again")
                failed.append(r)
    if failed:
        log.say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(r.workdir.name for r in failed)}")
    return 1 if failed else 0


def until_done(child: Child, argv: Sequence[str], relaunches: int) -> int:
    """Runs a command, and again while it ends as preempted though nobody told us to stop; returns its exit code."""
    for _ in range(1 + relaunches):
        code = child.run(argv)
        if code != PREEMPTED or child.told:
            break
    return code


class Child:
    """Runs processes one at a time, and passes on to them the signals that this one gets."""

    def __init__(self):
        self.told: int | None = None
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Child:
        self.before = {s: signal.signal(s, self._pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: Any) -> None:
        self.told = number
        if self.process is not None and number == signal.SIGTERM:  # Ctrl-C reaches it by itself
            self.process.send_signal(number)

    def run(self, argv: Sequence[str]) -> int:
        if self.told:
            return PREEMPTED
        self.process = subprocess.Popen(argv, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        if self.told == signal.SIGTERM:  # it came while the process was being made
            self.process.terminate()
        return self.process.wait()


def _remember(runs: Sequence[Run], out: files.AnyPath) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sweep.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    told |= {r.workdir.name: {"config": r.spec, "overrides": list(r.overrides)} for r in runs}
    path.write_text(json.dumps(told, indent=1) + "\n")


def _told(r: Run) -> str:
    return " ".join([r.spec, *r.overrides])
