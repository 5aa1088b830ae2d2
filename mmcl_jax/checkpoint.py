"""Checkpoints that survive: written in the background, verified when read, with a way back when one is damaged.

    workdir/checkpoints/<step>/    what Orbax writes: the state and the resolved config
    workdir/damaged/<step>         one that could not be used, set aside
    workdir/manifests/<step>.json  size and CRC-32 of each of its files, written once Orbax is done with it

A flipped bit in a large array goes unnoticed by Orbax; the manifest notices it. An object store keeps digests of its
own, so there the manifest has sizes only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import secrets
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmcl_jax import files, processes
from mmcl_jax.named import PREEMPTED, ConfigError, RunError
from mmcl_jax.types import PyTree

ASIDE, OWNER = "damaged", "owner.json"
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        workdir: of the run.
        keep: number of checkpoints that are kept.
        read_only: only restore, and leave everything as it is: the run may be under way.
        owned: from `lock`: whether the workdir is still this run's.
    """

    def __init__(
        self, workdir: files.AnyPath, keep: int = 2, read_only: bool = False, owned: Callable[[], bool] | None = None
    ):
        self.workdir = workdir if files.is_remote(workdir) else workdir.resolve()
        self.folder, self.manifests = self.workdir / "checkpoints", self.workdir / "manifests"
        self.read_only, self.owned = read_only, owned
        self.sealing: threading.Thread | None = None
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.manifests.mkdir(parents=True, exist_ok=True)
        options = {} if read_only else {"max_to_keep": keep, "cleanup_tmp_directories": True}
        self.manager = _manager(self.folder, read_only=read_only, **options)

    def steps(self) -> list[int]:
        """Steps of which there is a folder, oldest first; whether it can be used is another question."""
        return _steps(self.folder)

    def save(self, step: int, state: PyTree, config: dict[str, Any]) -> None:
        """Starts to write the state; it goes on in the background. Waits for the save before, if that is not done.

        Raises:
            RunError: if the disk has no room for it, before anything is written.
        """
        self.wait()
        need = sum(x.nbytes for x in jax.tree.leaves(state))

        def is_there() -> bool:
            if self.owned and not self.owned():
                raise RunError(f"Another run has begun in {self.workdir} since; this one leaves it alone and stops.")
            free = files.free_bytes(self.folder)
            if free is not None and free < 1.1 * need:
                raise RunError(
                    f"No room for a checkpoint in {self.folder}: it takes {need / 2**20:.0f} MiB, {free / 2**20:.0f} "
                    "MiB are free. Earlier checkpoints are intact; make room and start again."
                )
            return step in self.steps()

        if processes.from_first(is_there):
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config))
        if not self.manager.save(step, args=args, force=True):
            raise RuntimeError(f"Orbax did not save step {step} in {self.folder}.")
        if processes.is_first():
            self.sealing = threading.Thread(target=self._seal, args=(step,), daemon=True)
            self.sealing.start()

    def _seal(self, step: int) -> None:
        """Writes the manifest as soon as Orbax is done, beside the training; drops those of deleted checkpoints.

        Only of the step just saved: a manifest made later would vouch for whatever has happened to the files since.
        """
        self.manager.wait_until_finished()
        files.write_whole(self._manifest(step), json.dumps(_digests(self.folder / str(step))))
        steps = set(self.steps())
        for path in self.manifests.glob("*.json"):
            if path.stem.isdigit() and int(path.stem) not in steps:
                path.unlink()

    def wait(self) -> None:
        """Waits until the save that is under way is on the disk, with its manifest.

        Raises:
            Exception: what went wrong in the background.
        """
        self.manager.wait_until_finished()
        self.manager.check_for_errors()
        if self.sealing is not None:
            self.sealing.join()
            self.sealing = None

    def close(self) -> None:
        """Waits and lets go."""
        self.wait()
        self.manager.close()

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[int, PyTree] | None:
        """The newest state that can be used, or that of `step`.

        A damaged one is set aside under another name, with a warning, and the one before it is tried.

        Args:
            abstract_state: shapes, dtypes and shardings that the state should have; any mesh will do. A dict holds
                only the wanted parts of the state, {"params": ...} say.
            step: only this one.

        Returns:
            (step, state), or None if the run has never saved.

        Raises:
            RunError: if there are checkpoints and none can be used; never a silent start from zero.
            FileNotFoundError: if there is none of `step`.
            ConfigError: if a whole checkpoint is of another model than `abstract_state`.
        """
        steps = processes.from_first(self.steps)
        if step is not None and step not in steps:
            raise FileNotFoundError(f"{self.folder} has no checkpoint of step {step}; it has {steps}.")
        damaged = []
        for candidate in reversed(steps if step is None else [step]):
            problem = processes.from_first(lambda c=candidate: self.verify(c))
            if problem in (None, "unverified"):
                try:
                    args = ocp.args.Composite(state=_how_to_restore(abstract_state))
                    return candidate, self.manager.restore(candidate, args=args).state
                except Exception as e:  # noqa: BLE001 - whatever a damaged file makes a reader raise
                    if jax.process_count() > 1:
                        raise  # another process may have read it
                    if problem is None or self._readable(candidate):
                        raise ConfigError(
                            f"The checkpoint {self.folder / str(candidate)} is whole, but does not fit this config's "
                            f"model. Compare {self.folder.parent / 'config.json'}, or choose another --workdir. ({e})"
                        ) from e
                    problem = f"{type(e).__name__}: {e}"
            damaged.append(f"step {candidate}: {problem}")
            self._set_aside(candidate, problem)
        if damaged or (self.workdir / ASIDE).exists():
            found = "\n  ".join(damaged) or "only checkpoints that were set aside before"
            kept = "Nothing was changed" if self.read_only else f"They were moved to {self.workdir / ASIDE}"
            raise RunError(
                f"No checkpoint in {self.folder} can be used:\n  {found}\n{kept}. To start from step 0, choose another "
                "--workdir."
            )
        return None

    def _readable(self, step: int) -> bool:
        """Whether the state can be read at all, whatever its shape."""
        try:  # with a manager of its own: one that has read parts of a state reads no whole ones
            with _manager(self.folder, read_only=True) as manager:
                manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
        except Exception:  # noqa: BLE001 - as above
            return False
        return True

    def verify(self, step: int) -> str | None:
        """None if every file is as it was written, "unverified" if there is no manifest, or else what is wrong."""
        path = self._manifest(step)
        if not path.exists():
            return "unverified"  # killed between the save and its manifest: Orbax's rename says it is complete
        try:
            expected = json.loads(path.read_text())
        except json.JSONDecodeError:
            return "unverified"
        actual = _digests(self.folder / str(step))

        def same(a: list[int | None], b: list[int | None]) -> bool:
            return a[0] == b[0] and (None in (a[1], b[1]) or a[1] == b[1])

        wrong = [f for f in expected if f not in actual or not same(actual[f], expected[f])]
        return f"{len(wrong)} of its files changed since they were written, {wrong[0]} first" if wrong else None

    def _set_aside(self, step: int, problem: str) -> None:
        if self.read_only:
            log.warning("Checkpoint of step %d can't be used (%s); trying the one before.", step, problem)
            return

        def rename() -> None:
            target = self.workdir / ASIDE / str(step)  # not in `checkpoints`, which Orbax tidies up
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "_")
            log.warning("Checkpoint of step %d can't be used (%s); set aside as %s.", step, problem, target)
            target.with_name(f"{target.name}.txt").write_text(
                f"{problem}\n"
            )  # a store's folder is there once a file is
            (self.folder / str(step)).rename(target)
            self._manifest(step).unlink(missing_ok=True)

        processes.from_first(rename)
        self.manager.reload()

    def _manifest(self, step: int) -> files.AnyPath:
        return self.manifests / f"{step}.json"


