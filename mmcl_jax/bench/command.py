"""`mmcl bench loss | step | data | eval`: the arguments, a table or one JSON object a line."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable
from typing import Any


def add_to(commands: Any, config_help: str) -> None:
    """Adds `bench` to the command line."""
    bench = commands.add_parser("bench", help="measure losses, the train step, data and evaluations on this hardware")
    verbs = bench.add_subparsers(dest="verb", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one object a line instead of a table")
    common.add_argument("--pin", action="store_true", help="on one core of the CPU: for numbers to be compared")
    common.add_argument("--devices", type=int, default=0, help="default: all; on a CPU so many virtual ones")

    loss = verbs.add_parser("loss", parents=[common], help="memory, traffic and time of the contrastive losses' forms")
    loss.add_argument("--loss", default="info_nce", help="info_nce, sigmoid or filip")
    loss.add_argument("--impl", default="", help="only these, with commas between them")
    loss.add_argument("--batch", type=int, default=65536, help="global; compiled, not run")
    loss.add_argument("--dim", type=int, default=512)
    loss.add_argument("--tokens", default="49,32", help="of filip: tokens of an image, and of a text")
    loss.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the vectors")
    loss.add_argument("--chunk", type=int, default=1024, help="columns of a tile")
    loss.add_argument("--time_batch", type=int, default=2048, help="global; run to take times; 0: don't")
    loss.add_argument("--rounds", type=int, default=11, help="how often each form is timed, in turns")
    loss.add_argument("--largest", type=float, default=0, metavar="MIB",
                      help="instead: the largest batch, a power of 2, that takes no more memory a device")  # fmt: skip
    loss.add_argument("--plot", default="", help="with --largest: memory against batch, a PNG")
    loss.set_defaults(run=_loss)

    step = verbs.add_parser("step", parents=[common], help="the train step of a config")
    step.add_argument("--rounds", type=int, default=7)
    step.add_argument("--compile", action="store_true", help="also compile with an empty cache, and with a full one")
    step.set_defaults(run=_step)
    data = verbs.add_parser("data", parents=[common], help="records a second of each stage of a config's input")
    data.set_defaults(run=_data)
    evaluation = verbs.add_parser("eval", parents=[common], help="what a config's evaluations cost")
    evaluation.set_defaults(run=_eval)
    for verb in (step, data, evaluation):
        verb.add_argument("--config", required=True, help=config_help)


def _devices(arguments: argparse.Namespace) -> None:
    """Makes the virtual devices; before JAX looks for any."""
    from mmcl_jax.bench import timing

    if arguments.pin:
        timing.pin()
    import jax

    if arguments.devices:
        with contextlib.suppress(RuntimeError):  # where JAX has begun its devices are what they are
            jax.config.update("jax_num_cpu_devices", arguments.devices)  # of no effect where there are real ones


def _loss(arguments: argparse.Namespace) -> None:
    _devices(arguments)
    from mmcl_jax import log
    from mmcl_jax.bench import loss

    impls = [i for i in arguments.impl.split(",") if i]
    tokens = [int(n) if n.isdecimal() else 0 for n in arguments.tokens.split(",")]  # 0 is refused
    what = (arguments.loss, impls, arguments.devices)
    if not arguments.largest:
        tell(arguments, loss.measure(*what, arguments.batch, arguments.dim, arguments.dtype, arguments.chunk,
                                     arguments.time_batch, arguments.rounds, tokens))  # fmt: skip
        return
    rows = list(loss.largest(*what, arguments.dim, arguments.dtype, arguments.chunk, arguments.largest, tokens))
    tell(arguments, rows if arguments.json else [{k: v for k, v in r.items() if k != "temp_mib"} for r in rows])
    if arguments.plot:
        loss.plot(rows, arguments.plot)
        if not arguments.json:
            log.say(f"written to {arguments.plot}")


def _step(arguments: argparse.Namespace) -> None:
    _devices(arguments)
    from mmcl_jax.bench import step

    compiled = {}
    if arguments.compile:  # first: where there is an accelerator this process would take it from the others
        flags = ["--config", arguments.config, "--devices", str(arguments.devices)] + ["--pin"] * arguments.pin
        compiled = step.compile_times(flags + [f"--config.{o}" for o in arguments.overrides])
    row = step.measure(_config(arguments), arguments.devices, arguments.rounds)
    tell(arguments, [row | compiled], across=False)


def _data(arguments: argparse.Namespace) -> None:
    _devices(arguments)
    from mmcl_jax.bench import data

    tell(arguments, data.measure(_config(arguments), arguments.devices))


def _eval(arguments: argparse.Namespace) -> None:
    _devices(arguments)
    from mmcl_jax.bench import evals

    tell(arguments, evals.measure(_config(arguments), arguments.devices))


def _config(arguments: argparse.Namespace) -> Any:
    from mmcl_jax import config

    return config.load(arguments.config, arguments.overrides)


def tell(arguments: argparse.Namespace, rows: Iterable[dict[str, Any]], across: bool = True) -> None:
    """Prints rows: as JSON, each as soon as it is there, or as a table, a row a line (`across`) or a value a line."""
    from mmcl_jax import log

    if arguments.json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    rows = list(rows)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    same = [c for c in columns if across and len(rows) > 1 and len({json.dumps(row.get(c)) for row in rows}) == 1]
    if same:  # said once
        log.say(", ".join(f"{c} {rows[0][c]}" for c in same))
    lines = [[str(row.get(c, "")) for c in columns if c not in same] for row in rows]
    if across:
        log.table("", [c for c in columns if c not in same], lines)
    else:
        log.table("", ("", ""), [[k, str(v)] for k, v in rows[0].items()])
