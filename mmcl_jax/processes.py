"""Several processes, one run: how they find each other, and what only the first of them does.

Every process runs the same program on its own devices and its own rows; only the first one writes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmcl_jax.named import ConfigError, RunError

ERRORS = {e.__name__: e for e in (ConfigError, RunError, FileNotFoundError)}


def join(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Makes this process part of a run of several, if it is one; call it before anything asks JAX for devices.

    Where nothing is given, SLURM (`srun` with several tasks), Cloud TPU and what xpk sets on GPU nodes
    (JAX_COORDINATOR_ADDRESS, NNODES, NODE_RANK) are recognised; else the process is alone.

    Args:
        coordinator: "host:port" of the first process, the same on all.
        processes: how many there are.
        process: which of them this is, from 0.

    Raises:
        ConfigError: if only some of the three are given, or a number is out of range.
    """
    if jax.distributed.is_initialized():
        return
    given = {"--coordinator": bool(coordinator), "--processes": processes > 0, "--process": process >= 0}
    if any(given.values()):
        missing = [name for name, there in given.items() if not there]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} missing: several processes need all of --coordinator host:port, --processes N "
                "and --process i, or none of them under SLURM and on Cloud TPU."
            )
        if process >= processes:
            raise ConfigError(f"--process {process} of --processes {processes}: they count from 0.")
        jax.distributed.initialize(coordinator, processes, process)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        jax.distributed.initialize(local_device_ids=_slurm_devices())
    elif int(os.environ.get("NNODES", 1)) > 1 and os.environ.get("JAX_COORDINATOR_ADDRESS"):
        address, port = os.environ["JAX_COORDINATOR_ADDRESS"], os.environ.get("JAX_COORDINATOR_PORT", "6002")
        where = address if ":" in address else f"{address}:{port}"
        jax.distributed.initialize(where, int(os.environ["NNODES"]), int(os.environ["NODE_RANK"]))
    elif importlib.util.find_spec("libtpu") and (os.environ.get("JAX_PLATFORMS") or "tpu").startswith("tpu"):
        try:
            jax.distributed.initialize()
        except ValueError as e:
            if "coordinator_address" not in str(e):  # that would be libtpu without a TPU: alone
                raise


def _slurm_devices() -> list[int] | None:
    """This task's GPUs: all that SLURM lets it see, or, where tasks see all of the node, its share of them."""
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    if not gpus:
        return None  # JAX's default
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = len(seen.split(",")) if seen else gpus
    tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    share = gpus // int(tasks[0])
    if visible < gpus or not share:
        return list(range(visible))
    first = int(os.environ.get("SLURM_LOCALID", 0)) * share
    return list(range(first, first + share))


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """Calls a function on the first process only, and gives all processes what it returned there.

    All of them wait for it, so it also orders what comes after it behind what the function did.

    Args:
        function: returns something that JSON can hold.

    Raises:
        Exception: what the function raised there, on all processes.
    """
    if jax.process_count() == 1:
        return function()
    outcome, problem = {}, None
    if is_first():
        try:
            outcome = {"value": function()}
        except Exception as e:  # noqa: BLE001 - told to all, then raised
            outcome, problem = {"error": type(e).__name__, "message": str(e)}, e
    meet("from_first")  # collectives don't wait long for a process that is late
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if problem is not None:
        raise problem
    if "error" in outcome:
        raise ERRORS.get(outcome["error"], RunError)(outcome["message"])
    return outcome["value"]


def meet(where: str, minutes: float = 60) -> None:
    """Waits until all processes are here: one may have read, compiled or written for longer than another.

    Args:
        where: a name, the same on all of them.
        minutes: how long to wait before giving up with an error.
    """
    ocp.multihost.get_barrier_sync_fn()(key=where, timeout_ms=int(minutes * 60_000))


def _broadcast(data: bytes) -> bytes:
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(-(-length // 1024) * 1024, np.uint8)
    padded[: len(data[:length])] = np.frombuffer(data[:length], np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes()
