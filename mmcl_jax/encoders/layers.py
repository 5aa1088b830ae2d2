"""The blocks that transformers here are made of. Every submodule has an explicit name: weight maps depend on them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax.named import did_you_mean
from mmcl_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # torch's and timm's
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # SigLIP's; flax's default
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI CLIP's
    "relu": jax.nn.relu,
    "swish": jax.nn.swish,
}
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# (width, depth, heads, mlp width) of the field's named sizes; Ti to B: Touvron et al. 2012.12877, L and H:
# Dosovitskiy et al. 2010.11929, So400m: Alabdulmohsin et al. 2305.13035, `text-B` and `text-L`: CLIP's text towers.
SIZES = {
    "mu": (32, 2, 2, 128),
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "So400m": (1152, 27, 16, 4304),
    "text-B": (512, 12, 8, 2048),
    "text-L": (768, 12, 12, 3072),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What two transformers can differ in.

    Attributes:
        width: D, features per token.
        depth: number of blocks.
        heads: attention heads; must divide width.
        mlp: hidden features of the MLP.
        activation: a name of `ACTIVATIONS`.
        norm_eps: epsilon of LayerNorm; 1e-5 for CLIP, 1e-6 for SigLIP.
        init: "clip" (Radford et al. 2021) or "xavier" (big_vision's, for SigLIP).
        dtype: of the computation, "float32" or "bfloat16"; parameters are always float32.
        remat: a name of `REMAT_POLICIES`: what to recompute in the backward pass to save memory.
        scan: compile one block and loop over it; saves compile time for deep towers. Use it with remat.
        attention: kernel of `jax.nn.dot_product_attention`, "xla" or "cudnn".
        dropout: share of what attention and MLP add to the tokens that is dropped in training (Vaswani et al.,
            arXiv 1706.03762); CLIP and SigLIP have none.
        drop_path: share of examples for which the last block is left out in training; the first is always there, the
            others are in between (stochastic depth, Huang et al., arXiv 1603.09382).
        bias_kv: whether each attention has one more key and value, learned, that all queries see (ImageBind's towers
            but those of images and texts).
    """

    width: int
    depth: int
    heads: int
    mlp: int
    activation: str = "gelu"
    norm_eps: float = 1e-5
    init: str = "clip"
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"
    dropout: float = 0.0
    drop_path: float = 0.0
    bias_kv: bool = False

    def __post_init__(self):
        """Refuses what would only fail, or silently be ignored, deep in the compilation."""
        choices = {
            "activation": ACTIVATIONS, "remat": REMAT_POLICIES, "init": ("clip", "xavier"),
            "dtype": ("float32", "bfloat16"), "attention": ("xla", "cudnn"),
        }  # fmt: skip
        for field, possible in choices.items():
            if getattr(self, field) not in possible:
                raise ValueError(f"{field}={getattr(self, field)!r}; possible: {', '.join(possible)}.")
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 0 and less than 1.")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}.")


