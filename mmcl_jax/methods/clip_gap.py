"""CLIP with what opens or closes the modality gap (Liang et al. 2022, "Mind the Gap", arXiv 2203.02053).

    L = L_CLIP(x, y R; s) + u [ U(x) + U(y R) ] / 2

with x and y the unit vectors of images and texts, and each of these a choice; without any it is CLIP:

- the temperature: fixed (`scale_init` = `scale_min` = `scale_max`), learned as in CLIP, or moved in a straight line
  from 1 / `scale_init` to 1 / `scale_end` within `scale_steps` steps;
- `negatives`: "across" as CLIP; "all", those of the own modality too, which makes it NT-Xent (`dual_ce` in the
  official code); "easy", CLIP's over the pairs that are found already (`simple_ce`);
- `uniformity`: u, of U = log mean_{i != j} exp(-2 |z_i - z_j|^2), see `losses.uniformity`;
- `turn`: R is the rotation of texts onto images at the start (Procrustes), kept from there on: "fix init"; else 1.

Losses are checked against the official code (8e20cb2). Deviations: R comes from the first batch, theirs from all
training pairs, and a batch with fewer rows than dimensions, which has no single R, is refused. Their temperatures are
fixed; the straight line is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.losses import easy_nce, in_batch_accuracy, info_nce, nt_xent, uniformity
from mmcl_jax.losses.softmax import product
from mmcl_jax.methods import clip
from mmcl_jax.named import ConfigError, did_you_mean
from mmcl_jax.types import Array

NEGATIVES = {"across": info_nce, "all": nt_xent, "easy": easy_nce}


def make(
    encoders: Mapping[str, nn.Module],
    *,
    negatives: str = "across",
    uniformity: float = 0.0,
    turn: bool = False,
    scale_end: float = 0.0,
    scale_steps: int = 0,
    **how: Any,
) -> ClipGap:
    """Builds it; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text".
        negatives: "across", "all" or "easy".
        uniformity: weight of the uniformity of both modalities.
        turn: whether texts are turned onto images at the start.
        scale_end: 1 / temperature after `scale_steps`.
        scale_steps: steps in which it moves there from `scale_init`; 0 = learned, as in CLIP.
        **how: as for CLIP.

    Raises:
        ValueError: for other negatives, a negative weight, a schedule without an end; or from CLIP.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"method.negatives={negatives!r}{did_you_mean(negatives, NEGATIVES)}")
    if uniformity < 0 or scale_steps < 0:
        raise ValueError(f"method.uniformity={uniformity}, scale_steps={scale_steps}: must not be negative.")
    if (scale_steps > 0) != (scale_end > 0):
        raise ValueError(f"method.scale_end={scale_end}, scale_steps={scale_steps}: a schedule needs both, positive.")
    base = clip.make(encoders, **how)
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return ClipGap(**fields, negatives=negatives, uniformity=uniformity, turn=turn, scale_end=scale_end,
                   scale_steps=scale_steps)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipGap(clip.Clip):
    """See the module's docstring; built by `make`."""

    negatives: str
    uniformity: float
    turn: bool
    scale_end: float
    scale_steps: int

    def init(self, rng, batch):
        """As CLIP; and the rotation, which is none yet."""
        params, extra = super().init(rng, batch)
        dim = self.readouts["text"].dim
        return params, extra | ({"turn": jnp.eye(dim)} if self.turn else {})

    def loss(self, params, extra, batch, ctx):
        """The loss of the pairs of which both sides are there."""
        z, extra = super().project(params, extra, batch, ctx)
        x, y = z["image"], z["text"]
        present = batch["image"].is_present() & batch["text"].is_present()
        if self.turn:
            if len(x) < x.shape[1]:
                raise ConfigError(
                    f"method.turn: the batch has {len(x)} rows, embed_dim={x.shape[1]}; the rotation is not "
                    "determined by so few. Set a larger batch, or a smaller method.embed_dim."
                )
            first = ctx.over_batch(rotation)(*jax.lax.stop_gradient((x, y)), present)
            none_yet = (extra["turn"] == jnp.eye(len(first))).all()  # not step 0: that one may have been skipped
            extra = extra | {"turn": jnp.where(none_yet, first, extra["turn"])}
            y = product(y, extra["turn"])
        scale = self.scale_at(params, ctx.step)
        loss = ctx.over_batch(NEGATIVES[self.negatives])(x, y, present, scale=scale)
        accuracy = ctx.over_batch(in_batch_accuracy)(x, y, present)
        metrics = {"acc": accuracy, "scale": scale}
        if self.uniformity:
            spread = [ctx.over_batch(uniformity)(rows, present) for rows in (x, y)]
            metrics["uniformity"] = sum(spread) / 2
            loss += self.uniformity * metrics["uniformity"]
        return loss, (extra, metrics)

    def scale_at(self, params, step):
        """1 / temperature at a step."""
        if not self.scale_steps:
            return self.scale(params)
        way = jnp.minimum(step / self.scale_steps, 1.0)
        return 1 / ((1 - way) / self.scale_init + way / self.scale_end)

    def project(self, params, extra, batch, ctx):
        """Unit vectors, texts turned."""
        z, extra = super().project(params, extra, batch, ctx)
        if self.turn:
            z = {k: product(v, extra["turn"]) if k.split("/")[0] == "text" else v for k, v in z.items()}
        return z, extra

    def to_embed(self, extra):
        """Batch statistics and the rotation."""
        return super().to_embed(extra) | {k: v for k, v in extra.items() if k == "turn"}


def rotation(x: Array, y: Array, present: Array | None = None, *, axis: parallel.Axis = None) -> Array:
    """R [D, D] with the least sum of |x_i - y_i R|^2 over the present rows of the global batch, R R^T = 1.

    Args:
        x: [b, D].
        y: [b, D].
        present: [b] bool or None.
        axis: mesh axes of the rows.
    """
    if present is not None:
        x, y = jnp.where(present[:, None], x, 0), jnp.where(present[:, None], y, 0)
    u, _, v = jnp.linalg.svd(parallel.total(product(y.T, x), axis))
    return u @ v
