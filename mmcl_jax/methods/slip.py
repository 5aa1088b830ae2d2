"""SLIP: Self-supervision meets Language-Image Pre-training (Mu et al. 2021, arXiv 2112.12750).

    L = L_CLIP(image, text) + ssl_scale * L_NT-Xent(view 0, view 1)

Three crops of an image go through the same tower: one for CLIP, lightly cropped, and two strongly augmented views for
SimCLR, whose head takes the feature before CLIP's projection. Each view has batch statistics of its own in the head.

Deviations: gradients of the CLIP term are those of the global batch; the official code gathers without gradient, and
so trains with half of them. What is missing is left out of the term that needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mmcl_jax.encoders.readouts import Mlp
from mmcl_jax.losses import nt_xent, spread
from mmcl_jax.methods import clip


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 512,
    readout: str | Mapping[str, Any] = "linear",
    scale_init: float = 1 / 0.07,
    scale_max: float = 100.0,
    ssl_dim: int = 256,
    ssl_hidden: int = 4096,
    ssl_layers: int = 3,
    ssl_temperature: float = 0.1,
    ssl_scale: float = 1.0,
    bn_groups: int = 1,
) -> Slip:
    """Builds SLIP; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text".
        embed_dim: size of the space that image and text share.
        readout: as for `clip.make`.
        scale_init: exp(s) of CLIP at the start, 1 / temperature.
        scale_max: upper bound of exp(s).
        ssl_dim: of the self-supervised head's result.
        ssl_hidden: of its layers before.
        ssl_layers: how many layers it has.
        ssl_temperature: of NT-Xent.
        ssl_scale: weight of the self-supervised term.
        bn_groups: groups of rows over which the head's batch statistics are taken; 1 = the global batch.

    Raises:
        ValueError: if a number is out of range.
    """
    if ssl_temperature <= 0 or ssl_scale < 0:
        raise ValueError(
            f"method.ssl_temperature={ssl_temperature} must be positive, ssl_scale={ssl_scale} not negative."
        )
    base = clip.make(encoders, embed_dim=embed_dim, readout=readout, scale_init=scale_init, scale_max=scale_max)
    heads = {"image_ssl": Mlp(ssl_dim, ssl_hidden, ssl_layers, "batch", bn_groups)}
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return Slip(**fields | {"heads": heads}, ssl_temperature=ssl_temperature, ssl_scale=ssl_scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slip(clip.Clip):
    """See the module's docstring; built by `make`."""

    ssl_temperature: float
    ssl_scale: float

    streams = ("image", "text", "image/v0", "image/v1")

    def loss(self, params, extra, batch, ctx):
        """CLIP's loss of the pairs, and NT-Xent of the two views."""
        pairs = {name: batch[name] for name in ("image", "text")}
        clip_loss, (extra, metrics) = super().loss(params, extra, pairs, ctx)
        if not self.ssl_scale:
            return clip_loss, (extra, metrics)
        z = []
        for name in ("image/v0", "image/v1"):
            encoded, extra = self.encode(params, extra, {name: batch[name]}, ctx)
            head, extra = self.read("image_ssl", params, extra, encoded[name], ctx, batch[name].is_present())
            z.append(head)
        present = batch["image/v0"].is_present() & batch["image/v1"].is_present()
        ssl_loss = ctx.over_batch(nt_xent)(*z, present, scale=1 / self.ssl_temperature)
        metrics = metrics | {"clip": clip_loss, "ssl": ssl_loss, **ctx.over_batch(spread)(z[0], present)}
        return clip_loss + self.ssl_scale * ssl_loss, (extra, metrics)
