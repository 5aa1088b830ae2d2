"""What a person sees of a run, and what is written down: console, metrics.jsonl, TensorBoard, W&B."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import resource
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mmcl_jax.clock import Clock
from mmcl_jax.named import ConfigError

# In a notebook, lines are text, too: rich would make a page of HTML of each, and Jupyter claims to be a terminal.
_notebook = dict(force_jupyter=False, force_terminal=False) if "ipykernel" in sys.modules else {}
console = Console(highlight=False, soft_wrap=True, **_notebook)
if not console.is_terminal:  # a file has no width: let tables be whole
    console = Console(highlight=False, soft_wrap=True, width=140, **_notebook)


def say(text: str = "") -> None:
    """A line on the console, without markup."""
    console.print(text, markup=False)


def warn(text: str) -> None:
    """A line that should not be missed; also told by processes that are quiet else."""
    if console.quiet:
        print(f"warning: {text}", file=sys.stderr)
    console.print(f"warning: {text}", style="yellow", markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; numbers are aligned to the right."""
    t = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numbers = all(isinstance(r[i], int | float) for r in rows)
        t.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        t.add_row(*[Text(short(v)) for v in row])
    console.print(t)


def results_table(results: Mapping[str, float]) -> None:
    """Prints evaluation results, "evaluator/.../metric" -> number: a row per evaluation, a column per metric."""
    rows: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        name, metric = key.split("/", 1)
        parts = metric.split("/")
        # "i2t/R@1" is one metric: its direction stands beside it, what is before it is another evaluation.
        both_ways = len(parts) > 1 and "2" in parts[-2] and re.match(r"R@|Me", parts[-1])
        at = len(parts) - (2 if both_ways else 1)
        rows.setdefault("/".join([name, *parts[:at]]), {})["/".join(parts[at:])] = value
    by_columns: dict[tuple[str, ...], list[list[Any]]] = {}
    for name, metrics in rows.items():
        shown = [m for m in metrics if not m.endswith(("MeanR", "MedR"))]  # they are in summary.json
        by_columns.setdefault(tuple(shown), []).append([name, *[round(metrics[m], 3) for m in shown]])
    for columns, lines in by_columns.items():
        table("results", ("evaluation", *columns), lines)


