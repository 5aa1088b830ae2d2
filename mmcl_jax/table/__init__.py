"""`mmcl table`: runs side by side. Seeds become a mean and a deviation; what they can't tell apart is shown as such.

A run is a folder with config.json and summary.json: a workdir, or what is kept of one under results/.
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import json
import math
import re
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

from mmcl_jax import config as configs
from mmcl_jax import files, log
from mmcl_jax.named import ConfigError, did_you_mean

FILES = ("config.json", "summary.json")
SHOWN = ("*/R@1", "*/top1", "loss")  # of the many metrics, unless others are asked for
LOWER = re.compile(
    r"(^|[/_])(loss|drop|MedR|MeanR|gap|seconds|bad_steps|unreadable)$"
)  # metrics of which less is better
# Neither more nor less of these is better: the evaluator gap describes.
NEITHER = re.compile(r"/[^/]+/(size|paired|unpaired|cone|rank)$")
WAYS = ("mesh", "loss", "chunks")  # of computing the same
LEVEL = 0.05  # of the test, over all comparisons with the best of a column
LIKE, UNKNOWN = "≈", "?"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it was read.
        content: key -> value of its config, without the seed, the fold and the keys that only say how it was computed.
        seed: its seed, and its fold of a cross-validation, None where there is none.
        metrics: name -> number, from its summary.
        config: key -> value, all of it.
    """

    folder: files.AnyPath
    content: dict[str, Any]
    seed: tuple[int, int | None]
    metrics: dict[str, float]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed or the fold: a line of the table.

    Attributes:
        name: of the first run's folder.
        label: column -> value, of the keys that tell it from the other groups.
        runs: one per seed.
    """

    name: str
    label: dict[str, Any]
    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        """Of a metric, one per seed that has it."""
        return [r.metrics[metric] for r in self.runs if metric in r.metrics]


def read(paths: Sequence[str]) -> list[Run]:
    """The finished runs in folders, or in folders of those.

    Raises:
        FileNotFoundError: if a path is not there.
        ConfigError: if no path has a finished run.
    """
    runs, unfinished = [], []
    for path in map(files.path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no folder {path}.")
        if not path.is_dir():
            continue  # runs/* names files, too
        folders = [path] if (path / FILES[0]).exists() else sorted(p for p in path.iterdir() if p.is_dir())
        for folder in (f for f in folders if (f / FILES[0]).exists()):
            config, summary = (json.loads((folder / f).read_text()) if (folder / f).exists() else {} for f in FILES)
            if summary.get("steps") != config["steps"]:  # a shorter one is that of before the run was made longer
                unfinished.append(folder.name)
                continue
            told = summary | summary.get("evals", {})  # null where it was not finite
            numbers = {k: v for k, v in told.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            content = configs.content(config, [k for k, _ in configs.flat(config) if k.startswith("evals.")])
            seed = content.pop("seed"), content.pop("data.train.fold", None)
            if seed[1] is not None:
                content["init_from.run"] = bool(content.get("init_from.run"))  # each fold starts from one of its own
            runs.append(Run(folder, content, seed, numbers, dict(configs.flat(config))))
    if unfinished:
        log.warn(f"not finished, and left out: {', '.join(unfinished)}")
    if not runs:
        raise ConfigError(f"No finished run (a folder with {' and '.join(FILES)}) in {', '.join(map(str, paths))}.")
    return runs


def group(runs: Sequence[Run]) -> list[Group]:
    """Puts the seeds of an experiment together, and finds the fewest keys that tell the experiments apart.

    Lines are in the order of these keys' values: folders are named by hashes, and their order says nothing.
    How a run was computed (mesh, chunks, form of the loss) matters only where a seed was computed in several ways.
    """
    together: dict[str, list[Run]] = {}
    for r in runs:
        together.setdefault(json.dumps(r.content, sort_keys=True), []).append(r)
    groups = []
    for same in together.values():
        keys = {k for r in same for k in r.config if k.startswith(WAYS) and k not in r.content}
        ways = [k for k in sorted(keys) if len({json.dumps(r.config[k]) for r in same if k in r.config}) > 1]
        if len({r.seed for r in same}) == len(same):
            ways = []
        parts: dict[str, list[Run]] = {}
        for r in same:
            part = parts.setdefault(json.dumps([r.config.get(k) for k in ways]), [])
            twin = next((t for t in part if t.seed == r.seed), None)
            if twin is None:
                part.append(dataclasses.replace(r, content=r.content | {k: r.config.get(k) for k in ways}))
            elif twin.metrics != r.metrics:  # equal ones are a run and what was kept of it
                log.warn(f"{r.folder} repeats {twin.folder}, seed included; it is left out.")
        groups += parts.values()
    columns = distinguishing([g[0].content for g in groups])
    found = [Group(g[0].folder.name, {c: g[0].config.get(c) for c in columns}, g) for g in groups]
    return sorted(found, key=lambda g: [_place(v) for v in g.label.values()])


def _place(value: Any) -> tuple[int, Any]:
    """Where a value comes among those of its column: none first, then numbers, then words."""
    return (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, str(value))


def distinguishing(contents: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that tell configs apart, without those that add nothing to the ones before; the method's name first.

    Example:
        >>> a = {"method.name": "clip", "encoders.text.pool": "last", "optim.lr": 1e-3}
        >>> b = {"method.name": "siglip", "encoders.text.pool": "map", "optim.lr": 1e-3}
        >>> distinguishing([a, b, a | {"optim.lr": 3e-3}])
        ['method.name', 'optim.lr']
    """
    rooms = ("method.name", "method", "optim", "batch", "steps", "encoders")
    keys = {k for c in contents for k in c if len({json.dumps(d.get(k)) for d in contents}) > 1}

    def order(key: str) -> tuple[int, str]:
        return next((i for i, room in enumerate(rooms) if key.startswith(room)), len(rooms)), key

    chosen, apart = [], 1
    for key in sorted(keys, key=order):
        found = len({json.dumps([c.get(k) for k in (*chosen, key)]) for c in contents})
        if found > apart:
            chosen.append(key)
            apart = found
    return chosen


