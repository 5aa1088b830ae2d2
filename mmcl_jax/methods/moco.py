"""MoCo v2: Momentum Contrast (He et al. 2019, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297).

    theta_k <- m theta_k + (1 - m) theta_q                         with theta_q as it was before this step's update
    q_i = unit(f(view_i; theta_q)),  k_i = unit(f(other view_i; theta_k)),  no gradient through k
    L = 1 / N sum_i -log [ exp(q_i . k_i / tau) / (exp(q_i . k_i / tau) + sum_j exp(q_i . queue_j / tau)) ]

The queue holds the keys of earlier batches; this batch's keys enter it after the loss, in global row order. One
direction only: the views don't change places. Keys are encoded in a shuffled order, where batch statistics are those
of groups of rows (`encoders.image.bn_groups`, the official code's devices); its own running statistics don't follow
theta_q.

Deviations: a queue need not be a multiple of the batch; absent examples are written as slots that are not valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax

from mmcl_jax.encoders.readouts import Mlp
from mmcl_jax.losses import queue_accuracy, queue_nce, spread
from mmcl_jax.method import Method
from mmcl_jax.momentum import follow, noise_queue, push, shuffled, twin


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 128,
    hidden: int = 0,
    temperature: float = 0.2,
    momentum: float = 0.999,
    queue: int = 65_536,
) -> MoCo:
    """Builds MoCo v2; the keyword arguments are `config.method`.

    Args:
        encoders: "image".
        embed_dim: of the head's result.
        hidden: of the head's first layer; 0 = as wide as the encoder's feature.
        temperature: tau; 0.07 in v1.
        momentum: m.
        queue: K, number of keys.

    Raises:
        ValueError: if a number is out of range.
    """
    if temperature <= 0 or not 0 <= momentum <= 1 or queue < 1:
        raise ValueError(
            f"method.temperature={temperature} and queue={queue} must be positive, momentum={momentum} within [0, 1]."
        )
    readouts = {"image": Mlp(embed_dim, hidden)}
    return MoCo(encoders=encoders, readouts=readouts, temperature=temperature, momentum=momentum, queue=queue)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCo(Method):
    """See the module's docstring; built by `make`."""

    temperature: float
    momentum: float
    queue: int

    streams = ("image/v0", "image/v1")
    spaces = {"image": ("image",)}

    def init(self, rng, batch):
        """Encoder and head, the same once more for keys, and a queue full of noise."""
        params, extra = super().init(rng, batch)
        noise = noise_queue(self.queue, {"image": self.readouts["image"].dim}, jax.random.fold_in(rng, 1000))
        return params, extra | {"key": twin(params, extra), "queue": noise}

    def restart(self, params, extra):
        """The twin starts from the same parameters."""
        return extra | {"key": twin(params, extra)}

    def loss(self, params, extra, batch, ctx):
        """Queries against their keys and the queue as it was before them."""
        key, queue = follow(extra["key"], params, self.momentum), extra["queue"]
        q, extra = self.project(params, extra, {"image/q": batch["image/v0"]}, ctx)
        other, back = batch["image/v1"], slice(None)
        if "image" in key["batch_stats"]:  # without statistics the order means nothing
            other, back = shuffled(other, ctx)
        k, key = self.project(key["params"], key, {"image/k": other}, ctx)
        q, k = q["image/q"], jax.lax.stop_gradient(k["image/k"][back])
        present, has_key = batch["image/v0"].is_present(), batch["image/v1"].is_present()
        against = dict(queue=queue.rows["image"], valid=queue.valid["image"])
        loss = ctx.over_batch(queue_nce)(q, k, present & has_key, scale=1 / self.temperature, **against)
        accuracy = ctx.over_batch(queue_accuracy)(q, k, present & has_key, **against)
        extra = extra | {"key": key, "queue": push(queue, {"image": k}, {"image": has_key})}
        return loss, (extra, {"acc": accuracy, **ctx.over_batch(spread)(q, present)})
