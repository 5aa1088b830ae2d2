"""FILIP: Fine-grained Interactive Language-Image Pre-Training (Yao et al. 2021, arXiv 2111.07783).

Each patch of the image and each word of the text becomes a unit vector x_ip, y_jq of one space:

    s_I(i, j) = mean over patches p of max over words q of x_ip . y_jq
    s_T(j, i) = mean over words q of max over patches p of x_ip . y_jq
    L = 1/2 [ CE_i over j (exp(s) s_I) + CE_j over i (exp(s) s_T) ]

over real tokens only: padding is neither looked for nor found. The two similarities are not each other's transposes.
Retrieval from an image ranks by s_I, from a text by s_T; in zero-shot classification s_I is averaged over prompts.
s is CLIP's. Images have no class token among their patches, texts have their start and end.

Deviations: `top` keeps the tokens that can be found as DeCLIP's repository does, by their own pair; the paper keeps a
quarter of them by the part of the batch that a device holds, which would depend on the number of devices. Where one
vector is asked for (`embed`: kNN, `mmcl embed`), it is the mean of the real tokens' vectors. With `readout="fdt"` each
token has codes of its own (`encoders/fdt.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax.encoders.fdt import use_of_codes
from mmcl_jax.encoders.readouts import make_readout
from mmcl_jax.losses import plan, spread, tokenwise_accuracy, tokenwise_nce, unit
from mmcl_jax.losses.tokenwise import similarities
from mmcl_jax.method import check_single
from mmcl_jax.methods import clip


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 256,
    readout: str | Mapping[str, Any] = "tokens",
    scale_init: float = 1 / 0.07,
    scale_min: float = 1.0,
    scale_max: float = 100.0,
    scale_cap: float = 0.0,
    top: int = 0,
) -> Filip:
    """Builds FILIP; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text", which give tokens.
        embed_dim: size of the space of tokens.
        readout: "tokens", dict(name="tokens", bias=True), or "fdt", here with pool="none".
        scale_init: exp(s) at the start, 1 / temperature.
        scale_min: lower bound of exp(s) after each update.
        scale_max: upper bound.
        scale_cap: as for `clip.make`.
        top: tokens of each image and of each text that can be found; 0 = all.

    Raises:
        ValueError: if a number is out of range, or the readout gives no tokens.
    """
    if top < 0:
        raise ValueError(f"method.top={top} must be positive, or 0 for all tokens.")
    given = {"name": readout} if isinstance(readout, str) else {"name": "tokens", **readout}
    given = {"pool": "none", **given} if given["name"] == "fdt" else given
    scale = dict(scale_init=scale_init, scale_min=scale_min, scale_max=scale_max, scale_cap=scale_cap)
    base = clip.make(encoders, embed_dim=embed_dim, **scale)
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    fields["readouts"] = {name: make_readout(given, embed_dim, per_token=True) for name in ("image", "text")}
    return Filip(**fields, top=top)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filip(clip.Clip):
    """See the module's docstring; built by `make`."""

    top: int

    def _tokens(self, params, extra, batch, ctx):
        """Unit vectors of tokens and which of them are real, of each stream with an encoder; and the new `extra`."""
        streams = {name: s for name, s in batch.items() if name.split("/")[0] in self.encoders}
        check_single(self, streams, "tokens are compared of one", "data.eval_streams")
        encoded, extra = self.encode(params, extra, streams, ctx)
        found = {}
        for name, e in encoded.items():
            tokens, extra = self.read(f"{name.split('/')[0]}_readout", params, extra, e, ctx, streams[name].present)
            found[name] = {"tokens": tokens, "mask": jnp.ones(tokens.shape[:2], bool) if e.mask is None else e.mask}
        return found, extra

    def loss(self, params, extra, batch, ctx):
        """Token-wise InfoNCE over the pairs of which both sides are there."""
        found, extra = self._tokens(params, extra, batch, ctx)
        present = batch["image"].is_present() & batch["text"].is_present()
        rows = [found[name][part] for part in ("tokens", "mask") for name in ("image", "text")]
        scale = self.scale(params)
        loss = ctx.over_batch(tokenwise_nce)(*rows, present, scale=scale, top=self.top)
        accuracy = ctx.over_batch(tokenwise_accuracy)(*rows, present, top=self.top)
        watched = ctx.over_batch(spread)(_mean(**found["image"]), present)
        return loss, (extra, {"acc": accuracy, "scale": scale, **watched, **use_of_codes(extra)})

    def embed(self, params, extra, batch, ctx, space=None):
        """Unit vectors of the mean of each row's real tokens."""
        return {name: _mean(**x) for name, x in self._tokens(params, extra, batch, ctx)[0].items()}

    def items(self, params, extra, batch, ctx):
        """Tokens [B, N, D] and which of them are real [B, N]."""
        return self._tokens(params, extra, batch, ctx)[0]

    def score(self, params, extra, items_a, items_b, ctx):
        """Of each a and b, the mean over a's tokens of the nearest of b's; as many b at a time as memory allows."""
        (na, n1, _), n2 = items_a["tokens"].shape, items_b["tokens"].shape[1]
        at_once = max(1, int(plan.BUDGET_MIB * 2**20) // (16 * na * n1 * n2))  # 4 tiles of float32

        def score(b):
            one = jax.tree.map(lambda x: x[None], b)
            return similarities(items_a["tokens"], one["tokens"], items_a["mask"], one["mask"])[0][:, 0]  # [Na]

        return jax.lax.map(score, items_b, batch_size=at_once).T


def _mean(tokens, mask):
    return unit(jnp.where(mask[..., None], tokens, 0).sum(1))
