"""MCT: Multimodal Contrastive Training for Visual Representation Learning (Yuan et al., CVPR 2021, arXiv 2104.12836).

Two encoders (image i, caption c), each with a momentum twin that gives the keys; two heads each, one for a space of
its own and one for the joint space. For an image with views x, x', captions c, c' and tags t, with q from the
encoders and k from their twins, all unit vectors, and queues Q of earlier keys:

    L_ii  = InfoNCE(q_ii(x), k_ii(x'), Q_ii)                     image to image, as MoCo v2
    L_tag = the same, with keys of Q_ii that share more than `tag_threshold` tags as further positives
    L_cc  = InfoNCE(q_cc(c), k_cc(c'), Q_cc)                     caption to caption
    L_ic  = sum over j in Q_ci of max(0, q_ic(x) . j - q_ic(x) . k_ci(c') + margin),  L_ci likewise from the caption
    L     = w_image L_ii + w_tag L_tag + w_text L_cc + w_image_text L_ic + w_text_image L_ci,

each a mean over the batch, but the last two sums over the queue: hence their small weights. Order as in MoCo: twins
move first, the loss sees the old queues, then the batch's keys enter. Gradients reach queries only.

Not verified against the paper, of which no official code was found: all constants (temperature, margin, weights,
tag_threshold, momentum, sizes of heads and queue), the form of the tag loss with the sum outside of the logarithm, and
the recipe. Each is a config key. Choices of ours: an image's own key is always a positive; queues start empty, and
empty slots count for nothing; a missing modality is left out of the terms that need it; without tags an example has
no further positives. `inter_loss="infonce"` replaces the margin by InfoNCE with the same temperature, for ablations.
Captions are encoded by our text towers, not by BERT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmcl_jax.encoders.readouts import Mlp
from mmcl_jax.losses import queue_accuracy, queue_margin, queue_nce, queue_tag_nce, spread
from mmcl_jax.method import Method, check_single
from mmcl_jax.momentum import empty_queue, follow, push, shuffled, twin

INTER_LOSSES = ("margin", "infonce")


def make(
    encoders: Mapping[str, nn.Module],
    *,
    embed_dim: int = 1024,
    intra_dim: int = 128,
    hidden: int = 0,
    temperature: float = 0.07,
    momentum: float = 0.999,
    queue: int = 16_384,
    margin: float = 0.1,
    tag_threshold: float = 2,
    inter_loss: str = "margin",
    w_image: float = 1.0,
    w_tag: float = 1.0,
    w_text: float = 1.0,
    w_image_text: float = 1e-4,
    w_text_image: float = 1e-4,
) -> Mct:
    """Builds MCT; the keyword arguments are `config.method`. None of the defaults could be verified.

    Args:
        encoders: "image" and "text".
        embed_dim: of the joint space.
        intra_dim: of the spaces of image and text alone.
        hidden: of the heads' first layers; 0 = as wide as the encoder's feature.
        temperature: tau.
        momentum: m of the twins.
        queue: K, number of keys in each queue.
        margin: alpha, a difference of cosines.
        tag_threshold: epsilon, number of shared tags that is not enough yet.
        inter_loss: "margin" or "infonce".
        w_image: weight of L_ii; a term of weight 0 is not computed.
        w_tag: of L_tag.
        w_text: of L_cc.
        w_image_text: of L_ic.
        w_text_image: of L_ci.

    Raises:
        ValueError: if a number is out of range, or there is no such loss.
    """
    if temperature <= 0 or not 0 <= momentum <= 1 or queue < 1:
        raise ValueError(
            f"method.temperature={temperature} and queue={queue} must be positive, momentum={momentum} within [0, 1]."
        )
    if inter_loss not in INTER_LOSSES:
        raise ValueError(f"method.inter_loss={inter_loss!r}; possible: {', '.join(INTER_LOSSES)}.")
    weights = dict(ii=w_image, tag=w_tag, cc=w_text, ic=w_image_text, ci=w_text_image)
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(f"method's weights of the terms are {weights}: none may be negative, one must be positive.")
    return Mct(
        encoders=encoders,
        readouts={name: Mlp(embed_dim, hidden) for name in ("image", "text")},
        heads={f"{name}_intra": Mlp(intra_dim, hidden) for name in ("image", "text")},
        temperature=temperature,
        momentum=momentum,
        queue=queue,
        margin=margin,
        tag_threshold=tag_threshold,
        inter_loss=inter_loss,
        weights=weights,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mct(Method):
    """See the module's docstring; built by `make`."""

    temperature: float
    momentum: float
    queue: int
    margin: float
    tag_threshold: float
    inter_loss: str
    weights: Mapping[str, float]

    spaces = {"joint": ("image", "text"), "image": ("image",), "text": ("text",)}

    def init(self, rng, batch):
        """Encoders and heads, the same once more for keys, and empty queues."""
        params, extra = super().init(rng, batch)
        joint, intra = self.readouts["image"].dim, self.heads["image_intra"].dim
        w = self.weights  # what no term looks at is not kept
        widths = {"image": intra * bool(w["ii"] or w["tag"]), "text": intra * bool(w["cc"])}
        widths |= {"text_joint": joint * bool(w["ic"]), "image_joint": joint * bool(w["ci"])}
        # Evaluation knows no tags, and needs none: their queue is as wide as the training's stream.
        widths |= {"tags": batch["tags"].data.shape[-1] * bool(w["tag"])} if "tags" in batch else {}
        queue = empty_queue(self.queue, {name: width for name, width in widths.items() if width})
        return params, extra | {"key": twin(params, extra), "queue": queue}

    def restart(self, params, extra):
        """The twin starts from the same parameters."""
        return extra | {"key": twin(params, extra)}

    @property
    def streams(self):
        """Those that the terms look at."""
        w = self.weights
        needs = {
            "image/v0": w["ii"] or w["tag"] or w["ic"],
            "image/v1": w["ii"] or w["tag"] or w["ci"],
            "text/v0": w["cc"] or w["ci"],
            "text/v1": w["cc"] or w["ic"],
            "tags": w["tag"],
        }
        return tuple(name for name, needed in needs.items() if needed)

    def loss(self, params, extra, batch, ctx):
        """The weighted sum of the terms."""
        key, queue = follow(extra["key"], params, self.momentum), extra["queue"]
        streams = {name: batch[name] for name in self.streams}
        has = {name: stream.is_present() for name, stream in streams.items()}
        q, extra = self._vectors(params, extra, {n: s for n, s in streams.items() if n.endswith("/v0")}, ctx)
        others, back = {n: s for n, s in streams.items() if n.endswith("/v1")}, slice(None)
        if "image/v1" in others and "image" in key["batch_stats"]:  # without statistics the order means nothing
            others["image/v1"], back = shuffled(others["image/v1"], ctx)
        k, key = self._vectors(key["params"], key, others, ctx)
        k = jax.lax.stop_gradient({n: x[back] if n.startswith("image") else x for n, x in k.items()})
        if "tags" in streams:
            k["tags"] = jnp.where(has["tags"][:, None], streams["tags"].data, 0).astype(jnp.float32)
        over, scale = ctx.over_batch, 1 / self.temperature

        def both(a, b):
            return has[a] & has[b]

        def against(name):
            return dict(queue=queue.rows[name], valid=queue.valid[name])

        def intra(name):
            present = both(f"{name}/v0", f"{name}/v1")
            return over(queue_nce)(q[name], k[name], present, scale=scale, **against(name))

        def tagged():
            present, by = both("image/v0", "image/v1"), dict(threshold=self.tag_threshold, scale=scale)
            queues = against("image") | {"queue_tags": queue.rows["tags"]}
            return over(queue_tag_nce)(q["image"], k["image"], k["tags"], present, **queues, **by)

        def inter(a, b):
            rows = q[f"{a}_joint"], k[f"{b}_joint"], both(f"{a}/v0", f"{b}/v1")
            if self.inter_loss == "infonce":
                return over(queue_nce)(*rows, scale=scale, **against(f"{b}_joint"))
            return over(queue_margin)(*rows, margin=self.margin, **against(f"{b}_joint"))

        terms = {
            "ii": lambda: intra("image"),
            "tag": tagged,
            "cc": lambda: intra("text"),
            "ic": lambda: inter("image", "text"),
            "ci": lambda: inter("text", "image"),
        }
        values = {name: terms[name]() for name, weight in self.weights.items() if weight}
        loss = sum(self.weights[name] * value for name, value in values.items())
        present = {n: has["image/v1" if n.startswith(("image", "tags")) else "text/v1"] for n in k}
        extra = extra | {"key": key, "queue": push(queue, k, present)}
        return loss, (extra, values | self._watch(q, k, has, queue, ctx))

    def _watch(self, q, k, has, queue, ctx):
        """Accuracy and spread of the queries in a space that a term trains: a modality's own, or the joint one."""
        spaces = ("image", "text", "image_joint", "text_joint")
        name = next(n for n in spaces if n in q and (n in queue.rows or n.endswith("joint")))
        modality = name.split("_")[0]
        metrics = ctx.over_batch(spread)(q[name], has[f"{modality}/v0"])
        if not name.endswith("joint"):
            present = has[f"{modality}/v0"] & has[f"{modality}/v1"]
            against = dict(queue=queue.rows[name], valid=queue.valid[name])
            metrics["acc"] = ctx.over_batch(queue_accuracy)(q[name], k[name], present, **against)
        return metrics

    def embed(self, params, extra, batch, ctx, space=None):
        """As for all methods; "image" and "text" are the spaces of one modality alone."""
        if space in (None, "joint"):
            return super().embed(params, extra, batch, ctx, space)
        wanted = {name: stream for name, stream in batch.items() if name.split("/")[0] == space}
        check_single(self, wanted, f"the space {space!r} takes one", "data.eval_streams")
        encoded, _ = self.encode(params, extra, wanted, ctx)
        return {name: self.read(f"{space}_intra", params, extra, e, ctx)[0] for name, e in encoded.items()}

    def _vectors(self, params, extra, streams, ctx):
        """{"image", "text", "image_joint", "text_joint"}: unit vectors of one stream each, and the new `extra`."""
        encoded, extra = self.encode(params, extra, streams, ctx)
        vectors = {}
        for name, e in encoded.items():
            modality = name.split("/")[0]
            vectors[modality], _ = self.read(f"{modality}_intra", params, extra, e, ctx)
            vectors[f"{modality}_joint"], _ = self.read(f"{modality}_readout", params, extra, e, ctx)
        return vectors, extra
