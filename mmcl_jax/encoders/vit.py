"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), as CLIP, SigLIP and ImageBind have it.

ImageBind (Girdhar et al., arXiv 2305.05665) reads sounds (log-mel spectrograms, patches that overlap), depth and heat
by the same trunk: size="B", patch=16, patch_bias=False, stem_norm=True, bias_kv=True, pool="class", norm_eps=1e-6, and
for sounds stride=10, drop_path=.1.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmcl_jax.encoders.layers import AttentionPool, Shape, Transformer, named_shape, norm
from mmcl_jax.types import Array, Encoded, Stream

POOLS = ("class", "mean", "attention")
POSITIONS = ("learned", "sincos")


def make(
    size: str = "B",
    *,
    patch: int = 16,
    pool: str = "class",
    positions: str = "learned",
    pre_norm: bool = False,
    patch_bias: bool = True,
    stride: int = 0,
    stem_norm: bool = False,
    **shape,
) -> ViT:
    """Builds a ViT of a named size; `config.encoders.image` holds these arguments.

    Args:
        size: a name of `layers.SIZES`.
        patch: side of the square patches, pixels.
        pool: "class" (token), "mean" over tokens, or "attention" (SigLIP's head).
        positions: "learned" or "sincos" (fixed).
        pre_norm: LayerNorm before the first block, as CLIP has it.
        patch_bias: bias of the patch embedding; CLIP has none.
        stride: from one patch to the next, pixels; 0 = `patch`, side by side. Patches that overlap need not fill the
            image: what is left over at its end is not seen.
        stem_norm: LayerNorm of the patch embeddings, before positions are added (epsilon 1e-5).
        **shape: fields of `layers.Shape` that differ from the named size.

    Raises:
        ValueError: for a choice that does not exist.
    """
    for field, value, possible in (("pool", pool, POOLS), ("positions", positions, POSITIONS)):
        if value not in possible:
            raise ValueError(f"{field}={value!r}; possible: {', '.join(possible)}.")
    return ViT(
        named_shape(size, **shape), pool, positions, pre_norm, stem_norm, patch=patch, patch_bias=patch_bias,
        stride=stride or patch,
    )  # fmt: skip


class Trunk(nn.Module):
    """What a transformer of patches does behind its stem: class token, positions, blocks, pooling.

    The attributes are those of `make`.
    """

    shape: Shape
    pool: str
    positions: str
    pre_norm: bool
    stem_norm: bool

    def encode(self, x: Array, grid: tuple[int, int], train: bool) -> Encoded:
        """Patch embeddings [B, h * w, D] -> pooled [B, D] after the final norm, tokens [B, h * w, D] before it."""
        s = self.shape
        if self.stem_norm:
            x = nn.LayerNorm(epsilon=1e-5, dtype=s.dtype, name="stem_norm")(x)
        extra = int(self.pool == "class")
        if extra:
            token = self.param("class_token", nn.initializers.normal(s.width**-0.5), (s.width,))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, s.width)), x], axis=1)
        if self.positions == "learned":
            # [extra + N, D], the class token's first
            table = self.param("positions", nn.initializers.normal(s.width**-0.5), (x.shape[1], s.width))
        else:
            table = jnp.concatenate([jnp.zeros((extra, s.width)), sincos_positions(grid, s.width)])
        x = x + table.astype(x.dtype)
        if self.pre_norm:
            x = norm(s, "pre_norm")(x)
        x = Transformer(s, train=train, name="transformer")(x)
        tokens = x[:, extra:]
        final = norm(s, "norm")
        if self.pool == "class":
            return Encoded(pooled=final(x[:, 0]), tokens=tokens)
        x = final(x)
        pooled = x.mean(1) if self.pool == "mean" else AttentionPool(s, name="pool")(x)
        return Encoded(pooled=pooled, tokens=tokens)


class ViT(Trunk):
    """Images [B, H, W, C] float -> `Encoded`. The arguments are those of `make`.

    H and W must be multiples of the patch side, unless patches overlap.
    """

    patch: int
    patch_bias: bool
    stride: int

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool = False) -> Encoded:
        s, images, p = self.shape, stream.data, self.patch
        whole = images.ndim == 4 and min(images.shape[1:3]) >= p
        if not whole or self.stride == p and (images.shape[1] % p or images.shape[2] % p):
            raise ValueError(
                f"ViT takes images [B, H, W, C] with sides that are multiples of patch={p}; got {images.shape}. Resize "
                "in the stream's ops, or change the encoder's patch."
            )
        conv = nn.Conv(
            s.width,
            (p, p),
            strides=self.stride,
            padding="VALID",
            use_bias=self.patch_bias,
            dtype=s.dtype,
            name="patches",
        )
        x = conv(images)  # [B, h, w, D]
        return self.encode(x.reshape(x.shape[0], -1, s.width), x.shape[1:3], train)


def sincos_positions(grid: tuple[int, int], width: int) -> Array:
    """Fixed two-dimensional positions (Chen et al., MoCo v3, arXiv 2104.02057).

    Args:
        grid: number of patches along height and width.
        width: D, a multiple of 4.

    Returns:
        [h * w, D] float32.

    Raises:
        ValueError: if width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"positions='sincos' needs a width that is a multiple of 4; got {width}.")
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
    omega = 1.0 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1))
    angles = [f(p * omega) for p in (x, y) for f in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(angles, axis=1), jnp.float32)


def resize_positions(table: Array, tokens: int) -> Array:
    """Fits learned positions of square images to another image size, by bicubic interpolation.

    Args:
        table: [extra + h * h, D], extra = 0 or 1 for the class token, which is kept.
        tokens: wanted number of rows, with the same extra.

    Returns:
        [tokens, D].

    Raises:
        ValueError: if either number is neither a square nor a square plus one.
    """
    extra = next((e for e in (0, 1) if _is_square(len(table) - e) and _is_square(tokens - e)), None)
    if extra is None:
        raise ValueError(f"Can't resize {len(table)} positions to {tokens}: both must be h*h, or both h*h + 1.")
    old, new = round((len(table) - extra) ** 0.5), round((tokens - extra) ** 0.5)
    patches = jnp.asarray(table[extra:]).reshape(old, old, -1)
    patches = jax.image.resize(patches, (new, new, patches.shape[-1]), "bicubic")
    return jnp.concatenate([jnp.asarray(table[:extra]), patches.reshape(new * new, -1)])


def _is_square(n: int) -> bool:
    return n > 0 and round(n**0.5) ** 2 == n
