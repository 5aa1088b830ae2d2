"""The one training loop, for every method: read it from top to bottom.

`python -m mmcl_jax.train --config configs/clip.py:tiny` is the same as `mmcl train --config ...`.
"""

from __future__ import annotations

import collections
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmcl_jax import config as configs
from mmcl_jax import evals, log, named, optim, parallel, predict, step
from mmcl_jax.checkpoint import Checkpoints, Stop, lock
from mmcl_jax.data import pipeline, tokenizers
from mmcl_jax.step import StepWatcher
from mmcl_jax.types import PyTree


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
    workdir = Path(workdir)

    # ---- Check -----------------------------------------------------------------------------------------------------
    if jax.process_count() > 1:
        raise named.ConfigError("Training with several processes is not built yet; start one process for all devices.")
    mesh = named.checked("mesh", parallel.make_mesh, config.mesh, devices)
    configs.validate(config, mesh.size)
    log.check(config.log)
    with lock(workdir):
        return _train(config, workdir, mesh)


def _train(config: ConfigDict, workdir: Path, mesh: Mesh) -> int:
    """`train`, once the workdir is ours."""
    began = time.monotonic()
    # A workdir without a checkpoint holds nothing to go on from: its files are those of a start that failed.
    begun = any((workdir / "checkpoints").glob("[0-9]*"))
    saved = workdir / "config.json"
    changed = configs.check_continuation(json.loads(saved.read_text()), config.to_dict()) if begun else {}

    # ---- Data ------------------------------------------------------------------------------------------------------
    sources, weights = pipeline.open_sources(config.data.train)
    inherited = None if begun else predict.inherited_tokenizer(config)
    tokenizer = pipeline.make_tokenizer(config.data, sources, workdir, begun, inherited)
    streams = pipeline.Streams(config.data.streams, config.seed, tokenizer, config.data.record)
    eval_streams = pipeline.Streams(config.data.eval_streams, config.seed, tokenizer, config.data.record)
    for part in (streams, eval_streams):
        part.find_spec(*sources)
    device = predict.device_streams(streams, config.seed)

    # ---- Model -----------------------------------------------------------------------------------------------------
    predictor = predict.untrained(config, eval_streams, mesh, batch=min(config.batch, 256))
    method = predictor.method
    optimizer, schedule, by = named.checked("optim", optim.build, config.optim, config.steps, predictor.params)
    sample = named.checked("data.streams", predict.sample_batch, streams, device)

    def init(key):
        return step.init_state(method, optimizer, sample, key)

    shapes = jax.eval_shape(init, jax.random.key(config.seed))
    sharding = parallel.state_sharding(shapes, mesh)
    check_vocabulary(config, tokenizer, shapes.params)
    evals.check(predictor, config.evals, config.data.train)

    # ---- Say what this is --------------------------------------------------------------------------------------------
    workdir.mkdir(parents=True, exist_ok=True)
    on = jax.process_index() == 0
    if on:
        describe(config, workdir, mesh, streams, sources, shapes.params)
        for key, (old, new) in changed.items():
            log.say(f"changed since this run began: {key}: {old!r} -> {new!r}")

    # ---- State: where it was, or from another run, or from scratch -------------------------------------------------
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    abstract = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, sharding)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        start, state = restored
        log.say(f"going on from step {start}")
        if start > config.steps:
            raise named.ConfigError(f"steps={config.steps}, but the run in {workdir} is at step {start} already.")
    else:
        start, state = 0, jax.jit(init, out_shardings=sharding)(jax.random.key(config.seed))
        if config.init_from.run:
            state = predict.start_from(config.init_from, state, optimizer, sharding)
    if on:
        write_whole(saved, configs.to_json(config))
        eval_streams.write_spec(workdir / "eval_streams.json")
    train_step = step.make_train_step(method, optimizer, by, schedule, device, mesh, config.seed)
    train_step = step.compile_step(train_step, shapes, sharding, mesh)

    # ---- Train -------------------------------------------------------------------------------------------------------
    records = pipeline.Mixed(sources, weights, config.seed)
    data = pipeline.Pipeline(records, streams, config.batch, jax.process_index(), jax.process_count())
    batches = data.batches(start, config.data.threads, config.data.prefetch, config.data.workers)
    logger = log.Logger(workdir, config.steps, config.batch, config.log, start, on, began)
    faults = pipeline.FaultCounter(config.data.fault_budget, logger.before("unreadable"))
    steps = StepWatcher(logger, config.log.every, config.max_bad_steps, start)
    stop = Stop()
    exit_code = 0

    def evaluate_now(now, done=()):
        predictor.params, predictor.extra = optim.to_evaluate(state.params, state.opt_state), state.extra
        evaluate(predictor, config, logger, now, done)

    def due(now):
        return now == config.steps or (config.eval_every and now % config.eval_every == 0)

    def save(now):
        steps.flush(write=True)  # a run that goes on from here goes on with its clock and counts
        with logger.off_the_clock():
            checkpoints.save(now, state, config.to_dict())

    try:
        if start and due(start):
            # What is missing, where the run was stopped between a save and its evaluations, or what is asked anew.
            anew = [k for k in config.evals if any(c.startswith((f"evals.{k}.", "data.train.")) for c in changed)]
            evaluate_now(start, [k for k in config.evals if k not in anew and logger.has_evaluation(start, k)])
        for now in range(start + 1, config.steps + 1):
            waiting = time.monotonic()
            batch = next_batch(batches, stop)
            if batch is None:
                now -= 1
                save(now)
                exit_code = stop.exit_code
                break
            logger.waited += time.monotonic() - waiting
            for reason in faults.add(batch):
                log.warn(f"can't read an example, it is left out: {reason}")
            rows = {"streams": batch["streams"], "position": batch["position"]}
            state, metrics = train_step(state, parallel.put_rows(rows, mesh))
            if now == start + 1:
                jax.block_until_ready(metrics)
                log.say(f"compiled in {log.duration(time.monotonic() - waiting)}")
                logger.start_clock(now)
            steps.add(now, metrics, faults.faulty)

            last, stopping = now == config.steps, stop.asked(now)
            if now % config.checkpoint.every == 0 or last or stopping:
                save(now)
            if stopping and not last:
                exit_code = stop.exit_code
                break
            if due(now):
                steps.flush()
                with logger.off_the_clock():
                    evaluate_now(now)
        if exit_code:
            checkpoints.wait()
            log.say(f"stopped by a signal at step {now}, saved; the same command goes on from there")
    finally:
        try:
            checkpoints.close()
        finally:
            logger.close()
            stop.restore_handlers()
    if on and not exit_code:
        if start >= config.steps:
            log.say(f"this run had its {config.steps} steps already; --config.steps=... takes it further")
        predictor.params, predictor.extra = optim.to_evaluate(state.params, state.opt_state), state.extra
        counts = {"bad_steps": steps.bad, "unreadable": faults.faulty, "seconds": round(logger.seconds(), 1)}
        finish(predictor, config, workdir, counts, start)
    return exit_code


