"""Device ops. Every public function here is an op by its name, called on a whole batch inside jit.

Images are float [B, H, W, 3] in [0, 1] until `normalize`. An op that asks for `keys` [B] is random, with a key per
example that depends on the seed, the name of the draw and the example's position in the global stream, never on the
row it happens to be in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmcl_jax.types import Array

STATISTICS = {  # mean and standard deviation of RGB in [0, 1]
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to [-1, 1], as SigLIP
}


def normalize(images: Array, statistics: str = "half") -> Array:
    """Takes the mean off and divides by the deviation.

    Args:
        images: [B, H, W, 3] in [0, 1].
        statistics: a name of `STATISTICS`.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"normalize({statistics!r}); possible: {', '.join(STATISTICS)}.")
    mean, std = (jnp.array(s, jnp.float32) for s in STATISTICS[statistics])
    return (images - mean) / std


def gray(images: Array, p: float = 0.2, *, keys: Array) -> Array:
    """Turns an image grey with probability p; luma of ITU-R 601, as torchvision's."""
    luma = images @ jnp.array([0.2989, 0.587, 0.114], jnp.float32)
    turn = jax.vmap(lambda k: jax.random.bernoulli(k, p))(keys)
    return jnp.where(turn[:, None, None, None], luma[..., None], images)
