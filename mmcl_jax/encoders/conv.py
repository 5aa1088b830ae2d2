"""Small convolutional networks, for small images and spectrograms: those of GMC on MHD, or one's own."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn

from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.encoders.layers import activation_of
from mmcl_jax.types import Encoded, Stream

POOLS = ("flat", "mean")
Layer = tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]


def make(
    layers: Sequence[Layer] = ((64, (4, 4), (2, 2), (1, 1)), (128, (4, 4), (2, 2), (1, 1))),
    *,
    activation: str = "swish",
    norm: str = "none",
    pool: str = "flat",
    bn_groups: int = 1,
    dtype: str = "float32",
) -> Conv:
    """Builds it; an encoder's part of the config holds these arguments.

    Args:
        layers: (channels, kernel, stride, padding) each, the latter three of height and width; convolutions have no
            bias. The default is that of GMC for images of MHD (Vasco et al., arXiv 2202.03390).
        activation: after each layer, a name of `layers.ACTIVATIONS`.
        norm: "none", or "batch" for batch normalisation before each activation.
        pool: "flat" (all places one after another; images must have one size) or "mean" over places.
        bn_groups: groups of rows over which batch statistics are taken, see `BatchNorm`.
        dtype: of the computation.

    Raises:
        ValueError: for a choice that does not exist, or a layer that is not of this form.
    """
    activation_of(activation)
    for field, value, possible in (("norm", norm, ("none", "batch")), ("pool", pool, POOLS)):
        if value not in possible:
            raise ValueError(f"{field}={value!r}; possible: {', '.join(possible)}.")
    for layer in layers:
        if len(layer) != 4 or any(not isinstance(p, tuple | list) or len(p) != 2 for p in layer[1:]):
            raise ValueError(f"layers: {layer} is not (channels, (height, width), (stride), (padding)).")
    return Conv(tuple((c, *map(tuple, rest)) for c, *rest in layers), activation, norm, pool, bn_groups, dtype)


class Conv(nn.Module):
    """Images [B, H, W, C] float -> pooled [B, D], tokens [B, h * w, channels]. The arguments are those of `make`."""

    layers: tuple[Layer, ...]
    activation: str
    norm: str
    pool: str
    bn_groups: int
    dtype: str

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        x = stream.data
        if x.ndim != 4:
            raise ValueError(f"conv takes images [B, H, W, C]; got {x.shape}.")
        for i, (channels, kernel, stride, padding) in enumerate(self.layers):
            pads = tuple((p, p) for p in padding)
            x = nn.Conv(channels, kernel, stride, pads, use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
            if self.norm == "batch":
                how = dict(train=train, present=stream.present)
                x = BatchNorm(self.bn_groups, dtype=self.dtype, name=f"norm{i}")(x, **how)
            x = activation_of(self.activation)(x)
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return Encoded(pooled=tokens.mean(1) if self.pool == "mean" else x.reshape(len(x), -1), tokens=tokens)
