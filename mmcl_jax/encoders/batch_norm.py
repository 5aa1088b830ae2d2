"""Batch normalisation whose statistics are those of groups of rows, the same on any number of devices."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from mmcl_jax.types import Array


class BatchNorm(nn.Module):
    """Normalises each feature by its mean and variance over a group of rows: [B, ..., C] -> the same.

    Ioffe & Szegedy, arXiv 1502.03167. The batch falls into `groups` equal groups of successive rows. One group is the
    whole batch of all devices ("SyncBN"); with G groups the result is that of G devices of which each takes statistics
    over its own rows, as the official MoCo has it, on whatever number of devices it is computed. All of it is plain
    arithmetic under jit: where a group's rows lie on several devices, XLA adds up their sums.

    Rows that are absent don't count. Running statistics are means over groups, with the unbiased variance as in
    PyTorch; the official per-device form keeps those of the first device.

    Attributes:
        groups: G; must divide the batch, and leave two rows or more in a group.
        momentum: share of the running statistics that a step keeps.
        eps: added to the variance.
        shift: whether a learned bias is added after the learned scale.
        zero: whether the scale starts at 0 instead of 1.
        dtype: of the result; statistics are float32.
    """

    groups: int = 1
    momentum: float = 0.9
    eps: float = 1e-5
    shift: bool = True
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, *, train: bool, present: Array | None = None) -> Array:
        c = x.shape[-1]
        if present is not None:  # whatever stands in an absent row, the gradient of a group must not see it
            x = jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        running = [self.variable("batch_stats", "mean", jnp.zeros, c), self.variable("batch_stats", "var", jnp.ones, c)]
        start = nn.initializers.zeros if self.zero else nn.initializers.ones
        scale = self.param("scale", start, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,)) if self.shift else 0.0
        if train and not self.is_initializing():
            mean, var, (share, *new) = group_statistics(x, present, self.groups)
            for old, value in zip(running, new, strict=True):
                old.value = jnp.where(share, self.momentum * old.value + (1 - self.momentum) * value, old.value)
        else:
            mean, var = (v.value[None] for v in running)
        factor = scale * lax.rsqrt(var + self.eps)  # [G, C]
        grouped = x.reshape(len(factor), -1, c)
        out = grouped * factor[:, None] + (bias - mean * factor)[:, None]
        return out.reshape(x.shape).astype(self.dtype)


def group_statistics(x: Array, present: Array | None, groups: int) -> tuple[Array, Array, tuple[Array, Array, Array]]:
    """Mean and biased variance of each group [G, C], and what goes into the running ones.

    That is (whether there is anything, mean, unbiased variance), the last two means over groups.

    Args:
        x: [B, ..., C], 0 in rows that don't count.
        present: [B] bool, rows that count; None = all.
        groups: G.

    Raises:
        ValueError: if there are not two rows for each group, or they don't divide.
    """
    b, c = x.shape[0], x.shape[-1]
    if groups < 1 or b % groups or b // groups < 2:
        raise ValueError(
            f"bn_groups={groups} of {b} rows: batch statistics need equal groups of two rows or more. Set bn_groups to "
            "a divisor, or to 1 for statistics of the whole batch."
        )
    x = x.reshape(groups, b // groups, -1, c).astype(jnp.float32)  # [G, n, positions, C]
    there = jnp.ones((groups, b // groups, 1, 1), bool) if present is None else present.reshape(groups, -1, 1, 1)
    rows = there.sum((1, 2, 3)) * x.shape[2]  # [G] values per feature
    count = jnp.maximum(rows, 1)[:, None]
    mean = x.sum((1, 2)) / count  # [G, C]; absent rows are 0
    var = jnp.where(there, jnp.square(x - mean[:, None, None]), 0).sum((1, 2)) / count
    weight = (rows > 1) / jnp.maximum((rows > 1).sum(), 1)  # a group without rows has nothing to say
    unbiased = var * count / jnp.maximum(count - 1, 1)
    mean_, unbiased = lax.stop_gradient((mean, unbiased))
    return mean, var, ((rows > 1).any(), weight @ mean_, weight @ unbiased)
