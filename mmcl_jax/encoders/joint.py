"""GMC's joint encoder: trunks of its own for all modalities, and a projection of what they give together."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.encoders.layers import torch_uniform
from mmcl_jax.types import Array, Encoded, Stream


class Joint(nn.Module):
    """A stream whose data is a dict of streams -> pooled [B, dim]: a dense layer on all trunks' pooled features.

    It is a sum of a product for each modality, so what is absent adds nothing, and a modality may be missing from the
    batch altogether.

    Attributes:
        trunks: modality -> encoder.
        dim: of the result.
    """

    trunks: Mapping[str, nn.Module]
    dim: int

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        features: dict[str, Array] = {}
        for name, part in sorted(stream.data.items()):
            pooled = self.trunks[name](part, train=train).pooled
            features[name] = jnp.where(part.is_present()[:, None], pooled, 0)
        start = functools.partial(torch_uniform, fan_in=sum(x.shape[-1] for x in features.values()))
        dense = functools.partial(nn.Dense, self.dim, use_bias=False, kernel_init=start)
        bias = self.param("bias", start, (self.dim,), jnp.float32)
        return Encoded(pooled=sum(dense(name=f"dense_{k}")(x) for k, x in features.items()) + bias)
