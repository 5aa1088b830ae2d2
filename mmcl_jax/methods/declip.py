"""DeCLIP: Supervision Exists Everywhere (Li et al. 2021, arXiv 2110.05208).

Two views of the image, u and u', and two of the text, v (its words partly hidden) and v' (changed by EDA), all unit
vectors of one space; nn(v) is the vector of a queue of earlier texts that is nearest to v, without gradient.

    L_clip    = mean over the four pairs of views of CLIP's loss, with one scale exp(s)
    L_nn      = mean over the four pairs of CE_i over j (exp(s) u_i . nn(v_j)): from image to text only
    L_simsiam = -1/2 [ cos(p(z(u)), sg z(u')) + cos(p(z(u')), sg z(u)) ], z and p heads on u before it is normalised
    L_mlm     = cross entropy of the hidden words, from the text tower's tokens
    L         = w_clip L_clip + w_nn L_nn + w_simsiam L_simsiam + w_mlm L_mlm

The queue is looked at before this batch's texts enter it: those of v' first, then those of v. s is clamped to [3, 6]
after updates, and the loss sees no exp(s) above 100. The text tower stays causal, so a hidden word is predicted from
those before it. With `readout="fdt"` it is DeCLIP+FDT: the codes' features take the place of u and v everywhere.

Deviations: one queue of the global batch, where the official code has one on each device; what is missing is left out
of the terms that need it. `multi_view=False` leaves one pair of views to L_clip and L_nn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from mmcl_jax.encoders.fdt import use_of_codes
from mmcl_jax.encoders.readouts import Linear, SimSiam, Tokens
from mmcl_jax.losses import in_batch_accuracy, info_nce, masked_tokens, simsiam, spread, unit
from mmcl_jax.methods import clip
from mmcl_jax.momentum import nearest, noise_queue, push
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Encoded


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 512,
    readout: str | Mapping[str, Any] = "linear",
    scale_init: float = math.exp(3),
    scale_min: float = math.exp(3),
    scale_max: float = math.exp(6),
    scale_cap: float = 100.0,
    queue: int = 65_536,
    simsiam_dim: int = 1024,
    simsiam_hidden: int = 512,
    bn_groups: int = 1,
    multi_view: bool = True,
    w_clip: float = 0.4,
    w_nn: float = 0.2,
    w_simsiam: float = 0.2,
    w_mlm: float = 0.2,
) -> Declip:
    """Builds DeCLIP; the keyword arguments are `config.method`.

    Args:
        encoders: "image" and "text".
        embed_dim: size of the space that image and text share.
        readout: as for `clip.make`. The text's linear one has a bias, as in the official code.
        scale_init: exp(s) at the start.
        scale_min: lower bound of exp(s) after updates.
        scale_max: upper bound.
        scale_cap: the losses see no larger exp(s).
        queue: K, number of earlier texts.
        simsiam_dim: of z and p.
        simsiam_hidden: of p's inner layer.
        bn_groups: groups of rows over which the heads' batch statistics are taken; the official code's devices.
        multi_view: whether L_clip and L_nn take all pairs of views, or only the first views.
        w_clip: weight of L_clip; a term of weight 0 is not computed.
        w_nn: of L_nn.
        w_simsiam: of L_simsiam.
        w_mlm: of L_mlm.

    Raises:
        ValueError: if a number is out of range.
    """
    weights = dict(clip=w_clip, nn=w_nn, simsiam=w_simsiam, mlm=w_mlm)
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(f"method's weights of the terms are {weights}: none may be negative, one must be positive.")
    if queue < 1:
        raise ValueError(f"method.queue={queue} must be positive; w_nn=0 leaves it out.")
    scale = dict(scale_init=scale_init, scale_min=scale_min, scale_max=scale_max, scale_cap=scale_cap)
    base = clip.make(encoders, embed_dim=embed_dim, readout=readout, **scale)
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    if readout == "linear":
        fields["readouts"] = base.readouts | {"text": Linear(embed_dim, bias=True)}
    heads = {}
    if w_simsiam:
        heads["image_readout_simsiam"] = SimSiam(simsiam_dim, simsiam_hidden, bn_groups)
    if w_mlm:
        vocab = getattr(encoders["text"], "vocab", None)
        if vocab is None:
            raise ValueError("method.w_mlm needs a text encoder with a vocabulary, as `text` has; or set w_mlm=0.")
        heads["text_mlm"] = Tokens(vocab, bias=True, torch=True)
    return Declip(**fields | {"heads": heads}, queue=queue, multi_view=multi_view, weights=weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declip(clip.Clip):
    """See the module's docstring; built by `make`."""

    queue: int
    multi_view: bool
    weights: Mapping[str, float]

    @property
    def streams(self):
        """The views that are compared, and the second image for SimSiam; terms of weight 0 don't make them fewer."""
        images, texts = self._views()
        images += ("image/v1",) * bool(self.weights["simsiam"] and not self.multi_view)
        return images + texts

    def _views(self):
        """The names of the images and of the texts that are compared."""
        views = ("v0", "v1") if self.multi_view else ("v0",)
        return tuple(f"image/{v}" for v in views), tuple(f"text/{v}" for v in views)

    def init(self, rng, batch):
        """Encoders, readouts and heads, the scale, and a queue full of noise."""
        params, extra = super().init(rng, batch)
        if self.weights["nn"]:
            widths = {"text": self.readouts["text"].dim}
            extra = extra | {"queue": noise_queue(self.queue, widths, jax.random.fold_in(rng, 1000))}
        return params, extra

    def loss(self, params, extra, batch, ctx):
        """The weighted sum of the terms."""
        streams = {name: batch[name] for name in self.streams}
        has = {name: stream.is_present() for name, stream in streams.items()}
        encoded, extra = self.encode(params, extra, streams, ctx)
        features = {}
        for name, e in encoded.items():
            readout = f"{name.split('/')[0]}_readout"
            features[name], extra = self.apply(readout, params, extra, e, ctx, streams[name].present)
        z, scale, over = {name: unit(x) for name, x in features.items()}, self.scale(params), ctx.over_batch
        images, texts = self._views()
        pairs = [(i, t) for t in texts for i in images]
        terms = {}
        if self.weights["clip"]:
            losses = [over(info_nce)(z[i], z[t], has[i] & has[t], scale=scale) for i, t in pairs]
            terms["clip"] = sum(losses) / len(losses)
        if self.weights["nn"]:
            queue = extra["queue"]
            found = {t: nearest(queue, "text", z[t], ctx) for t in texts}
            losses = [over(info_nce)(z[i], found[t], has[i] & has[t], scale=scale, both=False) for i, t in pairs]
            terms["nn"] = sum(losses) / len(losses)
            for t in reversed(texts):
                queue = push(queue, {"text": z[t]}, {"text": has[t]}, wrap=False)
            extra = extra | {"queue": queue}
        if self.weights["simsiam"]:
            terms["simsiam"], extra = self._simsiam(params, extra, features, has, ctx)
        if self.weights["mlm"]:
            data, head = batch["text/v0"].data, params["text_mlm"]["projection"]
            if not isinstance(data, Mapping):
                raise ConfigError(
                    "data.streams.text/v0 hides no words: end its ops with mlm(.15), or set method.w_mlm=0."
                )
            terms["mlm"] = over(masked_tokens)(encoded["text/v0"].tokens, data["labels"], has["text/v0"], **head)
        loss = sum(self.weights[name] * value for name, value in terms.items())
        accuracy = over(in_batch_accuracy)(z["image/v0"], z["text/v0"], has["image/v0"] & has["text/v0"])
        watched = {"acc": accuracy, "scale": scale, **over(spread)(z["image/v0"], has["image/v0"])}
        return loss, (extra, terms | watched | use_of_codes(extra))

    def _simsiam(self, params, extra, features, has, ctx):
        z, p = [], []
        for name in ("image/v0", "image/v1"):  # one after another: each view has batch statistics of its own
            read = Encoded(pooled=features[name])
            (own, predicted), extra = self.apply("image_readout_simsiam", params, extra, read, ctx, has[name])
            z.append(unit(own))
            p.append(unit(predicted))
        return ctx.over_batch(simsiam)(*p, *z, has["image/v0"] & has["image/v1"]), extra