def _manager(folder: files.AnyPath, **options: Any) -> ocp.CheckpointManager:
    """Orbax's, without what it tells those who only read: that they save nothing."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR if options.get("read_only") else level)
    try:
        return ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(step_format_fixed_length=None, **options)
        )
    finally:
        absl.setLevel(level)


def _how_to_restore(abstract_state: PyTree) -> Any:
    if not isinstance(abstract_state, dict):
        return ocp.args.StandardRestore(abstract_state)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    return ocp.args.PyTreeRestore(item=abstract_state, restore_args=restore_args, partial_restore=True)


def holds_run(run: files.AnyPath) -> files.AnyPath:
    """The same folder, if it is a run's.

    Raises:
        FileNotFoundError: if it is not.
    """
    if not (run / "config.json").exists():
        raise FileNotFoundError(f"{run} holds no run: it has no config.json. Train one with --workdir {run}.")
    return run


def has_saved(workdir: files.AnyPath) -> bool:
    """Whether the workdir holds a run to go on from, be it with a damaged checkpoint."""
    return bool(_steps(workdir / "checkpoints")) or (workdir / ASIDE).exists()


def _steps(folder: files.AnyPath) -> list[int]:
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(r"\d+", p.name) and p.is_dir()]
    if files.is_remote(folder):  # there the name doesn't tell a complete one from one that is being written
        found = [p for p in found if ocp.utils.is_checkpoint_finalized(p)]
    return sorted(int(p.name) for p in found)


def _digests(folder: files.AnyPath) -> dict[str, list[int | None]]:
    """Path -> [size, CRC-32] of all files in a folder; on an object store [size, None]."""
    found = {}
    for name, size in files.sizes(folder).items():
        crc = None if files.is_remote(folder) else 0
        if crc is not None:
            with (folder / name).open("rb") as f:
                while block := f.read(2**22):
                    crc = zlib.crc32(block, crc)
        found[name] = [size, crc]
    return found


class Stop:
    """Whether a signal has asked the run to stop: SIGTERM (a machine taken back) or Ctrl-C.

    With several processes JAX's own notifier is asked instead, so that all stop at the same step; a handler of
    ours would switch it off.
    """

    def __init__(self):
        self.signal: int | None = None
        self.several = jax.process_count() > 1
        if not self.several:
            self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.signal = number

    def asked(self, step: int) -> bool:
        """Whether to save and stop at this step."""
        if self.several:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """42 after SIGTERM: start again to go on. 130 after Ctrl-C, as shells expect."""
        return 130 if self.signal == signal.SIGINT else PREEMPTED

    def restore_handlers(self) -> None:
        """Gives the signals back to whom they belonged."""
        if not self.several:
            for number, handler in self.previous.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def lock(workdir: files.AnyPath) -> Iterator[Callable[[], bool]]:
    """Makes sure that no two runs write to the workdir; of several processes the first one sees to it for all.

    On a disk the second one is refused; the lock goes with the process, however that ends. An object store has no such
    locks, and a machine that was taken away can't give anything back: there the run that began last owns the workdir,
    and the one before it stops at its next save.

    Yields:
        A function that says whether the workdir is still ours.

    Raises:
        ConfigError: if another process has it.
    """
    if files.is_remote(workdir):

        def own() -> str:
            owner = json.dumps({"host": platform.node(), "pid": os.getpid(), "run": secrets.token_hex(8)})
            (workdir / OWNER).write_text(owner)
            return owner

        owner = processes.from_first(own)
        yield lambda: (workdir / OWNER).read_text() == owner
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as file:

        def take() -> None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"Another run is writing to {workdir}; choose another --workdir or wait for it."
                ) from None

        processes.from_first(take)
        yield lambda: True


def rename(path: str, rules: Sequence[str]) -> str:
    """A parameter's path after the first of the rules "path regex: new path" that matches its start; "" if dropped."""
    for rule in rules:
        pattern, _, target = (part.strip() for part in rule.rpartition(":"))
        if re.match(pattern, path):
            return re.sub(pattern, target, path, count=1) if target else ""
    return path


