"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021, arXiv 2103.00020).

    u_i = unit(f(image_i)),  v_i = unit(g(text_i)),  l_ij = exp(s) u_i . v_j
    L = 1/2 [ CE over rows(l, i) + CE over columns(l, i) ], each a mean over the N pairs of the global batch.

s is learned, starts at ln(1 / 0.07), and is clamped after each update so that exp(s) stays within [1, 100].
With `readout="fdt"` it is CLIP+FDT (`encoders/fdt.py`).

Deviations: a pair of which one side is missing is left out of the batch. The paper doesn't state a lower bound of
exp(s); 1 is open_clip's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax.encoders.fdt import use_of_codes
from mmcl_jax.encoders.readouts import make_readout
from mmcl_jax.losses import in_batch_accuracy, info_nce
from mmcl_jax.method import Method


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 512,
    readout: str | Mapping[str, Any] = "linear",
    scale_init: float = 1 / 0.07,
    scale_min: float = 1.0,
    scale_max: float = 100.0,
    scale_cap: float = 0.0,
) -> Clip:
    """Builds CLIP; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text".
        embed_dim: size of the shared space.
        readout: "linear", or another of `encoders.readouts.READOUTS` with its attributes: dict(name="fdt", codes=4096).
        scale_init: exp(s) at the start, 1 / temperature.
        scale_min: lower bound of exp(s) after each update.
        scale_max: upper bound.
        scale_cap: the loss sees no larger exp(s), but its gradient goes on to s (DeCLIP's code); 0 = none.

    Raises:
        ValueError: if the scale is out of order, or the readout does not exist.
    """
    if not 0 < scale_min <= scale_init <= scale_max:
        raise ValueError(
            f"method.scale_init={scale_init} must lie between scale_min={scale_min} and scale_max={scale_max}."
        )
    if scale_cap < 0:
        raise ValueError(f"method.scale_cap={scale_cap} must be positive, or 0 for none.")
    readouts = {name: make_readout(readout, embed_dim) for name in ("image", "text")}
    scale = dict(scale_init=scale_init, scale_min=scale_min, scale_max=scale_max, scale_cap=scale_cap)
    return Clip(encoders=encoders, readouts=readouts, **scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Method):
    """See the module's docstring; built by `make`."""

    scale_init: float
    scale_min: float
    scale_max: float
    scale_cap: float

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
        scale = self.scale(params)
        loss = ctx.over_batch(info_nce)(z["image"], z["text"], present, scale=scale)
        accuracy = ctx.over_batch(in_batch_accuracy)(z["image"], z["text"], present)
        return loss, (extra, {"acc": accuracy, "scale": scale, **use_of_codes(extra)})

    def scale(self, params):
        """exp(s), as the loss sees it."""
        scale = jnp.exp(params["log_scale"])
        capped = jnp.minimum(scale, self.scale_cap) if self.scale_cap else scale
        return scale + jax.lax.stop_gradient(capped - scale)

    def after_update(self, params, extra, ctx):
        """Clamps the scale after the update, not inside the loss, where a clamp would kill its gradient."""
        log_scale = jnp.clip(params["log_scale"], jnp.log(self.scale_min), jnp.log(self.scale_max))
        return params | {"log_scale": log_scale}, extra
