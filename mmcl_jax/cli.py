"""The command line: `mmcl train | eval | embed | data | sweep | table | doctor | bench`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import platform
import re
import shlex
import sys
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from mmcl_jax.bench import command
from mmcl_jax.named import ConfigError, RunError

CONFIG_HELP = "path.py, path.py:variant; any key can be changed with --config.key=value"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Errors that a user can mend are told without a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a dotted path in a config may name a file of the folder one stands in
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    arguments.overrides = _overrides(parser, rest)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every thread of every save
    try:
        return arguments.run(arguments) or 0
    except (ConfigError, RunError, FileNotFoundError) as e:
        if os.environ.get("MMCL_TRACEBACK"):
            raise
        print(f"mmcl {arguments.command}: {e}", file=sys.stderr)
        code = 1 if isinstance(e, RunError) else 2
        _leave_the_others(code)
        return code
    except Exception:
        if _is_one_of_several():
            traceback.print_exc()
            _leave_the_others(1)
        raise


def _leave_the_others(code: int) -> None:
    """Ends one of several processes at once: a proper exit would wait for the others, and they for it."""
    if _is_one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmcl", description="Multimodal contrastive learning in JAX.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train, evaluate and save; goes on where the workdir stopped")
    train.add_argument("--config", required=True, help=CONFIG_HELP)
    train.add_argument("--workdir", default="", help="default: runs/<config>")
    several = train.add_argument_group("several processes", "found by themselves under SLURM and on Cloud TPU")
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of the first process")
    several.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, default=-1, metavar="I", help="which of them this is, from 0")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="run a run's evaluators, or one given here")
    evaluate.add_argument("run_dir", metavar="RUN", help="workdir of a run")
    evaluate.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    evaluate.add_argument("--config", default="", help="take the evaluators of this config instead of the run's")
    evaluate.add_argument("--out", default="", help="the json; default: RUN/eval_<step>.json")
    evaluate.set_defaults(run=_eval)

    embed = commands.add_parser("embed", help="write embeddings of a data set, with ids, as npz and parquet")
    embed.add_argument("run_dir", metavar="RUN", help="workdir of a run")
    embed.add_argument("--data", required=True, help="source:key=value,..., tfds:name=openmoji/color,split=test say")
    embed.add_argument("--out", required=True, help="folder for <stream>.npz and <stream>.parquet")
    embed.add_argument("--streams", default="", help="only these, with commas between them; default: all")
    embed.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    embed.set_defaults(run=_embed)

    data = commands.add_parser("data", help="build data sets, look at streams")
    verbs = data.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="build one of our data sets")
    build.add_argument("name", help="openmoji/color, emoji_styles/noto, ...; `list` shows all")
    build.add_argument("--data_dir", default="", help="default: TFDS_DATA_DIR, or ~/tensorflow_datasets")
    build.set_defaults(run=_build)
    show = verbs.add_parser("show", help="write a contact sheet of the streams as the model will see them")
    show.add_argument("--config", required=True, help=CONFIG_HELP)
    show.add_argument("--out", default="streams.png")
    show.add_argument("--count", type=int, default=32)
    show.add_argument("--eval", action="store_true", help="the evaluation's streams instead of training's")
    show.set_defaults(run=_show)

    sweep = commands.add_parser("sweep", help="train every combination of a grid; skip what is finished")
    sweep.add_argument("--config", required=True, nargs="+", help=f"one or several; {CONFIG_HELP}")
    sweep.add_argument("--grid", nargs="+", default=[], metavar="KEY=A,B", help="optim.lr=1e-3,3e-4 seed=0,1,2 say")
    sweep.add_argument("--out", default="", help="folder of the runs; default: runs/sweep_<config>")
    submit = "give each run to a scheduler: 'sbatch --job-name={name} launch/slurm/train.sbatch' say"
    sweep.add_argument("--submit", default="", metavar="COMMAND", help=submit)
    sweep.add_argument("--dry-run", action="store_true", help="list the runs, start none")
    sweep.set_defaults(run=_sweep)

    table = commands.add_parser(
        "table", help="compare runs: mean and deviation over seeds, what differs between configs"
    )
    table.add_argument("runs", nargs="+", metavar="RUN", help="workdirs, folders under results/, or folders of those")
    table.add_argument("--metrics", default="", help="'val/*/R@1,loss' say, with commas; default: R@1, top1, loss")
    table.add_argument("--out", default="", metavar="NAME", help="write NAME.md, NAME.csv (all metrics) and NAME.png")
    table.add_argument("--keep", default="", metavar="FOLDER", help="copy config and summary of each run, to keep them")
    table.set_defaults(run=_table)

    doctor = commands.add_parser(
        "doctor", help="look at this machine, and whether a config would run; allocates nothing"
    )
    doctor.add_argument("--config", default="", help=CONFIG_HELP)
    doctor.add_argument("--devices", type=int, default=0, help="of the machine it is for; default: those here")
    doctor.add_argument("--workdir", default="", help="where it would write; default: as mmcl train")
    doctor.add_argument("--compile", action="store_true", help="compile the step, too: its temporary memory")
    doctor.set_defaults(run=_doctor)

    command.add_to(commands, CONFIG_HELP)
    return parser


def _overrides(parser: argparse.ArgumentParser, rest: Sequence[str]) -> list[str]:
    """--config.a.b=value and --config.a.b value -> a.b=value."""
    overrides, rest = [], list(rest)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--config."):
            parser.error(f"unknown argument {argument!r}")
        key = argument.removeprefix("--config.")
        if "=" not in key:
            if not rest:
                parser.error(f"{argument} needs a value: {argument}=value")
            key += f"={rest.pop(0)}"
        overrides.append(key)
    return overrides


def _train(arguments) -> int:
    import jax

    from mmcl_jax import config, log, processes, train

    processes.join(arguments.coordinator, arguments.processes, arguments.process)
    if not jax.config.jax_compilation_cache_dir:  # a run that goes on, or is like another, starts warm
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "mmcl_jax" / _processor()))
        jax.config.update("jax_compilation_cache_max_size", 4 * 2**30)
    log.console.quiet = not processes.is_first()
    loaded = config.load(arguments.config, arguments.overrides)
    workdir = arguments.workdir or _default_workdir(arguments.config)
    changed = config.diff(config.load(arguments.config).to_dict(), loaded.to_dict())
    log.say(f"config {arguments.config}" + "".join(f"\n  {k}: {a!r} -> {b!r}" for k, (a, b) in changed.items()))
    return train.train(loaded, workdir)


def _processor() -> str:
    """Tells kinds of processors apart: on another one, what was compiled for this one may not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"


