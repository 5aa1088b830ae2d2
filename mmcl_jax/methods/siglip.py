"""SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al. 2023, arXiv 2303.15343).

    l_ij = exp(t) u_i . v_j + b,  z_ij = 1 if i = j else -1
    L = - 1/N sum_ij log sigmoid(z_ij l_ij) over the N pairs of the global batch; divided by N, not N^2.

t and b are learned, start at ln 10 and -10, and are not clamped (big_vision; open_clip clamps t as CLIP does).
The image tower has no projection, the text tower a linear one with bias: both towers' ends must have the same size.

Deviations: a pair of which one side is missing is left out of the batch. The paper trains with Adafactor; the
config here uses AdamW. Its tokenizer is a sentencepiece model; ours is a byte-level BPE trained on the captions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.losses import in_batch_accuracy, sigmoid
from mmcl_jax.method import Method


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 768,
    scale_init: float = 10.0,
    bias_init: float = -10.0,
) -> SigLip:
    """Builds SigLIP; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text".
        embed_dim: size of the shared space; the image tower's width, as it has no projection.
        scale_init: exp(t) at the start.
        bias_init: b at the start; near minus the log of the number of negatives, or the first losses explode.

    Raises:
        ValueError: if the scale is not positive.
    """
    if scale_init <= 0:
        raise ValueError(f"method.scale_init={scale_init} must be positive.")
    readouts = {"image": Linear(0), "text": Linear(embed_dim, bias=True)}
    return SigLip(encoders=encoders, readouts=readouts, embed_dim=embed_dim, scale_init=scale_init, bias_init=bias_init)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLip(Method):
    """See the module's docstring; built by `make`."""

    embed_dim: int
    scale_init: float
    bias_init: float

    streams = ("image", "text")
    spaces = {"image-text": ("image", "text")}

    def init(self, rng, batch):
        """Encoders, readouts, the log of the scale, and the bias.

        Raises:
            ValueError: if the image tower does not end in embed_dim features.
        """
        params, extra = super().init(rng, batch)
        tower = functools.partial(self.encoders["image"].apply, {"params": params["image"]})
        width = jax.eval_shape(tower, batch["image"]).pooled.shape[-1]
        if width != self.embed_dim:
            raise ValueError(
                f"method.embed_dim={self.embed_dim}, but encoders.image is {width} wide, and SigLIP's image tower has "
                f"no projection. Set method.embed_dim={width}."
            )
        return params | {"log_scale": jnp.log(self.scale_init), "bias": jnp.float32(self.bias_init)}, extra

    def loss(self, params, extra, batch, ctx):
        """Pairwise sigmoid loss over the pairs of which both sides are there."""
        z, extra = self.project(params, extra, batch, ctx)
        present = batch["image"].is_present() & batch["text"].is_present()
        scale, bias = jnp.exp(params["log_scale"]), params["bias"]
        loss = ctx.over_batch(sigmoid)(z["image"], z["text"], present, scale=scale, bias=bias)
        accuracy = ctx.over_batch(in_batch_accuracy)(z["image"], z["text"], present)
        return loss, (extra, {"acc": accuracy, "scale": scale, "bias": bias})
