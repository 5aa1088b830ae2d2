"""The one training loop, for every method: read it from top to bottom.

`python -m mmcl_jax.train --config configs/clip.py:tiny` is the same as `mmcl train --config ...`.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmcl_jax import config as configs
from mmcl_jax import evals, files, inherit, log, machine, named, optim, parallel, predict, processes, step
from mmcl_jax.build import build
from mmcl_jax.checkpoint import Checkpoints, Stop, has_saved, lock
from mmcl_jax.data import mix, pipeline
from mmcl_jax.data.faults import FaultCounter
from mmcl_jax.profile import Trace
from mmcl_jax.step import StepWatcher
from mmcl_jax.types import PyTree

FETCHED = ("metrics.jsonl", "wandb_id")  # of a run that goes on on another machine


def train(config: ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None) -> int:
    """Trains, evaluates and saves; goes on where the workdir's run was stopped.

    Args:
        config: resolved; see `configs/common.py`.
        workdir: where everything of the run is kept.
        devices: what to train on; default: all devices of all processes.

    Returns:
        The exit code: 0 when done, 42 after SIGTERM and 130 after Ctrl-C, in both cases saved and ready to go on.

    Raises:
        ConfigError: before anything is compiled, if the config can't work.
        RunError: if the data is too faulty, too many steps in a row are not finite, or no checkpoint can be used.
    """
    workdir = files.path(workdir)

    # ---- Check -----------------------------------------------------------------------------------------------------
    mesh = named.checked("mesh", parallel.make_mesh, config.mesh, devices)
    configs.validate(config, mesh.size)
    log.check(config.log)
    log.console.quiet = not processes.is_first()
    with lock(workdir) as owned, contextlib.closing(files.Mirror(workdir, FETCHED, owned)) as mirror:
        return _train(config, mirror, mesh)


def _train(config: ConfigDict, mirror: files.Mirror, mesh: Mesh) -> int:
    """`train`, once the workdir is ours; `mirror` is it, or a local folder that is copied there."""
    workdir = mirror.workdir
    began = time.monotonic()
    on = processes.is_first()
    # A workdir without a checkpoint holds nothing to go on from: its files are those of a start that failed.
    begun = processes.from_first(lambda: has_saved(workdir))
    saved = workdir / "config.json"
    before = json.loads(saved.read_text()) if begun else None
    settled = configs.resolve(config, mesh.size, before)
    changed = configs.check_continuation(before, config.to_dict()) if begun else {}

    # ---- Data, model, optimizer, step ----------------------------------------------------------------------------
    parts = build(config, workdir, mesh, begun)
    predictor, streams = parts.predictor, parts.streams

    # ---- Say what this is --------------------------------------------------------------------------------------------
    if on:
        describe(config, workdir, mesh, streams, parts.sources, parts.shapes.params)
        for key, groups in settled.items():
            log.say(f"{key}={groups}: batch statistics are those of {config.batch // groups} rows each")
        for key, (old, new) in changed.items():
            if old is not None:  # a key that is new since then
                log.say(f"changed since this run began: {key}: {old!r} -> {new!r}")

    # ---- State: where it was, or from another run, or from scratch -------------------------------------------------
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, owned=mirror.owned)
    shapes, sharding = parts.shapes, parts.sharding
    abstract = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, sharding)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        start, state = restored
        log.say(f"going on from step {start}")
        if start > config.steps:
            raise named.ConfigError(f"steps={config.steps}, but the run in {workdir} is at step {start} already.")
    else:
        start, state = 0, jax.jit(parts.init, out_shardings=sharding)(jax.random.key(config.seed))
        if config.init_from.run:
            state = inherit.start_from(config.init_from, state, predictor.method, parts.optimizer, sharding)
    if on:
        files.write_whole(workdir / "environment.json", json.dumps(machine.describe(), indent=1) + "\n")
        parts.eval_streams.write_spec(workdir / "eval_streams.json")

    # ---- Train -------------------------------------------------------------------------------------------------------
    records = mix.mixed(config.data, parts.sources, parts.weights, config.seed, config.batch)
    data = pipeline.Pipeline(records, streams, config.batch, jax.process_index(), jax.process_count())
    batches = data.batches(start, config.data.threads, config.data.prefetch, config.data.workers)
    logger = log.Logger(mirror.folder, config, start, on, began)
    faults = FaultCounter(config.data.fault_budget, logger.before("unreadable"))
    steps = StepWatcher(logger, config.log.every, config.max_bad_steps, start)
    trace = Trace(config.profile.steps, mirror.folder / "profile", workdir / "profile")
    stop = Stop()
    exit_code = 0
    compiled = set()

    def hand_over(now):
        predictor.params = optim.to_evaluate(state.params, state.opt_state)
        predictor.extra = predictor.method.to_embed(state.extra)
        predictor.step = now

    def evaluate_now(now, done=()):
        hand_over(now)
        evaluate(predictor, config, logger, done)
        mirror.push()

    def remember():
        if on:
            files.write_whole(saved, configs.to_json(config))

    def due(now):
        return now == config.steps or (config.eval_every and now % config.eval_every == 0)

    def save(now):
        steps.flush(write=True)  # a run that goes on from here goes on with its clock and counts
        with logger.clock.part("checkpoint"):
            checkpoints.save(now, state, config.to_dict())
            mirror.push()

    try:
        if start and due(start):
            # What is missing, where the run was stopped between a save and its evaluations, or what is asked anew.
            anew = [k for k in config.evals if any(c.startswith((f"evals.{k}.", "data.train.")) for c in changed)]
            here = processes.from_first(lambda: [k for k in config.evals if logger.has_evaluation(start, k)])
            evaluate_now(start, [k for k in here if k not in anew])
        remember()  # only now: killed before, it would not know that evaluations were asked anew
        for now in range(start + 1, config.steps + 1):
            with logger.clock.part("data"):
                batch = next(batches)
            for reason in faults.add(batch):
                log.warn(f"can't read an example, it is left out: {reason}")
            rows = {"streams": batch["streams"], "position": batch["position"]}
            rows = parallel.put_rows(rows, mesh)
            if frozenset(rows["streams"]) not in compiled:  # batches of another source may have other streams
                compiled.add(frozenset(rows["streams"]))
                with logger.clock.part("compile"):
                    step.compile_and_tell(parts.train_step, state, rows)
                    processes.meet(f"compiled {len(compiled)}")
            if now == start + 1:
                logger.start_clock(start)
            trace.before(now)
            # It runs ahead of the devices, so the next batch is on its way to them while they work on this one.
            state, metrics = parts.train_step(state, rows)
            steps.add(now, metrics, faults.faulty)
            trace.after(now, metrics)

            last, stopping = now == config.steps, stop.asked(now)
            if now % config.checkpoint.every == 0 or last or stopping:
                save(now)
            if stopping and not last:
                exit_code = stop.exit_code
                break
            if due(now):
                steps.flush()
                evaluate_now(now)
        if exit_code:
            checkpoints.wait()
            processes.from_first(checkpoints.wait)  # a launcher may end the others as soon as one is gone
            log.say(f"stopped by a signal at step {now}, saved; the same command goes on from there")
    finally:
        try:
            checkpoints.close()
        finally:
            trace.close()
            logger.close()
            stop.restore_handlers()
    if not exit_code:
        if start >= config.steps:
            log.say(f"this run had its {config.steps} steps already; --config.steps=... takes it further")
        hand_over(config.steps)
        counts = {"bad_steps": steps.bad, "unreadable": faults.faulty}
        counts |= logger.clock.row() | {"goodput": round(logger.clock.goodput(), 4)}
        log.say(f"time: {logger.clock}")
        finish(predictor, config, workdir, mirror.folder, counts, start)
    return exit_code


def evaluate(predictor: predict.Predictor, config: ConfigDict, logger: log.Logger, done: Sequence[str] = ()) -> None:
    """Runs the evaluators of the config but those that are done, on the weights that the predictor has."""
    now = predictor.step
    for name, part in config.evals.items():
        if name in done:
            continue
        try:
            with logger.clock.part("evaluation"):
                metrics = evals.run(predictor, name, part, config.data.train)
        except Exception as e:
            e.add_note(f"evals.{name} failed at step {now}.")
            raise
        logger.evaluate(now, name, metrics)


def describe(config: ConfigDict, workdir: Path, mesh: Any, streams: Any, sources: list[Any], params: PyTree) -> None:
    """Prints what is about to be trained, on what, with what."""
    shape = " x ".join(f"{k} {v}" for k, v in mesh.shape.items())
    log.say(f"mmcl_jax: {config.method.name} in {workdir}")
    log.say(f"devices: {machine.devices()}; mesh {shape}; jax {jax.__version__}, Python {platform.python_version()}")
    for name, value in machine.flags().items():
        log.say(f"{name}={value}")
    records = sum(len(s) for s in sources)
    epochs = config.steps * config.batch / records
    sizes = " + ".join(f"{len(s):,}" for s in sources)
    log.say(f"data: {sizes} records; batch {config.batch}, {config.steps} steps = {log.short(epochs)} epochs")
    if config.batch > records:
        log.warn(f"batch={config.batch} is more than all records: each batch holds some twice, as false negatives.")
    rows = []
    example = streams.element(pipeline.read(sources[0], 0), 0)
    for name, chain in streams.chains.items():
        spec, sent = streams.spec[streams.source_of[name]], example["streams"][streams.source_of[name]]
        data = pipeline.flat({"data": spec["data"]}).items()
        shapes = (f"{k[5:]} {v.dtype}[{config.batch}, {', '.join(map(str, v.shape))}]".strip() for k, v in data)
        rows.append((name, ", ".join(shapes), _example(sent, streams, chain)))
    log.table("streams", ("stream", "on the host", "first example"), rows)
    parts = sorted((k, optim.count(v)) for k, v in params.items() if optim.count(v) > 1)
    log.say(f"parameters: {optim.count(params):,} ({', '.join(f'{k} {n:,}' for k, n in parts)})")


def _example(sent: dict[str, np.ndarray], streams: pipeline.Streams, chain: Any) -> str:
    data = jax.tree.leaves(sent["data"])[0]  # of ids and labels, the ids
    if not sent["present"].any():
        return "missing"
    if "mask" in sent and streams.tokenizer is not None:
        ids = data[sent["mask"]]
        return f"{streams.tokenizer.decode(ids)!r} ({len(ids)} tokens)"
    return f"{data.min()}..{data.max()}, mean {data.mean():.1f}"


def finish(
    predictor: predict.Predictor,
    config: ConfigDict,
    workdir: files.AnyPath,
    folder: Path,
    counts: dict[str, float],
    start: int,
) -> None:
    """The end of a run: results table, curves, a picture of what is found, summary.json. All processes call it.

    What is drawn and logged lies in `folder`: the workdir, or its mirror.
    """
    from mmcl_jax.evals import figures

    rows = log.read_metrics(folder / "metrics.jsonl")
    last = (r for r in rows if r["step"] == config.steps and "loss" not in r)
    final = {k: v for r in last for k, v in r.items() if k.split("/")[0] in config.evals}
    losses = [r["loss"] for r in rows if "loss" in r]
    summary = {"method": config.method.name, "steps": config.steps, "parameters": optim.count(predictor.params),
               "loss": losses[-1] if losses else None, **counts, "devices": predictor.mesh.size,
               "platform": jax.default_backend()}  # fmt: skip
    path = workdir / "summary.json"
    on = processes.is_first()  # the others only take part in what all devices compute
    if start >= config.steps and path.exists():  # nothing was trained: what the summary says of it stays
        told = json.loads(path.read_text())
        summary = told if told["steps"] == config.steps else summary  # an older one is that of a shorter run
    if on:
        files.write_whole(path, json.dumps(summary | {"evals": final}, indent=1) + "\n")
        log.results_table(final)
        figures.curves(folder / "metrics.jsonl", folder / "curves.png")
    made = ["curves.png"]
    if on:
        made += filter(None, [figures.of_numbers(config.evals, final, folder)])
    try:
        made += figures.of_evaluations(predictor, config.evals, config.data.train, folder if on else None)
    except Exception as e:  # noqa: BLE001 - a finished run is worth more than its picture
        log.warn(f"no picture of what an evaluation finds: {type(e).__name__}: {e}")
    took = log.duration(summary["seconds"])
    log.say(f"done in {took}: {workdir}/ has summary.json, metrics.jsonl, {', '.join(made)}, checkpoints/")


if __name__ == "__main__":
    from mmcl_jax.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
