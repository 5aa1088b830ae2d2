"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020, arXiv 2002.05709).

    z = unit(g(f(view))) for two views of each of N images;  p(k) = the other view of k's image
    L = 1 / (2 N) sum_k -log [ exp(z_k . z_p(k) / tau) / sum_{m != k} exp(z_k . z_m / tau) ].

f is the encoder that is kept, g a head that is thrown away. Both views go through them in one call, so that batch
statistics are those of all 2N views of the global batch, as in the official code.

Deviations: an example of which a view is missing is left out. The loss is the paper's mean over 2N; Google's code
returns twice as much. The head has two layers, each with batch normalisation; their later code has three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.encoders.readouts import Mlp
from mmcl_jax.losses import nt_xent, spread
from mmcl_jax.method import Method
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Stream, fold_candidates


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 128,
    hidden: int = 0,
    layers: int = 2,
    bn_groups: int = 1,
    temperature: float = 0.1,
) -> SimCLR:
    """Builds SimCLR; the keyword arguments are `config.method`.

    Args:
        encoders: "image".
        embed_dim: of the head's result.
        hidden: of the head's layers before; 0 = as wide as the encoder's feature.
        layers: of the head.
        bn_groups: groups of rows over which the head's batch statistics are taken; 1 = the global batch.
        temperature: tau; 0.1 for ImageNet with batch 4096, 0.5 for CIFAR-10 with batch 512.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"method.temperature={temperature} must be positive.")
    readouts = {"image": Mlp(embed_dim, hidden, layers, "simclr", bn_groups)}
    return SimCLR(encoders=encoders, readouts=readouts, temperature=temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Method):
    """See the module's docstring; built by `make`."""

    temperature: float

    streams = ("image/v0", "image/v1")
    spaces = {"image": ("image",)}

    def loss(self, params, extra, batch, ctx):
        """NT-Xent of the two views."""
        one, two = batch["image/v0"], batch["image/v1"]
        if one.data.shape != two.data.shape:
            shapes = f"image/v0 {one.data.shape[1:]}, image/v1 {two.data.shape[1:]}"
            raise ConfigError(f"data.streams: SimCLR's two views must have one size, they have {shapes}.")
        pair = Stream(jnp.stack([one.data, two.data], 1), present=jnp.stack([one.is_present(), two.is_present()], 1))
        folded, unfold = fold_candidates(pair)  # views of an image side by side: no row has to change its device
        z, extra = self.project(params, extra, {"image": folded}, ctx)
        z, present = unfold(z["image"]), one.is_present() & two.is_present()
        loss = ctx.over_batch(nt_xent)(z[:, 0], z[:, 1], present, scale=1 / self.temperature)
        # The head's last norm spreads each feature by itself: a collapse shows in the rank.
        return loss, (extra, ctx.over_batch(spread)(z[:, 0], present))
