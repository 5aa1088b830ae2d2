"""ImageBind: One Embedding Space To Bind Them All (Girdhar et al. 2023, arXiv 2305.05665).

    q_i = unit(image_i),  k_i = unit(m_i)
    L_{I,m} = -1/N sum_i log softmax_j(q_i . k_j / tau_m)_i,   L = sum_m [ L_{I,m} + L_{m,I} ]

for each modality m that is bound to images, each with a temperature of its own; there is no term of two modalities
neither of which is the image, yet they meet in one space. Towers that another run has trained (`init_from`) are frozen
by path rules of the optimizer (`optim.rules`): no gradient, no decay, no dropout, no batch statistics.

Deviations: a pair of which one side is missing is left out of its term; no training code was released, so the loss is
checked against their postprocessors and an independent InfoNCE, the towers against theirs. Theirs give vectors scaled
by 1 / tau, ours are unit vectors. Temperatures are constants; the image and text towers with their learned scale are
frozen in theirs. Which of them the paper learned is not known to us.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.encoders.readouts import make_readout
from mmcl_jax.losses import in_batch_accuracy, info_nce
from mmcl_jax.method import Method, weights_of_terms
from mmcl_jax.named import did_you_mean

SCALES = {"audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 1024,
    hub: str = "image",
    scales: Mapping[str, float] = SCALES,
    weights: Mapping[str, float] | None = None,
    readout: str | Mapping[str, Any] = "linear",
) -> ImageBind:
    """Builds ImageBind; the keyword arguments are `config.method`.

    Args:
        encoders: the hub's and two others or more, of any names.
        embed_dim: size of the shared space.
        hub: the modality to which the others are bound.
        scales: 1 / tau of each modality that is bound; those of `encoders` that are not among them are frozen and take
            no part in the loss.
        weights: of modalities' terms, where they are not 1; see `weights_of_terms`.
        readout: as for CLIP.

    Raises:
        ValueError: if the hub has no encoder; if a scale or weight is of none that is bound, a scale is not positive,
            or a weight negative.
    """
    if hub not in encoders:
        raise ValueError(f"method.hub={hub!r} has no encoder{did_you_mean(hub, encoders)}")
    for name, value in scales.items():
        if name not in set(encoders) - {hub}:
            raise ValueError(f"method.scales has {name!r}{did_you_mean(name, sorted(set(encoders) - {hub}))}")
        if value <= 0:
            raise ValueError(f"method.scales.{name}={value} must be positive.")
    if not scales:
        raise ValueError(f"method.scales is empty: nothing is bound to {hub!r}. Name modalities and their 1 / tau.")
    readouts = {name: make_readout(readout, embed_dim) for name in encoders}
    return ImageBind(encoders=encoders, readouts=readouts, hub=hub, scales=dict(scales),
                     weights=weights_of_terms(weights, scales))  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageBind(Method):
    """See the module's docstring; built by `make`."""

    hub: str
    scales: Mapping[str, float]
    weights: Mapping[str, float]

    @property
    def streams(self):
        """The hub, and what is bound to it."""
        return (self.hub, *sorted(self.scales))

    @property
    def spaces(self):
        """One space for all modalities."""
        return {"all": tuple(sorted(self.encoders))}

    def trains_on(self, names):
        """Whether there is the hub, and something that is bound to it."""
        return self.hub in names and not set(self.scales).isdisjoint(names)

    def loss(self, params, extra, batch, ctx):
        """Symmetric InfoNCE of each modality with the hub, over the pairs of which both sides are there."""
        z, extra = self.project(params, extra, {k: v for k, v in batch.items() if k in self.streams}, ctx)
        loss, metrics = jnp.zeros(()), {}
        for name, scale in sorted(self.scales.items()):
            if {name, self.hub} <= z.keys():
                pair = z[self.hub], z[name], batch[self.hub].is_present() & batch[name].is_present()
                metrics[name] = 2 * ctx.over_batch(info_nce)(*pair, scale=scale)  # both directions, summed
                metrics[f"{name}_acc"] = ctx.over_batch(in_batch_accuracy)(*pair)
                loss += self.weights.get(name, 1.0) * metrics[name]
        return loss, (extra, metrics)
