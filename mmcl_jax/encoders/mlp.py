"""Dense layers for vectors: trajectories, classes, tags, features that others have computed."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn

from mmcl_jax.encoders.layers import activation_of
from mmcl_jax.types import Encoded, Stream


def make(hidden: Sequence[int] = (512, 512), *, activation: str = "swish", dtype: str = "float32") -> Mlp:
    """Builds it; an encoder's part of the config holds these arguments.

    Args:
        hidden: features of each layer; () leaves the vector as it is.
        activation: after each layer, a name of `layers.ACTIVATIONS`.
        dtype: of the computation.

    Raises:
        ValueError: for an activation that does not exist.
    """
    activation_of(activation)
    return Mlp(tuple(hidden), activation, dtype)


class Mlp(nn.Module):
    """Vectors [B, F] of any numbers -> pooled [B, D]; dimensions behind the first become one."""

    hidden: tuple[int, ...]
    activation: str
    dtype: str

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        x = stream.data.reshape(len(stream.data), -1).astype(self.dtype)
        for i, width in enumerate(self.hidden):
            x = activation_of(self.activation)(nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
        return Encoded(pooled=x)
