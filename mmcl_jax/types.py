"""The five types that every part of the code base speaks: Stream, Batch, Encoded, TrainState, Ctx.

Shapes: B examples in the global batch, N tokens or frames, D features, K candidates per example.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Array = jax.Array
PyTree = Any


@struct.dataclass
class Stream:
    """One modality, or one view of it, for the whole batch.

    Several candidates or clips per example are `data` [B, K, ...], `mask` [B, K, N], `present` [B, K]. By the latter
    they are known: it must not be None then.

    Attributes:
        data: [B, ...] array, or a dict of such arrays (ids and labels, say).
        mask: [B, N] bool, which tokens / frames / samples are real; None = all.
        present: [B] bool, which examples have this modality; None = all of them (static, so free).
    """

    data: PyTree
    mask: Array | None = None
    present: Array | None = None

    @property
    def rows(self) -> int:
        """The number of examples B."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def several(self) -> bool:
        """Whether there are several candidates or clips per example."""
        return self.present is not None and self.present.ndim == 2

    def is_present(self) -> Array:
        """Which examples have any of it, [B] bool, also where None stands for "all"."""
        if self.present is None:
            return jnp.ones(self.rows, bool)
        return self.present.any(1) if self.several else self.present


# "image", "text", "image/v0", "text/mlm": the part before "/" picks the encoder. A name without an encoder
# (tags, labels, ids) is side data and reaches `loss` untouched. A missing key means that all are absent.
Batch = Mapping[str, Stream]


def fold_candidates(stream: Stream) -> tuple[Stream, Callable[[Array], Array]]:
    """Folds K candidates per example into the rows, and says how to unfold what an encoder makes of them.

    Args:
        stream: data [B, K, ...], mask [B, K, N], present [B, K].

    Returns:
        The stream with B*K rows, and a function from [B*K, ...] back to [B, K, ...].
    """
    b, k = jax.tree.leaves(stream.data)[0].shape[:2]
    folded = jax.tree.map(lambda x: x.reshape(b * k, *x.shape[2:]), stream)
    return folded, lambda x: x.reshape(b, k, *x.shape[1:])


def first_clips(batch: Batch) -> dict[str, Stream]:
    """The batch with the first of several candidates or clips of each example."""
    return {k: jax.tree.map(lambda x: x[:, 0], s) if s.several else s for k, s in batch.items()}


@struct.dataclass
class Encoded:
    """What every encoder returns; an encoder is called as `encoder(stream, train=...)`.

    Attributes:
        pooled: [B, D] before projection, not normalised.
        tokens: [B, N, D] without class or global tokens; image tokens before the final norm, text tokens after it.
        mask: [B, N] bool, which tokens are real; None = all.
    """

    pooled: Array
    tokens: Array | None = None
    mask: Array | None = None


@struct.dataclass
class TrainState:
    """The whole of what is trained, and the whole of what a checkpoint holds.

    Attributes:
        step: [] int32, number of steps taken.
        params: float32 parameters.
        opt_state: the optimizer's state, with the optional average of weights in it.
        extra: queues, momentum encoders, batch statistics; owned by the method, opaque to the trainer.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    extra: PyTree


@dataclasses.dataclass(frozen=True)
class Ctx:
    """What a method may know of its surroundings: the devices, train or not, the step, and randomness.

    Attributes:
        mesh: the devices, or None on a single one.
        batch_axes: the mesh axes over which rows are spread, ("data",) or ("data", "fsdp").
        train: whether dropout and batch statistics are those of training.
        step: [] int32, for schedules inside a method.
        rng: key of this step; take randomness from `key(name)`.
        chunks: parts in which each device's rows are encoded, one after another, to save memory.
        frozen: top-level names of parameters of which none is trained: their encoders and readouts run as in
            evaluation, without dropout, and leave their batch statistics alone.
        loss: `config.loss`, passed to every loss that has all of these arguments: the form it takes.
    """

    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = ()
    train: bool = False
    step: Array | int = 0
    rng: Array | None = None
    chunks: int = 1
    frozen: frozenset[str] = frozenset()
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def key(self, name: str) -> Array:
        """A key of this step for the purpose `name`; the same on every device."""
        if self.rng is None:
            raise ValueError(f"Ctx.key({name!r}): this context has no rng; randomness belongs to training.")
        return jax.random.fold_in(self.rng, zlib.crc32(name.encode()))

    def over_batch(self, loss_fn: Callable) -> Callable:
        """Lets a loss see the whole batch from the rows that each device holds.

        The result is called like `loss_fn` without its `axis`: positional arguments are per-example arrays
        (leading dimension B), keyword arguments are shared by all examples. It returns what one device
        holding the whole batch would return, and so do its gradients: take them outside, as usual.
        Rows that don't divide among the devices are filled up with rows marked absent, which needs
        `loss_fn` to have a `present` argument.
        """
        # What the config says is for losses that have several forms, and so all of these arguments.
        known = dict(self.loss) if set(self.loss) <= set(inspect.signature(loss_fn).parameters) else {}

        def loss(*rows, **shared):
            shared = known | shared
            if self.mesh is None or not self.batch_axes:
                return loss_fn(*rows, **shared)
            rows = _pad_rows(loss_fn, rows, math.prod(self.mesh.shape[a] for a in self.batch_axes))
            # Strings and Python numbers choose code, arrays are data; only data goes through shard_map.
            static = {k: v for k, v in shared.items() if isinstance(v, str | bool | int | float | None)}
            arrays = {k: v for k, v in shared.items() if k not in static}

            def per_device(rows, arrays):
                return loss_fn(*rows, **arrays, **static, axis=self.batch_axes)

            in_specs = (P(self.batch_axes), P())
            return jax.shard_map(per_device, mesh=self.mesh, in_specs=in_specs, out_specs=P())(rows, arrays)

        return loss


def _pad_rows(loss_fn: Callable, rows: tuple, shards: int) -> tuple:
    """Fills [B, ...] positional arguments up to a multiple of `shards` with rows that are not present."""
    b = jax.tree.leaves(rows)[0].shape[0]
    missing = -b % shards
    if not missing:
        return rows
    names = list(inspect.signature(loss_fn).parameters)
    if "present" not in names:
        raise ValueError(
            f"{b} rows don't divide among {shards} devices, and {getattr(loss_fn, '__name__', loss_fn)} has no "
            "`present` argument to mark filled rows absent. Give it one, or choose a batch that divides."
        )
    at = names.index("present")
    filled = list(rows) + [None] * (at + 1 - len(rows))
    filled[at] = jnp.ones(b, bool) if filled[at] is None else filled[at]
    return jax.tree.map(lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), tuple(filled))