def choose(groups: Sequence[Group], patterns: Sequence[str] = ()) -> list[str]:
    """The metrics to show.

    Args:
        groups: lines of the table.
        patterns: "val/*/R@1" each; default: recall at 1, accuracy and loss, without subsets.

    Raises:
        ConfigError: for a pattern that no metric matches.
    """
    there = list(dict.fromkeys(k for g in groups for r in g.runs for k in r.metrics))
    for pattern in patterns:
        if not fnmatch.filter(there, pattern):
            raise ConfigError(f"--metrics {pattern}: no run has such a metric{did_you_mean(pattern, there)}")
    found = dict.fromkeys(k for p in patterns or SHOWN for k in there if fnmatch.fnmatchcase(k, p))
    found = [k for k in found if patterns or "/no_" not in k]
    if not found:
        raise ConfigError(
            f"No run has one of {', '.join(SHOWN)}; name metrics: --metrics '{', '.join(there[:6])}' say."
        )
    return found


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; nan of a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def best(groups: Sequence[Group], metric: str) -> Group | None:
    """The line with the best mean; None if fewer than two have the metric, or no value of it is better than another."""
    if NEITHER.search(metric):
        return None
    having = [g for g in groups if g.values(metric)]
    if any(r.seed[1] is not None for g in having for r in g.runs):  # some folds are easy: none that lacks any is best
        having = [g for g in having if len(g.values(metric)) == max(len(h.values(metric)) for h in having)]
    if metric == "loss" and len({(g.runs[0].content.get("method.name"), g.runs[0].content.get("batch"))
                                 for g in having}) > 1:  # fmt: skip
        return None
    sign = -1 if LOWER.search(metric) else 1
    return max(having, key=lambda g: sign * statistics.fmean(g.values(metric))) if len(having) > 1 else None


def mark(groups: Sequence[Group], metric: str, line: Group) -> str:
    """How a line stands to the best of a column: "best", LIKE (not told apart), UNKNOWN (a single seed) or ""."""
    winner = best(groups, metric)
    if winner is None or not line.values(metric):
        return ""
    if line is winner:
        return "best"
    ours, theirs = line.values(metric), winner.values(metric)
    if min(len(ours), len(theirs)) < 2:
        return UNKNOWN
    if not spread(ours) and not spread(theirs):
        return "" if ours[0] != theirs[0] else LIKE
    from scipy import stats

    comparisons = sum(bool(g.values(metric)) for g in groups) - 1  # Bonferroni: the more of them, the stricter each
    known = {r.seed: r.metrics[metric] for r in winner.runs if metric in r.metrics and r.seed[1] is not None}
    pairs = [(r.metrics[metric], known[r.seed]) for r in line.runs if metric in r.metrics and r.seed in known]
    if known and len(pairs) < len(known):
        return UNKNOWN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all but the same
        if len(pairs) > 1 and len({a - b for a, b in pairs}) > 1:  # some folds are harder than others, for both
            test = stats.ttest_rel(*zip(*pairs, strict=True))
        else:
            test = stats.ttest_ind(ours, theirs, equal_var=False)
    return LIKE if test.pvalue * comparisons >= LEVEL else ""


def markdown(groups: Sequence[Group], metrics: Sequence[str], wide: int = 8) -> str:
    """The table, its legend, and what else differs between the configs; of many metrics, a table per evaluator."""
    by_evaluator: dict[str, list[str]] = {}
    for metric in metrics:
        by_evaluator.setdefault(metric.partition("/")[0] if "/" in metric else "", []).append(metric)
    parts = {"": list(metrics)} if len(metrics) <= wide else by_evaluator
    over = "folds" if any(r.seed[1] is not None for g in groups for r in g.runs) else "seeds"
    tables = []
    for name, shown in parts.items():
        having = [g for g in groups if any(g.values(m) for m in shown)]
        title = f"**{name or 'training'}**\n\n" if len(parts) > 1 else ""
        tables.append(title + _table(having, shown, f"{name}/" if name else "", over))
    marks = {mark(groups, m, g) for m in metrics for g in groups}
    legend = [f"Mean ± standard deviation over {over}."] if any(len(g.runs) > 1 for g in groups) else []
    legend += ["Bold: best of its column."] if "best" in marks else []
    if LIKE in marks:
        test = "paired t-test" if over == "folds" else "Welch's t-test"
        legend.append(f"{LIKE}: these {over} don't tell it from the best ({test}, p ≥ {LEVEL}, Bonferroni).")
    legend += [f"{UNKNOWN}: too few runs; how far from the best by chance is unknown."] if UNKNOWN in marks else []
    return "\n\n".join(filter(None, [*tables, " ".join(legend), _differences(groups)])) + "\n"