def short(value: Any) -> str:
    """A number as a person would write it: 3.1k, 0.0521, 1.2e-05."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or value.is_integer() and abs(value) < 1e4:
        return f"{int(value)}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e4:
        return f"{value / 1e3:.1f}k" if abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.3g}" if abs(value) < 1e-2 or abs(value) >= 10 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """4s, 3m12s, 2h41m."""
    s = int(seconds)
    return f"{s}s" if s < 60 else f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


class Logger:
    """Writes a run's metrics and shows its progress. Only the process that owns the run should have one that is on.

    Rows of metrics.jsonl: training rows have `step` and `loss`, evaluation rows have `step` and their metrics.

    Args:
        workdir: of the run.
        config: of the run: its `steps`, `batch` and `log`; W&B gets all of it, to compare runs by.
        start: step that the run goes on from; rows of later steps, written before a crash, are dropped.
        on: whether to write and print at all.
        began: time.monotonic() when this part of the run began; default: now.
    """

    def __init__(
        self,
        workdir: Path,
        config: Any,
        start: int = 0,
        on: bool = True,
        began: float | None = None,
    ):
        self.steps, self.batch, self.start, self.on = config.steps, config.batch, start, on
        self.clock = Clock(began=began)
        self.last_row: dict[str, Any] = {}
        self.start_clock(start)
        self.writers: list[tuple[Callable[[dict[str, Any]], None], Callable[[], None]]] = []  # each: write, close
        self.bar = None
        if not on:
            return
        self.path = workdir / "metrics.jsonl"
        there = read_metrics(self.path) if self.path.exists() else []
        rows = [r for r in there if r["step"] <= start]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
        temporary.replace(self.path)
        self.file = self.path.open("a")
        self.last_row = next((r for r in reversed(rows) if "loss" in r), {})
        newest = rows[-1] if rows else {}
        dropped = max((r.get("seconds", 0.0) for r in there if r["step"] > start), default=0.0)
        self.clock = Clock(newest, max(dropped - newest.get("seconds", 0.0), 0.0), began)
        if config.log.tensorboard:
            self.writers.append(_tensorboard(workdir, start))
        if config.log.wandb:
            self.writers.append(_wandb(workdir, config))
        if console.is_terminal:
            self.bar = Progress(BarColumn(24), TextColumn("{task.description}"), console=console, transient=True)
            self.task = self.bar.add_task("compiling", total=self.steps, completed=start)
            self.bar.start()

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs a training step; `metrics` has `loss`."""
        if not self.on:
            return
        # Saves, evaluations and compiling are not training time: rates and the ETA leave them out.
        away = sum(self.clock.seconds[k] - self.then[k] for k in ("checkpoint", "evaluation", "compile"))
        seconds, done = max(time.monotonic() - self.since - away, 1e-9), step - self.last
        rate = self.batch * done / seconds
        wait = min((self.clock.seconds["data"] - self.then["data"]) / seconds, 1.0)
        eta = (self.steps - step) * seconds / max(done, 1)
        self.start_clock(step)
        speed = {"examples_per_s": round(rate, 1), "data_wait": round(wait, 3)}
        self._write({"step": step, **metrics, **speed, **self.clock.row()})
        shown = "  ".join(
            f"{k} {short(v)}" for k, v in metrics.items() if k not in ("grad_norm", "lr") and v is not None
        )
        line = (
            f"step {step}/{self.steps} {100 * step // self.steps}%  {shown} | {short(rate)} ex/s  "
            f"data {100 * wait:.0f}%  mem {memory():.1f}G  ETA {duration(eta)}"
        )
        if self.bar:
            self.bar.update(self.task, completed=step, description=line)
        else:
            say(line)

    def evaluate(self, step: int, name: str, metrics: Mapping[str, float], headline: Sequence[str] = ()) -> None:
        """Logs the results of an evaluator, its metrics under "name/"."""
        if not self.on:
            return
        self._write({"step": step, **{f"{name}/{k}": v for k, v in metrics.items()}, **self.clock.row()})
        shown = "  ".join(f"{k} {short(metrics[k])}" for k in (headline or list(metrics)[:6]))
        say(f"eval {name} at step {step}: {shown}")

    def start_clock(self, step: int) -> None:
        """Rates count from `step` on."""
        self.since, self.last, self.then = time.monotonic(), step, dict(self.clock.seconds)

    def has_evaluation(self, step: int, name: str) -> bool:
        """Whether the results of an evaluator at `step` are written down."""
        rows = (r for r in read_metrics(self.path) if r["step"] == step)
        return any(key.startswith(f"{name}/") for r in rows for key in r)

    def before(self, key: str) -> Any:
        """What the last row of the run had before it was continued: counts and seconds go on from there."""
        return self.last_row.get(key, 0)

    def _write(self, row: dict[str, Any]) -> None:
        # JSON has no NaN: null.
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for pair in self.writers:
            write, _ = pair
            try:
                write(row)
            except Exception as e:  # noqa: BLE001 - a run is worth more than its plots
                warn(f"{write.__name__}: {type(e).__name__}: {e}; it is switched off, metrics.jsonl goes on.")
                self.writers = [w for w in self.writers if w is not pair]

    def close(self) -> None:
        """Ends the bar, the file and the writers."""
        if self.on:
            if self.bar:
                self.bar.stop()
            self.file.close()
            for write, close in self.writers:
                try:
                    close()
                except Exception as e:  # noqa: BLE001 - as above
                    warn(f"{write.__name__}: {type(e).__name__}: {e}; its last rows may be missing there.")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a crash cut short is left out."""
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def memory() -> float:
    """The most GiB that were in use: of the first accelerator if it tells, else of this process."""
    jax = sys.modules.get("jax")
    stats = jax.local_devices()[0].memory_stats() if jax else None
    if stats:
        return stats.get("peak_bytes_in_use", stats["bytes_in_use"]) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def check(config: Any) -> None:
    """Refuses writers whose packages are not installed.

    Args:
        config: `config.log`.

    Raises:
        ConfigError: with the command that installs them.
    """
    for key, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if config[key] and importlib.util.find_spec(package) is None:
            raise ConfigError(f"log.{key} needs the package {package}: pip install 'mmcl-jax[{key}]'.")


def _tensorboard(workdir: Path, start: int) -> Any:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def tensorboard(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "step" and value is not None:
                writer.add_scalar(key, value, row["step"])

    return tensorboard, writer.close


def _wandb(workdir: Path, config: Any) -> Any:
    import wandb as library

    # Kept with the run, so that a continued run goes on in the same one, and no other run of that name is touched.
    kept = workdir / "wandb_id"
    if not kept.exists():
        kept.write_text(secrets.token_hex(8))
    run = library.init(project=config.log.wandb, config=config.to_dict(), dir=str(workdir), name=workdir.name,
                       id=kept.read_text(), resume="allow")  # fmt: skip

    def wandb(row: dict[str, Any]) -> None:
        run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    return wandb, run.finish
