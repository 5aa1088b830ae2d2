"""Text transformers: CLIP's (causal, pooled at the end-of-text token) and SigLIP's (all see all, last position)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.encoders.layers import Shape, Transformer, named_shape, norm
from mmcl_jax.types import Encoded, Stream

POOLS = ("eot", "last")


def make(
    size: str = "text-B", *, vocab: int = 49_408, pool: str = "eot", causal: bool | None = None, **shape
) -> TextTransformer:
    """Builds a text tower of a named size; `config.encoders.text` holds these arguments.

    Args:
        size: a name of `layers.SIZES`.
        vocab: rows of the token table; at least the tokenizer's size.
        pool: "eot" (the last real token, CLIP) or "last" (the last position, padding or not, SigLIP).
        causal: whether a token only sees those before it. Default: yes for "eot", no for "last".
        **shape: fields of `layers.Shape` that differ from the named size.

    Raises:
        ValueError: for a choice that does not exist.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}; possible: {', '.join(POOLS)}.")
    return TextTransformer(named_shape(size, **shape), vocab, pool, pool == "eot" if causal is None else causal)


class TextTransformer(nn.Module):
    """Token ids [B, N] int32 -> pooled [B, D] and tokens [B, N, D], both after the final norm.

    The stream's data is the ids, or a dict that has them as "ids": what the op `mlm` makes.

    Padding is not masked in attention: behind a causal mask no real token sees it, and SigLIP's towers attend to
    it on purpose. The arguments are those of `make`.
    """

    shape: Shape
    vocab: int
    pool: str
    causal: bool

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        s = self.shape
        ids = stream.data["ids"] if isinstance(stream.data, Mapping) else stream.data
        b, n = ids.shape
        clip = s.init == "clip"
        embed_init = nn.initializers.normal(0.02 if clip else s.width**-0.5)
        x = nn.Embed(self.vocab, s.width, embedding_init=embed_init, dtype=s.dtype, name="tokens")(ids)  # [B, N, D]
        position_init = nn.initializers.normal(0.01 if clip else s.width**-0.5)
        x = x + self.param("positions", position_init, (n, s.width)).astype(x.dtype)
        x = Transformer(s, self.causal, train, name="transformer")(x)
        x = norm(s, "norm")(x)
        if self.pool == "last" or stream.mask is None:
            at = jnp.full(b, n - 1)
        else:  # the end-of-text token is the last real one; row of padding only: its first position
            at = jnp.maximum(stream.mask.sum(1) - 1, 0)
        return Encoded(pooled=jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0], tokens=x, mask=stream.mask)