def _table(groups: Sequence[Group], metrics: Sequence[str], prefix: str, over: str) -> str:
    columns = list(groups[0].label)
    head = [f"{m.removeprefix(prefix)} {_arrow(m)}".strip() for m in metrics]
    lines = [["run", *columns, over, *head], ["---"] * (1 + len(columns)) + ["---:"] * (1 + len(metrics))]
    for g in groups:
        cells = []
        for metric in metrics:
            how, cell = mark(groups, metric, g), _number(g.values(metric))
            cells.append(f"**{cell}**" if how == "best" else f"{cell} {how}".strip())
        label = ["–" if v is None else log.short(v) for v in g.label.values()]
        lines.append([g.name, *label, str(len(g.runs)), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in _aligned(lines))


def _arrow(metric: str) -> str:
    """Which way is better."""
    if NEITHER.search(metric):
        return ""
    return "↓" if LOWER.search(metric) else "↑"


def _aligned(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cells filled up to the width of their column, so that the markdown reads well on a terminal, too."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def fill(cell: str, width: int) -> str:
        return cell.replace("---", "-" * (width - len(cell) + 3)) if cell.startswith("---") else cell.ljust(width)

    return [[fill(cell, width) for cell, width in zip(line, widths, strict=True)] for line in lines]


def _number(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, deviation = statistics.fmean(values), spread(values)
    digits = 3 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if math.isfinite(deviation) else "")


def _differences(groups: Sequence[Group], most: int = 12) -> str:
    """What differs between the first line's config and each other's, beyond the columns."""
    first, told = groups[0], []
    for g in groups[1:]:
        a, b = first.runs[0].content, g.runs[0].content
        rest: dict[str, str] = {}  # in order, each once
        for key, (old, new) in configs.diff(a, b).items():
            if key in a and key in b:
                if key not in g.label:
                    rest[f"`{key}` {_brief(old, new)} → {_brief(new, old)}"] = ""
            else:  # the whole part that only one of them has
                parts = key.split(".")
                prefixes = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
                lacking = a if key in b else b
                part = next(p for p in prefixes if not any(f"{k}.".startswith(f"{p}.") for k in lacking))
                rest[f"`{part}` only in {g.name if key in b else first.name}"] = ""
        lines = list(rest)
        more = [f"and {len(lines) - most} more"] if len(lines) > most else []
        told += [f"- {g.name}: " + "; ".join(lines[:most] + more)] if lines else []
    return "\n".join([f"Beyond the columns, against {first.name}:", "", *told]) if told else ""


def _brief(value: Any, other: Any, length: int = 50) -> str:
    """A value as text; of a long one the part around where it differs from the other."""
    text, theirs = (json.dumps(v, ensure_ascii=False) for v in (value, other))
    if len(text) <= length:
        return text
    same = next((i for i, (p, q) in enumerate(zip(text, theirs, strict=False)) if p != q), 0)
    start = max(0, min(same - 10, len(text) - length))
    return ("…" if start else "") + text[start : start + length] + ("…" if start + length < len(text) else "")


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """All metrics, for a csv: a line per group, with "<metric>" and "<metric> std"."""
    metrics = list(dict.fromkeys(k for g in groups for r in g.runs for k in r.metrics))
    found = []
    for g in groups:
        row = {"run": g.name, **g.label, "seeds": len(g.runs)}
        for metric in (m for m in metrics if g.values(m)):
            row[metric] = statistics.fmean(g.values(metric))
            row[f"{metric} std"] = "" if len(g.values(metric)) < 2 else spread(g.values(metric))
        found.append(row)
    return found


def write_csv(groups: Sequence[Group], out: files.AnyPath) -> None:
    """Writes `rows` to a file."""
    lines = rows(groups)
    with out.open("w") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(k for line in lines for k in line)))
        writer.writeheader()
        writer.writerows(lines)


def keep(runs: Sequence[Run], folder: str) -> list[files.AnyPath]:
    """Copies what a table needs of each run, a few kB, to a folder of its name, where the repository can keep it.

    Raises:
        ConfigError: if that folder has another run's.
    """
    kept = []
    for r in runs:
        target = files.path(folder) / r.folder.name
        there = target / FILES[0]
        if there.exists() and json.loads(there.read_text()) != json.loads((r.folder / FILES[0]).read_text()):
            raise ConfigError(f"{target} keeps another run than {r.folder}; rename one of them, or its folder.")
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (target / name).write_text((r.folder / name).read_text())
        kept.append(target)
    return kept
