"""Residual networks (He et al., arXiv 1512.03385), v1.5: the stride of a bottleneck is in its 3 x 3 convolution."""

from __future__ import annotations

import functools

import flax.linen as nn

from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.types import Array, Encoded, Stream

# Blocks of each stage, and whether they are bottlenecks; "mu" is for tests.
SIZES = {
    "mu": ((1, 1), False),
    "18": ((2, 2, 2, 2), False),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
    "101": ((3, 4, 23, 3), True),
}
STEMS = ("imagenet", "small")


def make(
    size: str = "50",
    *,
    stem: str = "imagenet",
    width: int = 64,
    bn_groups: int = 1,
    zero_init: bool = False,
    dtype: str = "float32",
) -> ResNet:
    """Builds a ResNet; `config.encoders.image` holds these arguments.

    Args:
        size: a name of `SIZES`.
        stem: "imagenet" (7 x 7 with stride 2, then max pooling with stride 2) or "small" (3 x 3 with stride 1, for
            images of some 32 pixels, as SimCLR has it for CIFAR-10).
        width: channels of the first stage; each next one has twice as many.
        bn_groups: groups of rows over which batch statistics are taken, see `BatchNorm`; in a config 0 stands for
            the number of devices when the run began.
        zero_init: start each block as the identity, its last scale at 0 (Goyal et al., arXiv 1706.02677).
        dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.

    Raises:
        ValueError: for a choice that does not exist.
    """
    for field, value, possible in (("size", str(size), SIZES), ("stem", stem, STEMS)):
        if value not in possible:
            raise ValueError(f"{field}={value!r}; possible: {', '.join(possible)}.")
    if width < 1:
        raise ValueError(f"width={width} must be positive.")
    return ResNet(*SIZES[str(size)], stem, width, bn_groups, zero_init, dtype)


class ResNet(nn.Module):
    """Images [B, H, W, 3] float -> pooled [B, D], the mean of tokens [B, h * w, D]; D is 512 or 2048 at width 64.

    The arguments are those of `make`. Paddings are those of PyTorch, which differ from "SAME" where a stride is 2.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    stem: str
    width: int
    bn_groups: int
    zero_init: bool
    dtype: str

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        x = stream.data.astype(self.dtype)
        if x.ndim != 4:
            raise ValueError(f"ResNet takes images [B, H, W, C]; got {x.shape}.")
        norm = functools.partial(normed, self.bn_groups, self.dtype, train, stream.present)
        if self.stem == "imagenet":
            x = nn.relu(norm("stem_norm", conv(self.width, 7, 2, self.dtype, "stem")(x)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = nn.relu(norm("stem_norm", conv(self.width, 3, 1, self.dtype, "stem")(x)))
        for i, blocks in enumerate(self.blocks):
            for j in range(blocks):
                stride = 2 if i and not j else 1
                block = Block(self.width * 2**i, stride, self.bottleneck, self.bn_groups, self.zero_init, self.dtype,
                              name=f"stage{i}_block{j}")  # fmt: skip
                x = block(x, train=train, present=stream.present)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, h * w, D]
        return Encoded(pooled=tokens.mean(1), tokens=tokens)


class Block(nn.Module):
    """Residual block: two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1 with four times the features at its end."""

    features: int
    stride: int
    bottleneck: bool
    bn_groups: int
    zero_init: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool, present: Array | None) -> Array:
        norm = functools.partial(normed, self.bn_groups, self.dtype, train, present)
        f, s = self.features, self.stride
        # (features, side, stride) of each convolution
        convs = ((f, 1, 1), (f, 3, s), (4 * f, 1, 1)) if self.bottleneck else ((f, 3, s), (f, 3, 1))
        y = x
        for i, (features, side, stride) in enumerate(convs, 1):
            y = conv(features, side, stride, self.dtype, f"conv{i}")(y)
            last = i == len(convs)
            y = norm(f"norm{i}", y, zero=last and self.zero_init)
            y = y if last else nn.relu(y)
        if x.shape != y.shape:
            x = norm("project_norm", conv(convs[-1][0], 1, s, self.dtype, "project")(x))
        return nn.relu(x + y)


def normed(
    groups: int, dtype: str, train: bool, present: Array | None, name: str, x: Array, zero: bool = False
) -> Array:
    """x, normalised by a BatchNorm called `name`."""
    return BatchNorm(groups, zero=zero, dtype=dtype, name=name)(x, train=train, present=present)


def conv(features: int, side: int, stride: int, dtype: str, name: str) -> nn.Conv:
    """A convolution without bias, as all of them are: a norm with a bias follows."""
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al., arXiv 1502.01852; torchvision's
    pad = (side - 1) // 2
    return nn.Conv(features, (side, side), (stride, stride), ((pad, pad), (pad, pad)), use_bias=False,
                   kernel_init=init, dtype=dtype, name=name)  # fmt: skip
