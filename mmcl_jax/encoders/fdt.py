"""FDT: Revisiting Multimodal Representation in Contrastive Learning (Chen et al. 2023, arXiv 2303.14865).

Finite Discrete Tokens are a readout: an image and a text become weights over one codebook C that all modalities share.

    q_t = Linear(LN(GELU(Linear(LN(x_t)))))                 of each token t; a head for each modality
    a_k = pool over t of  q_t . C_k / sqrt(dim) / T         max, mean or sum
    w   = sparsemax(a),  f = sum_k w_k C_k                  and unit(f) is compared, by whatever loss

The codes are keys and values alike, and learnt by gradient alone. A method takes it by `readout="fdt"`.

Deviations: with pool="none" each token has weights, and so a feature, of its own, for methods that compare tokens
(FILIP); the paper has no such thing. pad_fill="zero" is the official code, in which padded tokens have the logit 0 and
so the largest one is never negative; "neg_inf" leaves them out. T falls by `temperature_decay` every
`temperature_every` steps down to 0.01, as in the official code, whose own recipe keeps it constant.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax.encoders.layers import torch_uniform
from mmcl_jax.encoders.sparsemax import sparsemax
from mmcl_jax.types import Array, Encoded

CHOICES = {
    "attention": ("sparsemax", "softmax"),
    "pool": ("max", "mean", "sum", "none"),
    "pad_fill": ("zero", "neg_inf"),
}
T_MIN = 0.01
MOMENTUM = 0.99  # of the running mean of codes' weights
AT_ONCE = 1024  # codes whose logits are in memory at a time
DEAD = 100  # batches for which a dead code has not been active
NEVER = -1e30  # stands for minus infinity, which would make NaN of a row of padding


class Fdt(nn.Module):
    """Encoded tokens [B, N, D] -> [B, dim], not normalised; [B, N, dim] with pool="none". In float32.

    Logits [B, N, K] would be the largest array of a model: codes are visited 1,024 at a time, and once more for the
    gradient (not with pool="none"). `batch_stats` hold, of training, what `use_of_codes` reports.

    Attributes:
        dim: of a code.
        codes: K, size of the codebook.
        attention: "sparsemax" or "softmax" over codes.
        pool: over tokens: "max", "mean", "sum", or "none".
        pad_fill: what padded tokens count as: "zero" or "neg_inf", not at all.
        temperature: T at the start.
        temperature_decay: factor of T every `temperature_every` steps.
        temperature_every: steps.
    """

    dim: int
    codes: int = 16_384
    attention: str = "sparsemax"
    pool: str = "max"
    pad_fill: str = "zero"
    temperature: float = 1000.0
    temperature_decay: float = 1.0
    temperature_every: int = 1000

    shared: ClassVar[tuple[str, ...]] = ("codebook",)  # parameters that all modalities' readouts have in common

    def __post_init__(self):
        """Checks the attributes."""
        for field, possible in CHOICES.items():
            if getattr(self, field) not in possible:
                raise ValueError(f"method.readout.{field}={getattr(self, field)!r}; possible: {', '.join(possible)}.")
        for field in ("codes", "temperature", "temperature_decay", "temperature_every"):
            if getattr(self, field) <= 0:
                raise ValueError(f"method.readout.{field}={getattr(self, field)} must be positive.")
        super().__post_init__()

    @property
    def per_token(self) -> bool:
        """Whether each token has a feature of its own."""
        return self.pool == "none"

    @nn.compact
    def __call__(
        self, encoded: Encoded, *, train: bool = False, present: Array | None = None, step: Array | int = 0
    ) -> Array:
        if encoded.tokens is None:
            raise ValueError("readout 'fdt' needs an encoder that gives tokens, as vit and text do.")
        tokens = encoded.tokens.astype(jnp.float32)
        if present is not None:  # whatever stands in an absent row, what is kept of the codes' use must not see it
            tokens = jnp.where(present[:, None, None], tokens, 0)
        codebook = self.param("codebook", nn.initializers.normal(1.0), (self.codes, self.dim))
        logits = self._logits(self._queries(tokens), codebook, encoded.mask, step)  # [B, K], or [B, N, K]
        weights = sparsemax(logits) if self.attention == "sparsemax" else jax.nn.softmax(logits)
        self.sow("intermediates", "weights", weights)  # kept only if asked for, as by `analysis.codebook`
        self._watch(weights, encoded.mask, train, present)
        return weights @ codebook

    def _queries(self, x: Array) -> Array:
        for i in (1, 2):
            x = nn.LayerNorm(epsilon=1e-5, name=f"norm{i}")(x)
            start = functools.partial(torch_uniform, fan_in=x.shape[-1])
            x = nn.Dense(self.dim, kernel_init=start, bias_init=start, name=f"dense{i}")(x)
            x = nn.gelu(x, approximate=False) if i == 1 else x
        return x

    def _logits(self, queries: Array, codebook: Array, mask: Array | None, step: Array | int) -> Array:
        def of(codes):  # [k, dim]
            return jnp.einsum("bnd,kd->bnk", queries, codes) / self.dim**0.5  # [B, N, k]

        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", "token_logits", of(codebook))
        if self.pool == "none" or self.codes <= AT_ONCE:
            return self._pool(of(codebook), mask, step)
        parts = jnp.pad(codebook, ((0, -self.codes % AT_ONCE), (0, 0))).reshape(-1, AT_ONCE, self.dim)
        # Codes, unlike rows, are all on each device, so that none has to move.
        pooled = jax.lax.map(jax.checkpoint(lambda codes: self._pool(of(codes), mask, step)), parts)  # [K/k, B, k]
        return pooled.swapaxes(0, 1).reshape(len(queries), -1)[:, : self.codes]

    def _pool(self, logits: Array, mask: Array | None, step: Array | int) -> Array:
        decayed = self.temperature * self.temperature_decay ** (step // self.temperature_every)
        temperature = jnp.maximum(decayed, T_MIN)
        if self.pool == "none":  # padded tokens' features are left out by those who compare them
            return logits / temperature
        left_out = mask is not None and self.pad_fill == "neg_inf"
        if mask is not None:
            fill = NEVER if left_out and self.pool == "max" else 0
            logits = jnp.where(mask[..., None], logits, fill)
        logits = logits / temperature
        if self.pool == "max":
            return logits.max(1)
        total = logits.sum(1)
        if self.pool == "sum":
            return total
        return total / (jnp.maximum(mask.sum(1), 1)[:, None] if left_out else logits.shape[1])

    def _watch(self, weights: Array, mask: Array | None, train: bool, present: Array | None) -> None:
        usage = self.variable("batch_stats", "usage", jnp.zeros, self.codes)  # running mean of a code's weight
        idle = self.variable("batch_stats", "idle", jnp.zeros, self.codes)  # calls since it was last active
        active = self.variable("batch_stats", "active", jnp.zeros, ())  # an example's active codes, of the last call
        if not train or self.is_initializing():
            return
        weights = jax.lax.stop_gradient(weights)
        if self.pool == "none":  # an example's weights are the mean of its tokens'
            real = jnp.ones(weights.shape[:2], bool) if mask is None else mask
            weights = jnp.where(real[..., None], weights, 0).sum(1) / jnp.maximum(real.sum(1), 1)[:, None]
        # All of softmax's weights are positive: there a code is active that has more than an even share.
        used = weights > (0 if self.attention == "sparsemax" else 1 / self.codes)
        there = jnp.ones(len(weights)) if present is None else present.astype(jnp.float32)
        some, count = there.sum() > 0, jnp.maximum(there.sum(), 1)

        usage.value = jnp.where(some, MOMENTUM * usage.value + (1 - MOMENTUM) * (there @ weights) / count, usage.value)
        active.value = jnp.where(some, there @ used.sum(1) / count, active.value)
        idle.value = jnp.where((used & (there > 0)[:, None]).any(0), 0, idle.value + some)


def use_of_codes(extra: Mapping[str, Any]) -> dict[str, Array]:
    """How a method's codes are used, from its `extra`; nothing where no readout has codes.

    Returns:
        Of each modality: "<modality>_codes", how many codes are active for an example of the last batch;
        "<modality>_entropy", of the codes' mean weights, in nats, log K if all are used alike; "<modality>_dead",
        the share of codes that were active for no example of the last hundred batches (a batch with two views of a
        modality counts as two).
    """
    found = {}
    for name, part in extra.get("batch_stats", {}).items():
        if "usage" in part:
            modality = name.removesuffix("_readout")
            share = part["usage"] / jnp.maximum(part["usage"].sum(), 1e-30)
            found[f"{modality}_codes"] = part["active"]
            found[f"{modality}_entropy"] = -(share * jnp.log(jnp.maximum(share, 1e-30))).sum()
            found[f"{modality}_dead"] = (part["idle"] >= DEAD).mean()
    return found
