"""Transformer of time series, ImageBind's for inertial sensors (Girdhar et al., arXiv 2305.05665).

Theirs: size="text-B" with depth=6, window=8, stem_norm=True, bias_kv=True, pool="class", norm_eps=1e-6, drop_path=.7,
head_dropout=.5, on 6 channels (acceleration and turning) of 2,000 samples.
"""

from __future__ import annotations

import flax.linen as nn

from mmcl_jax.encoders.layers import named_shape
from mmcl_jax.encoders.vit import POOLS, Trunk
from mmcl_jax.types import Encoded, Stream


def make(
    size: str = "text-B",
    *,
    window: int = 8,
    pool: str = "class",
    stem_norm: bool = True,
    head_dropout: float = 0.0,
    **shape,
) -> Series:
    """Builds it; an encoder's part of the config holds these arguments.

    Args:
        size: a name of `layers.SIZES`.
        window: samples of a token.
        pool: a pooling of `vit.POOLS`.
        stem_norm: LayerNorm of the windows' embeddings, before positions are added.
        head_dropout: share of the pooled feature that is dropped in training.
        **shape: fields of `layers.Shape` that differ from the named size.

    Raises:
        ValueError: for a pooling that does not exist.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}; possible: {', '.join(POOLS)}.")
    return Series(named_shape(size, **shape), pool, "learned", False, stem_norm, window, head_dropout)


class Series(Trunk):
    """Channels over time [B, C, T] float -> pooled [B, D], tokens [B, T / window, D]; T is a multiple of window."""

    window: int
    head_dropout: float

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        x, s = stream.data, self.shape
        if x.ndim != 3 or x.shape[2] % self.window:
            raise ValueError(f"A series is [B, C, T] with T a multiple of window={self.window}; got {x.shape}.")
        b, c, t = x.shape
        n = t // self.window
        x = x.reshape(b, c, n, self.window).swapaxes(1, 2).reshape(b, n, -1)  # a window's channels one after another
        x = nn.Dense(s.width, use_bias=False, dtype=s.dtype, kernel_init=nn.initializers.xavier_uniform(),
                     name="windows")(x)  # fmt: skip
        encoded = self.encode(x, (1, n), train)
        drop = nn.Dropout(self.head_dropout, deterministic=not train, name="head_dropout")
        return encoded.replace(pooled=drop(encoded.pooled))
