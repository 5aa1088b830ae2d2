"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021, arXiv 2103.00020).

    u_i = unit(f(image_i)),  v_i = unit(g(text_i)),  l_ij = exp(s) u_i . v_j
    L = 1/2 [ CE over rows(l, i) + CE over columns(l, i) ], each a mean over the N pairs of the global batch.

s is learned, starts at ln(1 / 0.07), and is clamped after each update so that exp(s) stays within [1, 100].

Deviations: a pair of which one side is missing is left out of the batch. The paper doesn't state a lower bound of
exp(s); 1 is open_clip's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.losses import in_batch_accuracy, info_nce
from mmcl_jax.method import Method


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 512,
    scale_init: float = 1 / 0.07,
    scale_max: float = 100.0,
) -> Clip:
    """Builds CLIP; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text".
        embed_dim: size of the shared space.
        scale_init: exp(s) at the start, 1 / temperature.
        scale_max: upper bound of exp(s).

    Raises:
        ValueError: if the scale is out of order.
    """
    if not 1 <= scale_init <= scale_max:
        raise ValueError(f"method.scale_init={scale_init} must lie between 1 and scale_max={scale_max}.")
    readouts = {name: Linear(embed_dim) for name in ("image", "text")}
    return Clip(encoders=encoders, readouts=readouts, scale_init=scale_init, scale_max=scale_max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Method):
    """See the module's docstring; built by `make`."""

    scale_init: float
    scale_max: float

    streams = ("image", "text")
    spaces = {"image-text": ("image", "text")}

    def init(self, rng, batch):
        """Encoders, readouts and the log of the scale."""
        params, extra = super().init(rng, batch)
        return params | {"log_scale": jnp.log(self.scale_init)}, extra

    def loss(self, params, extra, batch, ctx):
        """Symmetric InfoNCE over the pairs of which both sides are there."""
        z, extra = self.project(params, extra, batch, ctx)
        present = batch["image"].is_present() & batch["text"].is_present()
        scale = jnp.exp(params["log_scale"])
        loss = ctx.over_batch(info_nce)(z["image"], z["text"], present, scale=scale)
        accuracy = ctx.over_batch(in_batch_accuracy)(z["image"], z["text"], present)
        return loss, (extra, {"acc": accuracy, "scale": scale})

    def after_update(self, params, extra, ctx):
        """Clamps the scale after the update, not inside the loss, where a clamp would kill its gradient."""
        log_scale = jnp.clip(params["log_scale"], 0.0, jnp.log(self.scale_max))
        return params | {"log_scale": log_scale}, extra
