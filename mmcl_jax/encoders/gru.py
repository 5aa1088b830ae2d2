"""A gated recurrent unit over a sequence of vectors (Cho et al., arXiv 1406.1078), as GMC has it on MOSEI and MOSI."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.types import Encoded, Stream

POOLS = ("flat", "last")


def make(hidden: int = 30, *, pool: str = "flat", dtype: str = "float32") -> Gru:
    """Builds it; an encoder's part of the config holds these arguments.

    Args:
        hidden: H, features of the state.
        pool: "flat" (the states of all steps one after another; GMC's) or "last" (that of the last real step).
        dtype: of the computation.

    Raises:
        ValueError: for a pooling that does not exist.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}; possible: {', '.join(POOLS)}.")
    return Gru(hidden, pool, dtype)


class Gru(nn.Module):
    """Sequences [B, T, F] float -> pooled [B, T * H] or [B, H], tokens [B, T, H]; the mask's real steps come first."""

    hidden: int
    pool: str
    dtype: str

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        x = stream.data
        if x.ndim != 3:
            raise ValueError(f"gru takes sequences [B, T, F]; got {x.shape}.")
        states = nn.RNN(nn.GRUCell(self.hidden, dtype=self.dtype, name="cell"))(x)  # [B, T, H]
        length = jnp.full(len(x), x.shape[1])
        if stream.mask is not None:
            states, length = jnp.where(stream.mask[..., None], states, 0), stream.mask.sum(1)
        last = jnp.take_along_axis(states, jnp.maximum(length - 1, 0)[:, None, None], 1)[:, 0]
        pooled = last if self.pool == "last" else states.reshape(len(x), -1)
        return Encoded(pooled=pooled, tokens=states, mask=stream.mask)
