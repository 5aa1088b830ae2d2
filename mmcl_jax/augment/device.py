"""The device half of all streams: what comes from the host -> the `Batch` that methods see."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmcl_jax.types import Array, Batch, PyTree, Stream, fold_candidates


class DeviceStreams:
    """Runs the ops behind `||`, inside jit.

    Args:
        chains: stream -> its ops: pairs of the op as parsed (`args`, `kwargs`, `p`, `draw`) and its function.
        source_of: stream -> the stream under whose name its rows were sent.
        seed: of the run.
    """

    def __init__(self, chains: Mapping[str, Sequence[tuple[Any, Callable]]], source_of: Mapping[str, str], seed: int):
        self.chains, self.source_of, self.seed = chains, source_of, seed

    def __call__(self, host: PyTree) -> Batch:
        """Makes the batch.

        Args:
            host: {"streams": {name: {"data": [B, ...], "mask"?, "present": [B]}}, "position": [B, 2] uint32};
                "data" may be a dict of arrays, which ops get and return whole. Of K clips it is [B, K, ...] and
                "present" [B, K]; ops see B * K rows, each with keys of its own.
        """
        batch = {}
        for name, chain in self.chains.items():
            sent = host["streams"].get(self.source_of[name])
            if sent is None:
                continue
            stream = Stream(data=sent["data"], mask=sent.get("mask"), present=sent["present"])
            if stream.several:
                folded, unfold = fold_candidates(stream)
                data = self._run(chain, folded.data, host["position"], clips=stream.present.shape[1])
                batch[name] = stream.replace(data=jax.tree.map(unfold, data))
            else:
                batch[name] = stream.replace(data=self._run(chain, stream.data, host["position"]))
        return batch

    def _run(self, chain: Sequence[tuple[Any, Callable]], data: PyTree, position: Array, clips: int = 0) -> PyTree:
        image = not isinstance(data, Mapping) and data.dtype == jnp.uint8 and (chain or data.ndim == 4)
        if image:  # with ops or without
            data = data.astype(jnp.float32) / 255
        for op, function in chain:
            keys = {}
            if "keys" in inspect.signature(function).parameters:
                keys = {"keys": self.keys(op.draw, position, clips)}
            new = function(data, *op.args, **dict(op.kwargs), **keys)
            if op.p is not None:
                apply = jax.vmap(lambda k, p=op.p: jax.random.bernoulli(k, p))(
                    self.keys(f"{op.draw};", position, clips)
                )
                new = jax.tree.map(
                    lambda n, old, a=apply: jnp.where(a.reshape(-1, *[1] * (n.ndim - 1)), n, old), new, data
                )
            data = new
        return data

    def keys(self, draw: str, position: Array, clips: int = 0) -> Array:
        """Keys [B] of a draw for examples at [B, 2] positions (high and low 32 bits); [B * clips], if there are any."""
        base = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(draw.encode()))
        keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(base, p[0]), p[1]))(position)
        return jax.vmap(lambda key: jax.random.split(key, clips))(keys).reshape(-1) if clips else keys