def named_shape(size: str, **overrides) -> Shape:
    """The shape of a named size, "B" say, with any of its fields changed.

    Raises:
        ValueError: if the size or an override is unknown.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}; possible: {', '.join(SIZES)}.")
    fields = [f.name for f in dataclasses.fields(Shape)]
    for key in overrides:
        if key not in fields:
            raise ValueError(f"there is no argument {key!r}{did_you_mean(key, fields)}")
    width, depth, heads, mlp = SIZES[size]
    if "width" in overrides and "mlp" not in overrides:
        mlp = 4 * overrides["width"]
    return Shape(**dict(width=width, depth=depth, heads=heads, mlp=mlp) | overrides)


def attention(q: Array, k: Array, v: Array, *, causal: bool = False, kernel: str = "xla") -> Array:
    """Scaled dot-product attention; the one place that chooses a kernel.

    Args:
        q: [B, N, H, D / H].
        k: [B, M, H, D / H].
        v: [B, M, H, D / H].
        causal: token n only sees tokens up to n.
        kernel: "xla", or "cudnn" for the fused one on NVIDIA GPUs (bfloat16 only).

    Returns:
        [B, N, H, D / H].
    """
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=kernel)


def activation_of(name: str) -> Callable[[Array], Array]:
    """The activation of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}; possible: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def flat_dot_general(a: Array, b: Array, dimension_numbers, precision=None, preferred_element_type=None) -> Array:
    """`lax.dot_general` of a's last dimensions with b's first ones, as a product of two matrices.

    The gradient by b of a product with more dimensions is transposed and copied before it is multiplied, which
    costs XLA:CPU a third of its speed; matrices need none of that.
    """
    ((contracted, others), _) = dimension_numbers
    n = len(contracted)
    if tuple(contracted) != tuple(range(a.ndim - n, a.ndim)) or tuple(others) != tuple(range(n)):
        raise ValueError(f"{dimension_numbers} are not a's last and b's first dimensions.")
    k = math.prod(b.shape[:n])
    out = jax.lax.dot_general(
        a.reshape(-1, k),
        b.reshape(k, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return out.reshape(*a.shape[: a.ndim - n], *b.shape[n:])


def torch_uniform(key: Array, shape: tuple[int, ...], dtype, fan_in: int) -> Array:
    """PyTorch's default start of dense layers, weights and biases: uniform up to 1 / sqrt(fan_in) on both sides."""
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


def kernel_inits(shape: Shape) -> dict[str, Callable]:
    """Initialisers of a block's four kinds of kernels, and of the MLP's biases."""
    if shape.init == "xavier":
        xavier = nn.initializers.xavier_uniform()
        return dict(attn_in=xavier, attn_out=xavier, mlp_in=xavier, mlp_out=xavier,
                    mlp_bias=nn.initializers.normal(1e-6))  # fmt: skip
    to_residual = nn.initializers.normal(shape.width**-0.5 * (2 * shape.depth) ** -0.5)
    return dict(
        attn_in=nn.initializers.normal(shape.width**-0.5),
        attn_out=to_residual,
        mlp_in=nn.initializers.normal((2 * shape.width) ** -0.5),
        mlp_out=to_residual,
        mlp_bias=nn.initializers.zeros,
    )


class Attention(nn.Module):
    """Multi-head attention of `queries` [B, N, D] over `x` [B, M, D], the same as `queries` for self-attention."""

    shape: Shape
    causal: bool = False

    @nn.compact
    def __call__(self, queries: Array, x: Array) -> Array:
        s, init = self.shape, kernel_inits(self.shape)
        dense = functools.partial(nn.DenseGeneral, dtype=s.dtype, dot_general=flat_dot_general)
        heads = functools.partial(dense, (s.heads, s.width // s.heads), kernel_init=init["attn_in"])
        q, k, v = heads(name="query")(queries), heads(name="key")(x), heads(name="value")(x)  # [B, N, H, D / H]
        if s.bias_kv:
            start, size = nn.initializers.normal(s.width**-0.5), (s.heads, s.width // s.heads)
            k, v = (
                jnp.concatenate([y, jnp.broadcast_to(more.astype(y.dtype), (len(y), 1, *size))], 1)
                for y, more in ((k, self.param("bias_k", start, size)), (v, self.param("bias_v", start, size)))
            )
        out = attention(q, k, v, causal=self.causal, kernel=s.attention)
        return dense(s.width, axis=(-2, -1), kernel_init=init["attn_out"], name="out")(out)


class Mlp(nn.Module):
    """Two dense layers with an activation between them."""

    shape: Shape

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s, init = self.shape, kernel_inits(self.shape)
        dense = functools.partial(nn.Dense, dtype=s.dtype, bias_init=init["mlp_bias"], dot_general=flat_dot_general)
        x = ACTIVATIONS[s.activation](dense(s.mlp, kernel_init=init["mlp_in"], name="in")(x))
        return dense(s.width, kernel_init=init["mlp_out"], name="out")(x)


def norm(shape: Shape, name: str) -> nn.LayerNorm:
    """LayerNorm as this tower has it; its statistics are float32 in any dtype."""
    return nn.LayerNorm(epsilon=shape.norm_eps, dtype=shape.dtype, name=name)


class Block(nn.Module):
    """Pre-norm transformer block."""

    shape: Shape
    causal: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, drop_path: Array | float = 0.0) -> tuple[Array, None]:
        drop = functools.partial(nn.Dropout, self.shape.dropout, deterministic=not self.train)
        y = norm(self.shape, "norm1")(x)
        y = drop(name="dropout1")(Attention(self.shape, self.causal, name="attention")(y, y))
        x = x + self._drop_path(y, drop_path)
        y = drop(name="dropout2")(Mlp(self.shape, name="mlp")(norm(self.shape, "norm2")(x)))
        return x + self._drop_path(y, drop_path), None  # the pair is what nn.scan wants

    def _drop_path(self, y: Array, share: Array | float) -> Array:
        """Leaves out y for a share of the examples, and makes up for it in the others."""
        if not (self.train and self.shape.drop_path):
            return y
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - share, (len(y), 1, 1))
        return jnp.where(keep, y / (1 - share), 0).astype(y.dtype)


class Transformer(nn.Module):
    """`depth` blocks on [B, N, D], without a final norm."""

    shape: Shape
    causal: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s, block = self.shape, Block
        drop_path = jnp.linspace(0, s.drop_path, s.depth)
        if s.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[s.remat], prevent_cse=not s.scan)
        if s.scan:
            stacked = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
                              length=s.depth)  # fmt: skip
            return stacked(s, self.causal, self.train, name="blocks")(x, drop_path)[0]
        for i in range(s.depth):
            x, _ = block(s, self.causal, self.train, name=f"block{i}")(x, drop_path[i])
        return x


class AttentionPool(nn.Module):
    """SigLIP's MAP head: one learned query attends over the tokens, then a residual MLP. [B, N, D] -> [B, D]."""

    shape: Shape

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s = self.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, s.width))
        x = Attention(s, name="attention")(jnp.tile(probe, (x.shape[0], 1, 1)).astype(x.dtype), x)
        return (x + Mlp(s, name="mlp")(norm(s, "norm")(x)))[:, 0]