def next_batch(batches: Iterator[Any], stop: Stop) -> Any:
    """The next batch; None if there is none because the signal to stop went to the workers that make them, too."""
    try:
        return next(batches)
    except Exception:
        if stop.signal is None:
            raise
        return None


def write_whole(path: Path, text: str) -> None:
    """Writes a file such that a crash leaves the old one or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def check_vocabulary(config: ConfigDict, tokenizer: tokenizers.Tokenizer | None, params: PyTree) -> None:
    """Refuses a tokenizer with more tokens than a tower has embeddings: they would silently share the last one."""
    tables = dict(zip(jax.tree.leaves(optim.paths(params)), jax.tree.leaves(params), strict=True))
    for modality in {name.split("/")[0] for name, text in config.data.streams.items() if "tokenize" in text}:
        table = tables.get(f"{modality}/tokens/embedding")
        if table is not None and len(tokenizer) > table.shape[0]:
            raise named.ConfigError(
                f"The tokenizer has {len(tokenizer)} tokens, encoders.{modality}.vocab={table.shape[0]}. Set "
                f"--config.encoders.{modality}.vocab={len(tokenizer)} or a smaller data.tokenizer.vocab."
            )


def evaluate(
    predictor: predict.Predictor, config: ConfigDict, logger: log.Logger, now: int, done: Sequence[str] = ()
) -> None:
    """Runs the evaluators of the config but those that are done."""
    predictor.step = now
    for name, part in config.evals.items():
        if name in done:
            continue
        try:
            metrics = evals.run(predictor, name, part, config.data.train)
        except Exception as e:
            e.add_note(f"evals.{name} failed at step {now}.")
            raise
        logger.evaluate(now, name, metrics)


def describe(config: ConfigDict, workdir: Path, mesh: Any, streams: Any, sources: list[Any], params: PyTree) -> None:
    """Prints what is about to be trained, on what, with what."""
    kinds = collections.Counter(d.device_kind for d in jax.devices())
    shape = " x ".join(f"{k} {v}" for k, v in mesh.shape.items())
    devices = ", ".join(f"{n} x {k}" for k, n in kinds.items())
    log.say(f"mmcl_jax: {config.method.name} in {workdir}")
    log.say(f"devices: {devices}; mesh {shape}; jax {jax.__version__}, Python {platform.python_version()}")
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
        data = spec["data"]
        rows.append(
            (name, f"{data.dtype}[{config.batch}, {', '.join(map(str, data.shape))}]", _example(sent, streams, chain))
        )
    log.table("streams", ("stream", "on the host", "first example"), rows)
    parts = sorted((k, optim.count(v)) for k, v in params.items() if optim.count(v) > 1)
    log.say(f"parameters: {optim.count(params):,} ({', '.join(f'{k} {n:,}' for k, n in parts)})")


def _example(sent: dict[str, np.ndarray], streams: pipeline.Streams, chain: Any) -> str:
    data = sent["data"]
    if not sent["present"]:
        return "missing"
    if "mask" in sent and streams.tokenizer is not None:
        ids = data[sent["mask"]]
        return f"{streams.tokenizer.decode(ids)!r} ({len(ids)} tokens)"
    return f"{data.min()}..{data.max()}, mean {data.mean():.1f}"


def finish(
    predictor: predict.Predictor, config: ConfigDict, workdir: Path, counts: dict[str, float], start: int
) -> None:
    """The end of a run: results table, curves, a picture of retrieval, summary.json."""
    from mmcl_jax.evals import figures

    rows = log.read_metrics(workdir / "metrics.jsonl")
    final = {k: v for r in rows if r["step"] == config.steps and "loss" not in r for k, v in r.items() if k != "step"}
    losses = [r["loss"] for r in rows if "loss" in r]
    summary = {"method": config.method.name, "steps": config.steps, "parameters": optim.count(predictor.params),
               "loss": losses[-1] if losses else None, **counts, "devices": predictor.mesh.size,
               "platform": jax.default_backend()}  # fmt: skip
    path = workdir / "summary.json"
    if start >= config.steps and path.exists():  # nothing was trained: what the summary says of it stays
        told = json.loads(path.read_text())
        summary = told if told["steps"] == config.steps else summary  # an older one is that of a shorter run
    write_whole(path, json.dumps(summary | {"evals": final}, indent=1) + "\n")
    log.results_table(final)
    figures.curves(workdir / "metrics.jsonl", workdir / "curves.png")
    made = ["curves.png"]
    name, shown = next(((k, e) for k, e in config.evals.items() if e.name == "retrieval"), ("", None))
    if shown is not None:
        try:
            data = evals.with_source(shown.data, config.data.train)
            figures.retrieval(predictor, data, workdir / "retrieval.png", name, shown.get("limit", 0))
            made.append("retrieval.png")
        except Exception as e:  # noqa: BLE001 - a finished run is worth more than its picture
            log.warn(f"no retrieval.png: {type(e).__name__}: {e}")
    took = log.duration(summary["seconds"])
    log.say(f"done in {took}: {workdir}/ has summary.json, metrics.jsonl, {', '.join(made)}, checkpoints/")


if __name__ == "__main__":
    from mmcl_jax.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