def rename_and_fit(params: PyTree, loaded: PyTree, rules: Sequence[str], resize: Any) -> tuple[PyTree, list[str]]:
    """Starts parameters from those of another run, as far as paths and shapes agree.

    Args:
        params: {path: array} of this run, freshly initialised.
        loaded: {path: array} of the other run.
        rules: "path regex: new path" each, applied to the other run's paths; an empty new path drops it.
        resize: (path, array, shape) -> array where a shape differs, or None if it can't be made to fit.

    Returns:
        The new {path: array}, and the paths that were taken over.

    Raises:
        ConfigError: if a path agrees but its shape can't be made to fit, or nothing at all was taken over.
    """
    renamed = {new: value for path, value in loaded.items() if (new := rename(path, rules))}
    result, taken = dict(params), []
    for path, value in renamed.items():
        if path not in params:
            continue
        if value.shape != params[path].shape:
            value = resize(path, value, params[path].shape)
        if value is None:
            raise ConfigError(
                f"init_from: {path} has shape {renamed[path].shape} there and {params[path].shape} here. Drop it with "
                f"init_from.rules=('{path}:',)"
            )
        result[path] = value
        taken.append(path)
    if not taken:
        raise ConfigError(
            f"init_from: no parameter's path agrees; there: {sorted(loaded)[:5]}, here: {sorted(params)[:5]}."
        )
    return result, taken
