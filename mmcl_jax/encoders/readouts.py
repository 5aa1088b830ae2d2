"""Readouts: how an `Encoded` becomes a point of the shared space, before it is normalised."""

from __future__ import annotations

import flax.linen as nn

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
    def __call__(self, encoded: Encoded) -> Array:
        if not self.dim:
            return encoded.pooled
        init = nn.initializers.normal(encoded.pooled.shape[-1] ** -0.5)
        dense = nn.Dense(self.dim, use_bias=self.bias, kernel_init=init, name="projection")
        return dense(encoded.pooled)
