"""The one train step: batch -> loss -> gradients -> update, and nothing at all if anything is not finite.

And the watcher that lets steps run ahead of the loop, and looks at what came out of them.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mmcl_jax import log, named, optim, parallel
from mmcl_jax.losses import plan
from mmcl_jax.method import Method
from mmcl_jax.types import Array, Batch, Ctx, PyTree, TrainState

RUN_AHEAD = 2  # steps that may be under way on the devices before the loop waits for one
COLLAPSED = 0.05  # deviation of embeddings, see `losses.spread`, below which they are all but the same


def init_state(method: Method, optimizer, batch: Batch, rng: Array) -> TrainState:
    """The state before the first step, from one row of each stream. Run it under jit, or `jax.eval_shape`."""
    params, extra = method.init(rng, batch)
    params, extra = method.after_update(params, extra, Ctx())
    # Scalars made in Python are weakly typed, which a restored state is not: it would compile the step twice.
    params, extra = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (params, extra))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), extra)


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    by: optim.Multipliers,
    schedule: optax.Schedule,
    streams: Callable[[PyTree], Batch],
    mesh: Mesh,
    config: Any,
) -> Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Array]]]:
    """Builds `step(state, host_batch) -> (state, metrics)`, to be jitted by `compile_step`.

    Args:
        method: what is trained.
        optimizer: from `optim.build`, as are the next two.
        by: learning rate and decay multipliers.
        schedule: learning rate by step, for the log.
        streams: the device half of the streams.
        mesh: the devices.
        config: of the run: its `seed`, `chunks` and `loss`.
    """
    how = dict(chunks=config.chunks, frozen=optim.frozen(by), loss=dict(config.loss))

    def train_step(state: TrainState, host: PyTree) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        ctx = Ctx(mesh, parallel.BATCH_AXES, train=True, step=state.step, rng=rng, **how)
        batch = streams(host)

        def loss_fn(params):
            return method.loss(optim.freeze(params, by), state.extra, batch, ctx)

        (loss, (extra, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grads = jax.lax.optimization_barrier(grads)  # or XLA:CPU fuses their norm into each, and takes long over it
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, extra = method.after_update(optax.apply_updates(state.params, updates), extra, ctx)

        new = (params, opt_state, extra)
        # Finite gradients (their norm squares them) make finite updates; `extra` has its own way from the batch.
        fine = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & _all_finite(extra)
        # A step that is not finite changes nothing but the step's number: not the moments, not the queues.
        new = jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, (state.params, state.opt_state, state.extra))
        metrics = {"loss": loss, **metrics, "grad_norm": grad_norm, "lr": schedule(state.step), "bad": ~fine}
        return TrainState(state.step + 1, *new), metrics

    return train_step


def _all_finite(tree: PyTree) -> Array:
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array(finite).all()


def compile_step(train_step: Callable, sharding: PyTree, mesh: Mesh) -> Callable:
    """Jits the train step: where the state lives is fixed, its buffers are donated, batches come by rows."""
    return jax.jit(
        train_step,
        in_shardings=(sharding, parallel.by_rows(mesh)),
        out_shardings=(sharding, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def compile_and_tell(train_step: Callable, state: PyTree, rows: PyTree) -> None:
    """Compiles the step, and says what form its losses took, how long it took and what memory a device will need.

    The first call of the jitted step finds it compiled.
    """
    began = time.monotonic()
    with plan.listen() as plans:
        lowered = train_step.lower(state, rows)
    for each in plans:
        log.say(str(each))
    memory = lowered.compile().memory_analysis()
    needs = ""
    if memory is not None:  # some backends don't tell
        whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        needs = f"; a device needs {whole / 2**20:.0f} MiB, {memory.temp_size_in_bytes / 2**20:.0f} of them temporary"
    log.say(f"compiled in {log.duration(time.monotonic() - began)}{needs}")


class StepWatcher:
    """Keeps the loop a few steps ahead of the devices, logs, and stops a run that has gone wrong.

    Args:
        logger: where training rows go.
        every: steps between rows.
        max_bad: non-finite steps in a row that are too many.
        start: steps already taken.
    """

    def __init__(self, logger: log.Logger, every: int, max_bad: int, start: int):
        self.logger, self.every, self.max_bad = logger, every, max_bad
        self.waiting: collections.deque[tuple[int, PyTree, int]] = collections.deque()
        self.bad, self.bad_in_row = logger.before("bad_steps"), 0
        self.first, self.collapsed = start + 1, False
        self.latest: dict[str, Any] = {}  # of each metric: a batch without a stream has no value of its term

    def add(self, now: int, metrics: PyTree, faulty: int) -> None:
        """Takes a step's metrics, still being computed, and looks at those of the step RUN_AHEAD before."""
        self.waiting.append((now, metrics, faulty))
        if len(self.waiting) > RUN_AHEAD:
            self._look()

    def flush(self, write: bool = False) -> None:
        """Looks at all steps that are under way; with `write`, the last of them gets a row in any case."""
        while self.waiting:
            self._look(write and len(self.waiting) == 1)

    def _look(self, write: bool = False) -> None:
        now, metrics, faulty = self.waiting.popleft()
        values: dict[str, Any] = {k: v.item() for k, v in jax.device_get(metrics).items()}
        bad = values.pop("bad")
        self.bad += bad
        self.bad_in_row = self.bad_in_row + 1 if bad else 0
        if self.bad_in_row >= self.max_bad:
            raise named.RunError(
                f"{self.bad_in_row} steps in a row were not finite, up to step {now}; the weights are those before "
                "them. Try a lower optim.lr, a longer optim.warmup, optim.clip=1.0 or dtype=float32."
            )
        counts = {"bad_steps": self.bad} if self.bad else {}
        counts |= {"unreadable": faulty} if faulty else {}
        if now % self.every == 0 or now == self.first or write:
            self.logger.train(now, self.latest | values | counts)
            self._warn_of_collapse(now, values)
        self.latest |= {} if bad else values

    def _warn_of_collapse(self, now: int, values: dict[str, Any]) -> None:
        """Says it once when embeddings become all the same, and once more if they do so again."""
        std, rank = values.get("std", 1.0), values.get("rank", 2.0)
        collapsed = std < COLLAPSED or rank < 1.5
        if collapsed and not self.collapsed:
            log.warn(
                f"embeddings collapse: at step {now} their deviation is {std:.3g} (1 = all over the sphere), and they "
                f"use {rank:.3g} directions. Try a lower optim.lr, a longer optim.warmup, a larger batch or queue, or "
                "another temperature."
            )
        self.collapsed = collapsed
