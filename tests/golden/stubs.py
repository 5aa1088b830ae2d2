"""Encoders that give what a golden file holds, so that a whole method can be run on it."""

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.types import Encoded


class Given(nn.Module):
    """The stream's data as tokens [B, N, D] or as pooled feature [B, D], or a dict of both."""

    vocab: int = 0

    @nn.compact
    def __call__(self, stream, *, train=False):
        x = stream.data if isinstance(stream.data, dict) else {"pooled": stream.data}
        if x.get("pooled", x.get("tokens")).ndim == 3:
            x = {"tokens": x.get("tokens", x.get("pooled"))}
        tokens = x.get("tokens")
        return Encoded(pooled=jnp.asarray(x.get("pooled", tokens)), tokens=tokens, mask=stream.mask)