def _default_workdir(spec: str) -> Path:
    path, _, variant = spec.partition(":")
    return Path("runs") / "_".join(filter(None, (Path(path).stem, variant)))


def _eval(arguments) -> None:
    import json

    from mmcl_jax import config, evals, files, log, predict

    saved = files.path(arguments.run_dir) / "config.json"
    strange = [o for o in arguments.overrides if not o.startswith(("evals.", "data.train."))]
    if strange:
        raise ConfigError(
            f"--config.{strange[0]}: a run is evaluated as it was trained; only evals.* and data.train.* may change."
        )
    loaded = config.load(arguments.config or str(saved), arguments.overrides)
    predictor = predict.load(arguments.run_dir, arguments.step, batch=min(config.load(str(saved), ()).batch, 256))
    if not loaded.evals:
        raise ConfigError("There is no evaluator: the config's evals are empty. Give another one with --config.")
    evals.check(predictor, loaded.evals, loaded.data.train)
    # What is not the run's own evaluation has a name of its own, so that neither replaces the other.
    parts = [_default_workdir(arguments.config).name] if arguments.config else []
    other = re.sub(r"[^\w.=-]+", "_", "_".join(["", *parts, *arguments.overrides]))
    if len(other) > 100:
        other = f"{other[:90]}_{hashlib.sha256(other.encode()).hexdigest()[:8]}"
    out = files.path(arguments.out or saved.parent / f"eval_{predictor.step}{other}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, part in loaded.evals.items():
        results |= {f"{name}/{k}": v for k, v in evals.run(predictor, name, part, loaded.data.train).items()}
    log.results_table(results)
    told = {"step": predictor.step, "config": arguments.config, "overrides": arguments.overrides}
    out.write_text(json.dumps(told | results, indent=1) + "\n")
    log.say(f"written to {out}")


def _embed(arguments) -> None:
    from mmcl_jax import config, files, log, predict
    from mmcl_jax.data import sources
    from mmcl_jax.evals import embeddings

    name, _, pairs = arguments.data.partition(":")
    try:
        parsed = (p.partition("=") for p in pairs.split(",") if p)
        source = sources.make({"source": name} | {k: config.literal(v) for k, _, v in parsed}, "--data")
    except ValueError as e:
        raise ConfigError(f"--data {arguments.data}: {e}") from e
    predictor = predict.load(arguments.run_dir, arguments.step)
    names = [n for n in arguments.streams.split(",") if n]
    for path, count in embeddings.write(predictor, source, files.path(arguments.out), names):
        log.say(f"{count} embeddings in {path}")


def _build(arguments) -> None:
    from mmcl_jax.data import datasets

    datasets.build(arguments.name, arguments.data_dir)


def _show(arguments) -> None:
    from mmcl_jax import config, log
    from mmcl_jax.evals import show

    loaded = config.load(arguments.config, arguments.overrides)
    show.contact_sheet(loaded, Path(arguments.out), arguments.count, arguments.eval)
    log.say(f"written to {arguments.out}")


def _sweep(arguments) -> int:
    from mmcl_jax import sweep, table

    out = arguments.out or f"runs/sweep_{'_'.join(_default_workdir(spec).name for spec in arguments.config)}"
    runs = sweep.plan(arguments.config, arguments.grid, arguments.overrides, out)
    if arguments.dry_run:
        for r in runs:
            argv = sweep.command(r, arguments.submit) if arguments.submit else ["mmcl", "train", *r.arguments]
            print(f"{r.state:8} {shlex.join(argv)}")
        return 0
    code = sweep.run(runs, out, arguments.submit)
    if code == 0 and not arguments.submit:
        groups = table.group(table.read([str(r.workdir) for r in runs]))
        print(table.markdown(groups, table.choose(groups)))
    return code


def _table(arguments) -> None:
    from mmcl_jax import files, table
    from mmcl_jax.table.picture import picture

    _no_overrides(arguments)
    runs = table.read(arguments.runs)
    groups = table.group(runs)
    metrics = table.choose(groups, [m for m in arguments.metrics.split(",") if m])
    text, told = table.markdown(groups, metrics), []
    if arguments.out:
        md, csv, png = (files.path(f"{arguments.out}.{kind}") for kind in ("md", "csv", "png"))
        md.parent.mkdir(parents=True, exist_ok=True)
        md.write_text(text)
        table.write_csv(groups, csv)
        picture(groups, metrics, png)
        told.append(f"written to {md}, {csv}, {png}")
    if arguments.keep:
        told.append(f"kept in {', '.join(map(str, table.keep(runs, arguments.keep)))}")
    try:
        print(text, *told, sep="\n", flush=True)
    except BrokenPipeError:  # `mmcl table runs | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at the end would fail, too


def _doctor(arguments) -> int:
    import jax

    if arguments.devices:  # virtual ones stand for them; those of this machine are left alone
        with contextlib.suppress(RuntimeError):  # where JAX has begun, its devices are what they are
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", arguments.devices)
    from mmcl_jax import doctor, log

    workdir = arguments.workdir or (str(_default_workdir(arguments.config)) if arguments.config else ".")
    styles = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
    worst = 0
    what = (arguments.config, arguments.overrides, arguments.devices, workdir, arguments.compile)
    for state, about, text in doctor.examine(*what):
        log.console.print(Text.assemble((f"{state:8}", styles[state]), f"{about:12} {text}"))
        worst |= state == "error"
    return worst


def _no_overrides(arguments) -> None:
    if arguments.overrides:
        raise ConfigError(f"mmcl {arguments.command} takes no --config.{arguments.overrides[0]}")


if __name__ == "__main__":
    sys.exit(main())
