"""Losses that Liang et al. 2022 ("Mind the Gap", arXiv 2203.02053) train with to see what makes the modality gap."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses.softmax import NEVER, product, rows_of, wide
from mmcl_jax.types import Array


def uniformity(z: Array, present: Array | None = None, *, t: float = 2.0, axis: parallel.Axis = None) -> Array:
    """How evenly vectors lie on the sphere; the lower the better.

        L = log mean_{i != j} exp(-t |z_i - z_j|^2)      over the present rows of the *global* batch

    Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere,
    arXiv 2005.10242.

    Args:
        z: [b, D] unit vectors, this device's rows.
        present: [b] bool or None.
        t: of the kernel.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; 0 if there are not two present rows.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]]))), 4)
        -8.0
    """
    z, _, present = rows_of(z, z, present, axis)
    own = parallel.rows(len(z), axis)
    pair = (own[:, None] != parallel.gather(own, axis)[None]) & parallel.gather(present, axis)[None] & present[:, None]
    square = jnp.square(z.astype(wide(z))).sum(1)
    distance = square[:, None] + parallel.gather(square, axis)[None] - 2 * product(z, parallel.gather(z, axis).T)
    near = jnp.where(pair, -t * distance, NEVER)  # [b, B]
    n = parallel.total(pair.sum(dtype=wide(z)), axis)
    total = parallel.total(jnp.exp(near).sum(), axis)
    return jnp.where(n > 0, jnp.log(jnp.where(n > 0, total, 1) / jnp.maximum(n, 1)), 0)


def easy_nce(
    x: Array, y: Array, present: Array | None = None, *, scale: Array | float, axis: parallel.Axis = None
) -> Array:
    """InfoNCE over the rows that are right already: those that find their pair first; hard ones teach nothing.

    Each direction is a mean over its right rows of the *global* batch, and the loss the mean of both.

    Args:
        x: [b, D] unit vectors, this device's rows.
        y: [b, D] unit vectors.
        present: [b] bool or None.
        scale: [] multiplier of the cosine, 1 / temperature.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        [] float32, the same on all devices; a direction in which nothing is right counts as 0.
    """
    x, y, present = rows_of(x, y, present, axis)
    scale, own = parallel.varying(jnp.asarray(scale), axis), parallel.rows(len(x), axis)
    there, number = parallel.gather(present, axis)[None], parallel.gather(own, axis)

    def direction(queries, items):
        logits = jnp.where(there, scale * product(queries, parallel.gather(items, axis).T), NEVER)  # [b, B]
        right = present & (number[logits.argmax(1)] == own)
        positive = jnp.where(number[None] == own[:, None], logits, 0).sum(1)
        return parallel.mean(jax.nn.logsumexp(logits - positive[:, None], axis=1), right, axis)

    return (direction(x, y) + direction(y, x)) / 2
