"""CLIP's loss for each pair of several modalities, as in AudioCLIP (Guzhov et al. 2021, arXiv 2106.13043).

    l_ij = exp(s) u^a_i . u^b_j
    L = sum over pairs {a, b} of 1/2 [ CE over rows(l, i) + CE over columns(l, i) ]

with one learned s, clamped after each update so that exp(s) stays within [1, 100]. For two modalities it is CLIP.

An example takes part in the pairs that it has. Deviation: the published model starts from towers that others have
trained; here they start as the config says. It is what GMC and ImageBind are compared with.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmcl_jax.encoders.readouts import make_readout
from mmcl_jax.losses import in_batch_accuracy, info_nce
from mmcl_jax.method import Method, weights_of_terms


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 512,
    readout: str | Mapping[str, Any] = "linear",
    scale_init: float = 1 / 0.07,
    scale_max: float = 100.0,
    weights: Mapping[str, float] | None = None,
) -> Pairwise:
    """Builds it; the keyword arguments are `config.method`.

    Args:
        encoders: two or more, of any names.
        embed_dim: size of the shared space.
        readout: as for CLIP.
        scale_init: exp(s) at the start, 1 / temperature.
        scale_max: upper bound of exp(s) after each update; the lower one is 1.
        weights: of pairs, "image_text" say (the names in alphabetical order), where they are not 1; see
            `weights_of_terms`.

    Raises:
        ValueError: for a single modality, or a scale that is out of order.
    """
    if len(encoders) < 2:
        raise ValueError(f"pairwise needs two encoders or more; there are {sorted(encoders)}.")
    if not 1 <= scale_init <= scale_max:
        raise ValueError(f"method.scale_init={scale_init} must lie between 1 and scale_max={scale_max}.")
    readouts = {name: make_readout(readout, embed_dim) for name in encoders}
    pairs = ["_".join(pair) for pair in itertools.combinations(sorted(encoders), 2)]
    return Pairwise(encoders=encoders, readouts=readouts, scale_init=scale_init, scale_max=scale_max,
                    weights=weights_of_terms(weights, pairs))  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairwise(Method):
    """See the module's docstring; built by `make`."""

    scale_init: float
    scale_max: float
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def streams(self):
        """All modalities."""
        return tuple(sorted(self.encoders))

    @property
    def spaces(self):
        """One space for all modalities."""
        return {"all": self.streams}

    def trains_on(self, names):
        """Whether there is a pair."""
        return len(set(self.streams) & set(names)) >= 2

    def init(self, rng, batch):
        """Encoders, readouts and the log of the scale."""
        params, extra = super().init(rng, batch)
        return params | {"log_scale": jnp.log(self.scale_init)}, extra

    def loss(self, params, extra, batch, ctx):
        """Symmetric InfoNCE of each pair, over the examples that have both."""
        z, extra = self.project(params, extra, {k: v for k, v in batch.items() if k in self.streams}, ctx)
        scale = jnp.exp(params["log_scale"])
        loss, metrics = jnp.zeros(()), {"scale": scale}
        for a, b in itertools.combinations(sorted(z), 2):
            pair = z[a], z[b], batch[a].is_present() & batch[b].is_present()
            metrics[f"{a}_{b}"] = ctx.over_batch(info_nce)(*pair, scale=scale)
            metrics[f"{a}_{b}_acc"] = ctx.over_batch(in_batch_accuracy)(*pair)
            loss += self.weights.get(f"{a}_{b}", 1.0) * metrics[f"{a}_{b}"]
        return loss, (extra, metrics)

    def after_update(self, params, extra, ctx):
        """Clamps the scale after the update."""
        return params | {"log_scale": jnp.clip(params["log_scale"], 0.0, jnp.log(self.scale_max))}, extra
