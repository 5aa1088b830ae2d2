"""The types carry every method of the plan: a row of the method walk each, on dummy encoders.

No row is a method; each asks of the types what that method will ask.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmcl_jax import parallel
from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.losses import info_nce, unit
from mmcl_jax.method import Method
from mmcl_jax.types import Ctx, Encoded, Stream, TrainState, fold_candidates
from tests.conftest import make_mesh

B, D = 8, 4


class Dummy(nn.Module):
    """Encodes [B, ..., F] by one dense layer; tokens are what lies between."""

    @nn.compact
    def __call__(self, stream, *, train=False):
        x = nn.Dense(D, name="dense")(jnp.asarray(stream.data, jnp.float32))
        mask = jnp.ones(x.shape[:2], bool) if stream.mask is None else stream.mask
        tokens = x.reshape(x.shape[0], -1, D)
        weights = mask[..., None] / jnp.maximum(mask.sum(1)[:, None, None], 1) if x.ndim == 3 else 1.0
        return Encoded(pooled=(tokens * weights).sum(1), tokens=tokens, mask=mask)


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def batch(**shapes):
    return {k.replace("__", "/"): Stream(values(*s, seed=i)) for i, (k, s) in enumerate(shapes.items())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk(Method):
    """A method whose loss is the mean of its pooled features, to be overridden."""

    streams = ("image",)
    spaces = {"joint": ("image", "text")}


def make(cls=Walk, modalities=("image", "text")):
    return cls(encoders={m: Dummy() for m in modalities}, readouts={m: Linear(D) for m in modalities})


CTX = Ctx(train=True, step=jnp.int32(3), rng=jax.random.key(0))


def test_clip_siglip_clamp_after_the_update():
    class Clamped(Walk):
        def after_update(self, params, extra, ctx):
            return params | {"log_scale": jnp.clip(params["log_scale"], 0, 1)}, extra

    b = batch(image=(B, 5), text=(B, 5))
    method = make(Clamped)
    params, extra = method.init(jax.random.key(0), b)
    params, extra = method.after_update(params | {"log_scale": jnp.float32(7)}, extra, CTX)
    assert params["log_scale"] == 1
    z = method.embed(params, extra, b, CTX)
    np.testing.assert_allclose(jnp.linalg.norm(z["text"], axis=-1), 1, rtol=1e-5)
    items = method.items(params, extra, b, CTX)
    assert method.score(params, extra, items["image"], items["text"], CTX).shape == (B, B)


def test_simclr_slip_two_views_one_encoder():
    b = batch(image__v0=(B, 5), image__v1=(B, 5))
    method = make(modalities=("image",))
    params, extra = method.init(jax.random.key(0), b)
    encoded, _ = method.encode(params, extra, b, CTX)
    assert set(encoded) == {"image/v0", "image/v1"}
    assert encoded["image/v0"].pooled.shape == (B, D), "the feature before projection is there for the SSL head"


def test_moco_mct_momentum_queue_and_side_data():
    """Keys come from the momentum encoder, moved first; the old queue gives the negatives; absent keys are invalid."""

    class Momentum(Walk):
        def init(self, rng, batch):
            params, _ = super().init(rng, batch)
            key = jax.tree.map(jnp.copy, params)
            return params, {"key": key, "queue": jnp.zeros((2 * B, D)), "valid": jnp.zeros(2 * B, bool), "at": 0}

        def loss(self, params, extra, batch, ctx):
            key = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, extra["key"], jax.lax.stop_gradient(params))
            q = self.project(params, extra, {"image": batch["image/v0"]}, ctx)[0]["image"]
            k = jax.lax.stop_gradient(self.project(key, extra, {"image": batch["image/v1"]}, ctx)[0]["image"])
            old = jnp.where(extra["valid"][None], q @ extra["queue"].T, -1e9)
            logits = jnp.concatenate([(q * k).sum(-1, keepdims=True), old], axis=1)
            present = batch["image/v1"].is_present()
            rows = (extra["at"] + jnp.arange(B)) % (2 * B)
            new = extra | {"key": key, "queue": extra["queue"].at[rows].set(k), "at": extra["at"] + B}
            new["valid"] = extra["valid"].at[rows].set(present)
            tags = batch["tags"].data  # side data reaches the loss untouched
            return -jax.nn.log_softmax(logits)[:, 0].mean(), (new, {"tags": tags.sum()})

    b = batch(image__v0=(B, 5), image__v1=(B, 5))
    b["image/v1"] = b["image/v1"].replace(present=jnp.arange(B) != 2)
    b["tags"] = Stream(jnp.ones((B, 3), jnp.uint8))
    method = make(Momentum, ("image",))
    params, extra = method.init(jax.random.key(0), b)
    (loss, (new, metrics)), grads = jax.value_and_grad(method.loss, has_aux=True)(params, extra, b, CTX)
    assert float(loss) == 0.0, "nothing valid in the first queue: the positive is the only candidate"
    (loss, (new, metrics)), grads = jax.value_and_grad(method.loss, has_aux=True)(params, new, b, CTX)
    assert float(loss) > 0 and np.isfinite(loss)
    assert metrics["tags"] == 3 * B
    assert not new["valid"][2] and new["valid"].sum() == 2 * (B - 1)
    state = TrainState(jnp.int32(0), params, (), new)
    assert jax.tree.structure(state) == jax.tree.structure(jax.tree.map(lambda x: x, state))


def test_filip_items_are_token_sets():
    class Tokens(Walk):
        def items(self, params, extra, batch, ctx):
            encoded, _ = self.encode(params, extra, batch, ctx)
            return {k: {"tokens": unit(e.tokens), "mask": e.mask} for k, e in encoded.items()}

        def score(self, params, extra, a, b, ctx):
            s = jnp.einsum("imd,jnd->ijmn", a["tokens"], b["tokens"])
            s = jnp.where(b["mask"][None, :, None], s, -jnp.inf).max(-1)
            return (s * a["mask"][:, None]).sum(-1) / a["mask"].sum(-1)[:, None]

    b = batch(image=(B, 6, 5), text=(B, 3, 5))
    b["text"] = b["text"].replace(mask=jnp.arange(3)[None] < jnp.array([1, 2, 3, 3, 3, 3, 3, 3])[:, None])
    method = make(Tokens)
    params, extra = method.init(jax.random.key(0), b)
    items = method.items(params, extra, b, CTX)
    score = method.score(params, extra, items["image"], items["text"], CTX)
    padded = b | {"text": b["text"].replace(data=b["text"].data.at[0, 1:].set(99.0))}
    items = method.items(params, extra, padded, CTX)
    np.testing.assert_allclose(method.score(params, extra, items["image"], items["text"], CTX), score, rtol=1e-6)


def test_declip_fdt_dict_streams_readouts_and_schedules():
    class Codes(nn.Module):
        """A readout that is more than linear: weights over a codebook."""

        @nn.compact
        def __call__(self, encoded):
            codes = self.param("codes", nn.initializers.normal(1.0), (6, D))
            return jax.nn.softmax((encoded.tokens @ codes.T).max(1)) @ codes

    class Scheduled(Walk):
        def loss(self, params, extra, batch, ctx):
            labels = batch["mlm"].data["labels"]
            temperature = jnp.maximum(0.5 ** (ctx.step / 2), 0.1)
            z, _ = self.project(params, extra, batch, ctx)
            dropped = jax.random.bernoulli(ctx.key("mlm"), 0.5, labels.shape)
            return (z["image"].mean() + (labels * dropped).sum()) * temperature, (extra, {"T": temperature})

    b = batch(image=(B, 6, 5))
    b["mlm"] = Stream({"ids": jnp.ones((B, 3), jnp.int32), "labels": jnp.ones((B, 3), jnp.int32)})
    method = Scheduled(encoders={"image": Dummy()}, readouts={"image": Codes()})
    params, extra = method.init(jax.random.key(0), b)
    assert params["image_readout"]["codes"].shape == (6, D)
    loss, (_, metrics) = method.loss(params, extra, b, CTX)
    assert float(metrics["T"]) == pytest.approx(0.5**1.5)
    assert b["mlm"].rows == B


def test_gmc_joint_encoder_over_what_is_present():
    class Joint(Walk):
        spaces = {"joint": ("image", "text", "joint")}

        def embed(self, params, extra, batch, ctx, space=None):
            encoded, _ = self.encode(params, extra, batch, ctx)
            there = {k: batch[k].is_present()[:, None] for k in encoded}
            total = sum(jnp.where(there[k], e.pooled, 0) for k, e in encoded.items())
            return {"joint": unit(total / jnp.maximum(sum(there.values()), 1))}

    b = batch(image=(B, 5), text=(B, 5))
    method = make(Joint)
    params, extra = method.init(jax.random.key(0), b)
    both = method.embed(params, extra, b, CTX)["joint"]
    image_only = method.embed(params, extra, {"image": b["image"]}, CTX)["joint"]
    absent = b | {"text": b["text"].replace(present=jnp.zeros(B, bool))}
    np.testing.assert_allclose(method.embed(params, extra, absent, CTX)["joint"], image_only, rtol=1e-6)
    assert not np.allclose(both, image_only)


def test_imagebind_absent_keys_and_frozen_towers():
    class Bind(Walk):
        def loss(self, params, extra, batch, ctx):
            z, _ = self.project(params | {"image": jax.lax.stop_gradient(params["image"])}, extra, batch, ctx)
            others = [k for k in z if k != "image"]
            losses = [ctx.over_batch(info_nce)(z["image"], z[k], batch[k].present, scale=10.0) for k in others]
            return sum(losses, jnp.float32(0)), (extra, {})

    b = batch(image=(B, 5), text=(B, 5), audio=(B, 5))
    method = make(Bind, ("image", "text", "audio"))
    params, extra = method.init(jax.random.key(0), b)
    without_audio = {k: v for k, v in b.items() if k != "audio"}
    grads = jax.grad(lambda p: method.loss(p, extra, without_audio, CTX)[0])(params)
    norms = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads)
    assert all(n == 0 for n in jax.tree.leaves(norms["audio"])), "a missing key: all absent, gradient exactly 0"
    assert all(n == 0 for n in jax.tree.leaves(norms["image"])), "frozen"
    assert any(n > 0 for n in jax.tree.leaves(norms["text"]))


def test_cvrl_milnce_vatt_candidates_and_spaces():
    class Vatt(Walk):
        spaces = {"va": ("video", "audio"), "vat": ("video", "text")}

    b = batch(video=(B, 5), audio=(B, 5))
    b["text"] = Stream(values(B, 3, 2, 5), jnp.ones((B, 3, 2), bool), jnp.arange(3)[None] < jnp.arange(B)[:, None])
    folded, unfold = fold_candidates(b["text"])
    assert folded.data.shape == (3 * B, 2, 5) and folded.mask.shape == (3 * B, 2) and folded.present.shape == (3 * B,)
    method = make(Vatt, ("video", "audio", "text"))
    params, extra = method.init(jax.random.key(0), {**b, "text": folded})
    encoded, _ = method.encode(params, extra, {"text": folded}, CTX)
    assert unfold(encoded["text"].pooled).shape == (B, 3, D)
    np.testing.assert_array_equal(unfold(folded.data), b["text"].data)
    assert set(method.embed(params, extra, {**b, "text": folded}, CTX, space="va")) == {"video", "audio"}
    assert set(method.embed(params, extra, {**b, "text": folded}, CTX, space="vat")) == {"video", "text"}


def test_vilbert_captioner_items_are_inputs():
    class Fusion(Walk):
        def items(self, params, extra, batch, ctx):
            return {k: s.data for k, s in batch.items() if k in self.encoders}

        def score(self, params, extra, a, b, ctx):
            def pair(x, y):
                both = {"image": Stream(x[None]), "text": Stream(y[None])}
                encoded, _ = self.encode(params, extra, both, ctx)
                return (encoded["image"].pooled * encoded["text"].pooled).sum()

            return jax.vmap(lambda x: jax.vmap(lambda y: pair(x, y))(b))(a)

    b = batch(image=(B, 5), text=(B, 5))
    b["regions"] = Stream({"boxes": values(B, 7, 5), "classes": jnp.zeros((B, 7, 9))}, jnp.ones((B, 7), bool))
    method = make(Fusion)
    params, extra = method.init(jax.random.key(0), b)
    items = method.items(params, extra, b, CTX)
    assert method.score(params, extra, items["image"][:3], items["text"][:5], CTX).shape == (3, 5)
    assert "regions" not in items and b["regions"].data["boxes"].shape == (B, 7, 5)


def test_context_keys():
    a, b = CTX.key("dropout"), CTX.key("shuffle")
    assert not np.array_equal(jax.random.key_data(a), jax.random.key_data(b))
    with pytest.raises(ValueError, match="no rng"):
        Ctx().key("dropout")


def test_an_encoder_without_its_stream_is_named():
    with pytest.raises(ValueError, match="data.streams.text"):
        make().init(jax.random.key(0), batch(image=(B, 5)))


def test_meshes():
    mesh = make_mesh("4x2")
    assert mesh.shape == {"data": 4, "fsdp": 2}
    with pytest.raises(ValueError, match="multiply to 8"):
        parallel.make_mesh({"data": 3})
    with pytest.raises(ValueError, match="unknown axes"):
        parallel.make_mesh({"model": 2})
    sharding = parallel.state_sharding({"w": jnp.zeros((6, 8)), "s": jnp.zeros(()), "odd": jnp.zeros(3)}, mesh)
    assert {k: v.spec for k, v in sharding.items()} == {"w": P(None, "fsdp"), "s": P(), "odd": P()}
