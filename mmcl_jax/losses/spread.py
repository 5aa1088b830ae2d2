"""How far embeddings have collapsed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.types import Array


def spread(z: Array, present: Array | None = None, *, axis: parallel.Axis = None) -> dict[str, Array]:
    """Deviation and rank of the batch's embeddings: a model that gives the same for all has 0 and 0.

    Args:
        z: [b, D] unit vectors, this device's rows.
        present: [b] bool; rows that are False don't count. None = all count.
        axis: mesh axes of the rows, as `Ctx.over_batch` passes it; None on one device.

    Returns:
        "std": [] sqrt(D) x the mean of the features' standard deviations: 1 where vectors are all over the sphere.
        "rank": [] (sum of s)^2 / sum of s^2 of the covariance's eigenvalues s, which needs no eigenvalues: the number
            of directions, if all that are used are used alike; never more than the rank by entropy of
            Roy & Vetterli 2007, which the evaluators report.

    Example:
        >>> import jax.numpy as jnp
        >>> {k: round(float(v), 4) for k, v in spread(jnp.concatenate([jnp.eye(3), -jnp.eye(3)])).items()}
        {'std': 1.0, 'rank': 3.0}
    """
    z = jax.lax.stop_gradient(z)
    present = parallel.varying(jnp.ones(z.shape[0], bool), axis) if present is None else present
    z = jnp.where(present[:, None], z, 0)
    n = jnp.maximum(parallel.total(present.sum(dtype=jnp.float32), axis), 1)
    mean = parallel.total(z.sum(0), axis) / n
    z = jnp.where(present[:, None], z - mean, 0)
    covariance = parallel.total(jnp.dot(z.T, z, precision="highest"), axis) / n  # [D, D]
    variance = jnp.diag(covariance)
    std = jnp.sqrt(len(variance)) * jnp.sqrt(variance).mean()
    rank = jnp.square(variance.sum()) / jnp.maximum(jnp.square(covariance).sum(), 1e-30)
    return {"std": std, "rank": rank}
