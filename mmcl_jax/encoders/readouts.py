"""Readouts: how an `Encoded` becomes a point of a shared space, before it is normalised.

A readout is called as `readout(encoded)`; one with batch statistics as `readout(encoded, train=, present=, step=)`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.encoders.fdt import Fdt
from mmcl_jax.encoders.layers import activation_of, torch_uniform
from mmcl_jax.named import did_you_mean
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
        return _project(encoded.pooled, self.dim, self.bias) if self.dim else encoded.pooled


class Tokens(nn.Module):
    """Projects each token, [B, N, D] -> [B, N, dim], for methods that compare tokens.

    Attributes:
        dim: size of the shared space.
        bias: whether there is one.
        torch: whether weights and bias start as PyTorch's do, instead of as CLIP's.
    """

    dim: int
    bias: bool = False
    torch: bool = False

    per_token: ClassVar[bool] = True

    @nn.compact
    def __call__(self, encoded: Encoded) -> Array:
        if encoded.tokens is None:
            raise ValueError("readout 'tokens' needs an encoder that gives tokens, as vit and text do.")
        return _project(encoded.tokens, self.dim, self.bias, self.torch)


def _project(x: Array, dim: int, bias: bool, torch: bool = False) -> Array:
    start = functools.partial(torch_uniform, fan_in=x.shape[-1])
    inits = (start, start) if torch else (nn.initializers.normal(x.shape[-1] ** -0.5), nn.initializers.zeros)
    return nn.Dense(dim, use_bias=bias, kernel_init=inits[0], bias_init=inits[1], name="projection")(x)


class Mlp(nn.Module):
    """Dense layers on the pooled feature with ReLU between them, [B, D] -> [B, dim]; in float32.

    Attributes:
        dim: of the result.
        hidden: of the layers before; 0 = D.
        layers: how many, the last included.
        norm: "none", "batch" (batch normalisation after each layer but the last; SLIP), "all" (also after the last;
            DeCLIP) or "simclr" (the same, but there without a shift, and no layer has a bias; weights start from
            N(0, 0.01^2)).
        bn_groups: groups of rows over which batch statistics are taken, see `BatchNorm`.
    """

    dim: int
    hidden: int = 0
    layers: int = 2
    norm: str = "none"
    bn_groups: int = 1

    @nn.compact
    def __call__(
        self, encoded: Encoded, *, train: bool = False, present: Array | None = None, step: Array | int = 0
    ) -> Array:
        if self.norm not in ("none", "batch", "all", "simclr"):
            raise ValueError(f"norm={self.norm!r}; possible: none, batch, all, simclr.")
        x = encoded.pooled.astype("float32")
        hidden = self.hidden or x.shape[-1]
        for i in range(1, self.layers + 1):
            last = i == self.layers
            if self.norm == "simclr":
                dense = functools.partial(nn.Dense, use_bias=False, kernel_init=nn.initializers.normal(0.01))
            else:
                start = functools.partial(torch_uniform, fan_in=x.shape[-1])
                dense = functools.partial(nn.Dense, kernel_init=start, bias_init=start)
            x = dense(self.dim if last else hidden, name=f"dense{i}")(x)
            if self.norm in ("all", "simclr") or self.norm == "batch" and not last:
                shift = self.norm != "simclr" or not last
                x = BatchNorm(self.bn_groups, shift=shift, name=f"norm{i}")(x, train=train, present=present)
            x = x if last else nn.relu(x)
        return x


class SharedMlp(nn.Module):
    """A projection of each modality's own, then an MLP that all modalities share, [B, D] -> [B, dim] (GMC).

    Attributes:
        dim: of the result.
        latent: of what goes into the shared MLP.
        hidden: of the MLP's inner layers; () for a single dense layer.
        activation: after the inner layers, a name of `layers.ACTIVATIONS`.
        project: whether there is the modality's own projection; else its features must have the size `latent`.
    """

    dim: int
    latent: int
    hidden: tuple[int, ...] = ()
    activation: str = "swish"
    project: bool = True

    shared: ClassVar[tuple[str, ...]] = ("projection",)

    @nn.compact
    def __call__(self, encoded: Encoded) -> Array:
        x = encoded.pooled
        if self.project:
            start = functools.partial(torch_uniform, fan_in=x.shape[-1])
            x = nn.Dense(self.latent, kernel_init=start, bias_init=start, name="latent")(x)
        return Dense(self.dim, self.hidden, self.activation, name="projection")(x)


class Dense(nn.Module):
    """Dense layers with an activation between them, starting as PyTorch's do."""

    dim: int
    hidden: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate((*self.hidden, self.dim), 1):
            start = functools.partial(torch_uniform, fan_in=x.shape[-1])
            x = nn.Dense(width, kernel_init=start, bias_init=start, name=f"dense{i}")(x)
            x = activation_of(self.activation)(x) if i <= len(self.hidden) else x
        return x


class SimSiam(nn.Module):
    """SimSiam's projector and predictor as DeCLIP has them, [B, D] -> z [B, dim] and p [B, dim]; in float32.

    Chen & He, arXiv 2011.10566: three layers with batch normalisation after each; then a bottleneck of two.

    Attributes:
        dim: of z and p, and of the projector's inner layers.
        hidden: of the predictor's inner layer.
        bn_groups: groups of rows over which batch statistics are taken, see `BatchNorm`.
    """

    dim: int = 1024
    hidden: int = 512
    bn_groups: int = 1

    @nn.compact
    def __call__(
        self, encoded: Encoded, *, train: bool = False, present: Array | None = None, step: Array | int = 0
    ) -> tuple[Array, Array]:
        how = dict(train=train, present=present)
        z = Mlp(self.dim, self.dim, 3, "all", self.bn_groups, name="projector")(encoded, **how)
        p = Mlp(self.dim, self.hidden, 2, "batch", self.bn_groups, name="predictor")(Encoded(pooled=z), **how)
        return z, p


READOUTS = {"linear": Linear, "mlp": Mlp, "tokens": Tokens, "fdt": Fdt}


def make_readout(given: str | Mapping[str, Any], dim: int, per_token: bool = False) -> nn.Module:
    """The readout that `config.method.readout` names.

    Args:
        given: a name of `READOUTS`, or a dict of it, `name`, and other attributes of the readout.
        dim: size of the shared space.
        per_token: whether the method compares tokens, instead of one vector of each example.

    Raises:
        ValueError: if there is no such readout, it has no such attribute, or it gives what the method can't compare.
    """
    arguments = {"name": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("name", "linear")
    if name not in READOUTS:
        raise ValueError(f"method.readout={name!r} does not exist{did_you_mean(name, READOUTS)}")
    known = [f.name for f in dataclasses.fields(READOUTS[name]) if f.name not in ("dim", "parent", "name")]
    for key in arguments:
        if key not in known:
            raise ValueError(f"method.readout: {name!r} has no {key!r}{did_you_mean(key, known, 'method.readout.')}")
    readout = READOUTS[name](dim, **arguments)
    if getattr(readout, "per_token", False) != per_token:
        gives, takes, possible = ("one vector", "tokens", "tokens, fdt with pool='none'")
        if not per_token:
            gives, takes, possible = "a vector of each token", "one of each example", "linear, mlp, fdt"
        raise ValueError(f"method.readout={name!r} gives {gives}, this method compares {takes}: {possible}.")
    return readout
