"""Readouts: how an `Encoded` becomes a point of a shared space, before it is normalised.

A readout is called as `readout(encoded, train=..., present=...)`, the last two for those that take batch statistics.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.types import Array, Encoded


class Linear(nn.Module):
    """Projects the pooled feature, [B, D] -> [B, dim].

    Attributes:
        dim: size of the shared space; 0 keeps the feature as it is (SigLIP's image tower).
        bias: whether there is one; SigLIP's text head has, CLIP's projections have none.
    """

    dim: int
    bias: bool = False

    @nn.compact
    def __call__(self, encoded: Encoded, *, train: bool = False, present: Array | None = None) -> Array:
        if not self.dim:
            return encoded.pooled
        init = nn.initializers.normal(encoded.pooled.shape[-1] ** -0.5)
        dense = nn.Dense(self.dim, use_bias=self.bias, kernel_init=init, name="projection")
        return dense(encoded.pooled)


def torch_uniform(key: Array, shape: tuple[int, ...], dtype, fan_in: int) -> Array:
    """PyTorch's default start of dense layers, weights and biases: uniform up to 1 / sqrt(fan_in) on both sides."""
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


class Mlp(nn.Module):
    """Dense layers on the pooled feature with ReLU between them, [B, D] -> [B, dim]; in float32.

    Attributes:
        dim: of the result.
        hidden: of the layers before; 0 = D.
        layers: how many, the last included.
        norm: "none", "batch" (batch normalisation after each layer but the last; SLIP) or "all" (also after the last,
            there without a shift, and no layer has a bias; weights start from N(0, 0.01^2); SimCLR).
        bn_groups: groups of rows over which batch statistics are taken, see `BatchNorm`.
    """

    dim: int
    hidden: int = 0
    layers: int = 2
    norm: str = "none"
    bn_groups: int = 1

    @nn.compact
    def __call__(self, encoded: Encoded, *, train: bool = False, present: Array | None = None) -> Array:
        if self.norm not in ("none", "batch", "all"):
            raise ValueError(f"norm={self.norm!r}; possible: none, batch, all.")
        x = encoded.pooled.astype("float32")
        hidden = self.hidden or x.shape[-1]
        for i in range(1, self.layers + 1):
            last = i == self.layers
            if self.norm == "all":
                dense = functools.partial(nn.Dense, use_bias=False, kernel_init=nn.initializers.normal(0.01))
            else:
                start = functools.partial(torch_uniform, fan_in=x.shape[-1])
                dense = functools.partial(nn.Dense, kernel_init=start, bias_init=start)
            x = dense(self.dim if last else hidden, name=f"dense{i}")(x)
            if self.norm == "all" or self.norm == "batch" and not last:
                x = BatchNorm(self.bn_groups, shift=not last, name=f"norm{i}")(x, train=train, present=present)
            x = x if last else nn.relu(x)
        return x
