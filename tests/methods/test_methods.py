"""What each method promises beside its loss: what is left out, what moves, what is kept; on tiny random towers."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import parallel
from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.losses import nt_xent, unit
from mmcl_jax.methods import mct, moco, simclr, slip
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Ctx, Encoded, Stream
from tests.conftest import make_mesh

B, F, T = 8, 6, 5
CTX = Ctx(train=True, step=0, rng=jax.random.key(0))


class Tower(nn.Module):
    """A dense layer, and batch normalisation if it is asked for."""

    groups: int = 0

    @nn.compact
    def __call__(self, stream, *, train=False):
        x = nn.Dense(F, name="dense")(stream.data)
        if self.groups:
            x = BatchNorm(self.groups, name="norm")(x, train=train, present=stream.present)
        return Encoded(pooled=x)


def stream(seed, present=None):
    data = np.random.default_rng(seed).normal(size=(B, F)).astype(np.float32)
    return Stream(jnp.asarray(data), present=None if present is None else jnp.asarray(present))


def batch():
    names = ("image", "image/v0", "image/v1", "text", "text/v0", "text/v1")
    tags = (np.random.default_rng(9).random((B, T)) < 0.5).astype(np.uint8)
    return {name: stream(i) for i, name in enumerate(names)} | {"tags": Stream(jnp.asarray(tags))}


def towers(groups=0):
    return {"image": Tower(groups), "text": Tower()}


def start(method, streams):
    return method.init(jax.random.key(1), {k: jax.tree.map(lambda x: x[:1], s) for k, s in streams.items()})


def moves(method, b, extra=None):
    """Which parts of the parameters get a gradient."""
    params, first = start(method, b)
    grads, _ = jax.jit(jax.grad(lambda p: method.loss(p, extra or first, b, CTX), has_aux=True))(params)
    return {k for k, g in grads.items() if any(np.abs(x).max() > 0 for x in jax.tree.leaves(g))}


def full(extra):
    """`extra` as after some steps: its queues are full of something valid."""
    queue = extra["queue"]
    rows = {n: unit(jax.random.normal(jax.random.key(3), x.shape)) for n, x in queue.rows.items()}
    rows |= {"tags": jnp.ones_like(queue.rows["tags"])} if "tags" in rows else {}
    valid = {n: jnp.ones_like(v) for n, v in queue.valid.items()}
    return extra | {"queue": queue.replace(rows=rows, valid=valid)}


def test_simclr_takes_statistics_over_both_views_at_once():
    method = simclr.make({"image": Tower(1)}, embed_dim=4)
    b = {k: batch()[k] for k in ("image/v0", "image/v1")}
    params, extra = start(method, b)
    loss, (new, metrics) = method.loss(params, extra, b, CTX)
    both = Stream(jnp.concatenate([b["image/v0"].data, b["image/v1"].data]))
    z, once = method.project(params, extra, {"image": both}, CTX)
    expected = nt_xent(z["image"][:B], z["image"][B:], scale=1 / 0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, c in zip(jax.tree.leaves(new), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
    assert set(metrics) == {"std", "rank"}


def test_slip_takes_statistics_of_each_view_and_trains_everything():
    method = slip.make(towers(), embed_dim=4, ssl_dim=4, ssl_hidden=6)
    b = {k: v for k, v in batch().items() if k in method.streams}
    params, extra = start(method, b)
    loss, (new, metrics) = method.loss(params, extra, b, CTX)
    np.testing.assert_allclose(loss, metrics["clip"] + metrics["ssl"], rtol=1e-6)
    views = []
    for name in ("image/v0", "image/v1"):
        encoded, _ = method.encode(params, extra, {name: b[name]}, CTX)
        z, extra = method.read("image_ssl", params, extra, encoded[name], CTX)
        views.append(z)
    np.testing.assert_allclose(metrics["ssl"], nt_xent(*views, scale=10.0), rtol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), new, extra))
    assert moves(method, b) == {"image", "text", "image_readout", "text_readout", "image_ssl", "log_scale"}
    alone = slip.make(towers(), embed_dim=4, ssl_dim=4, ssl_hidden=6, ssl_scale=0.0)
    assert "image_ssl" not in moves(alone, b)


@pytest.mark.parametrize("groups", [0, 2])
def test_moco_trains_queries_only_and_keeps_its_keys(groups):
    method = moco.make({"image": Tower(groups)}, embed_dim=4, queue=20, momentum=0.5)
    b = {k: batch()[k] for k in ("image/v0", "image/v1")}
    b["image/v1"] = b["image/v1"].replace(present=jnp.arange(B) != 2)
    params, extra = start(method, b)
    moved = jax.tree.map(lambda x: x + 1.0, params)
    _, (new, _) = method.loss(moved, extra, b, CTX)
    for k, p in zip(jax.tree.leaves(new["key"]["params"]), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(k, p + 0.5, rtol=1e-6)
    assert new["queue"].valid["image"].tolist() == [i != 2 for i in range(20)]
    # The keys are those of the moved twin, whatever the order in which they were encoded.
    present = b["image/v1"].replace(data=jnp.where((jnp.arange(B) != 2)[:, None], b["image/v1"].data, 0))
    z, _ = method.project(new["key"]["params"], extra["key"], {"image": present}, dataclasses.replace(CTX, train=False))
    if not groups:
        np.testing.assert_allclose(new["queue"].rows["image"][3:B], z["image"][3:], rtol=1e-5, atol=1e-6)
    assert moves(method, b) == {"image", "image_readout"}


def test_shuffling_changes_groups_and_so_keys():
    method = moco.make({"image": Tower(2)}, embed_dim=4, queue=20)
    b = {k: batch()[k] for k in ("image/v0", "image/v1")}
    params, extra = start(method, b)
    keys = [
        method.loss(params, extra, b, dataclasses.replace(CTX, rng=jax.random.key(s)))[1][0]["queue"].rows["image"][:B]
        for s in (0, 1)
    ]
    assert np.abs(keys[0] - keys[1]).max() > 1e-3
    whole = moco.make({"image": Tower(1)}, embed_dim=4, queue=20)
    same = [
        whole.loss(params, extra, b, dataclasses.replace(CTX, rng=jax.random.key(s)))[1][0]["queue"].rows["image"][:B]
        for s in (0, 1)
    ]
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)  # one group: its order means nothing


TERMS = {"w_image": {"image", "image_intra"}, "w_tag": {"image", "image_intra"}, "w_text": {"text", "text_intra"},
         "w_image_text": {"image", "image_readout"}, "w_text_image": {"text", "text_readout"}}  # fmt: skip


IMAGES, TEXTS = {"image/v0", "image/v1"}, {"text/v0", "text/v1"}
NEEDS = {"w_image": IMAGES, "w_tag": IMAGES | {"tags"}, "w_text": TEXTS, "w_image_text": {"image/v0", "text/v1"},
         "w_text_image": {"text/v0", "image/v1"}}  # fmt: skip


@pytest.mark.parametrize("term, inter_loss", [*((t, "margin") for t in TERMS), ("w_image_text", "infonce")])
def test_each_term_of_mct_trains_its_queries_alone(term, inter_loss):
    weights = dict.fromkeys(TERMS, 0.0) | {term: 1.0}
    method = mct.make(towers(), embed_dim=4, intra_dim=3, queue=12, tag_threshold=1, inter_loss=inter_loss, **weights)
    assert set(method.streams) == NEEDS[term], "what the term does not look at need not be there"
    b = {k: v for k, v in batch().items() if k not in ("image", "text")}
    assert moves(method, b, full(start(method, b)[1])) == TERMS[term]


def test_mct_keeps_tags_beside_their_keys_and_masks_what_is_missing():
    method = mct.make(towers(), embed_dim=4, intra_dim=3, queue=12, tag_threshold=1)
    b = {k: v for k, v in batch().items() if k in method.streams}
    there = jnp.arange(B) != 5
    b["image/v1"], b["tags"] = b["image/v1"].replace(present=there), b["tags"].replace(present=jnp.arange(B) != 6)
    params, extra = start(method, b)
    assert not extra["queue"].valid["image"].any(), "it starts empty"
    loss, (new, metrics) = method.loss(params, extra, b, CTX)
    np.testing.assert_allclose([metrics[k] for k in ("ii", "tag", "cc", "ic", "ci")], 0, atol=1e-6)
    queue = new["queue"]
    assert queue.pointer == B and queue.valid["image"].tolist() == [i < B and i != 5 for i in range(12)]
    assert queue.valid["text_joint"].tolist() == [i < B for i in range(12)]
    expected = np.array(b["tags"].data)
    expected[[5, 6]] = 0
    np.testing.assert_array_equal(queue.rows["tags"][:B], expected)
    loss, (_, metrics) = method.loss(params, new, b, CTX)
    assert loss > 1 and all(metrics[k] > 0 for k in ("ii", "tag", "cc", "ic", "ci"))
    absent = {k: s.replace(present=jnp.zeros(B, bool)) for k, s in b.items()}
    (loss, _), grads = jax.value_and_grad(lambda p: method.loss(p, new, absent, CTX), has_aux=True)(params)
    assert loss == 0 and all((g == 0).all() for g in jax.tree.leaves(grads))


def test_spaces_of_mct():
    method = mct.make(towers(), embed_dim=4, intra_dim=3, queue=12)
    b = {"image": stream(0), "text": stream(1)}
    params, extra = start(method, b)
    ctx = Ctx()
    assert {k: v.shape for k, v in method.embed(params, extra, b, ctx).items()} == {"image": (B, 4), "text": (B, 4)}
    assert {k: v.shape for k, v in method.embed(params, extra, b, ctx, "text").items()} == {"text": (B, 3)}


@pytest.mark.parametrize(
    "make, wrong, told",
    [
        (simclr.make, dict(temperature=0), "method.temperature=0"),
        (moco.make, dict(momentum=1.5), "momentum=1.5"),
        (slip.make, dict(ssl_temperature=0), "ssl_temperature=0"),
        (mct.make, dict(inter_loss="hinge"), "'hinge'; possible: margin, infonce"),
        (mct.make, dict.fromkeys(TERMS, 0.0), "one must be positive"),
    ],
)
def test_what_cannot_work_is_refused(make, wrong, told):
    with pytest.raises(ValueError, match=told):
        make(towers(), **wrong)


@pytest.mark.parametrize("make", [simclr.make, slip.make, moco.make, mct.make])
def test_chunks_change_nothing_where_encoders_have_no_statistics(make):
    """Statistics of a head are those of the whole batch, also where the encoder sees it in parts."""
    method = make(towers(), embed_dim=4)
    b = batch()
    params, extra = start(method, b)
    extra = full(extra) if "queue" in extra else extra

    def run(chunks):
        ctx = dataclasses.replace(CTX, chunks=chunks)
        return jax.jit(jax.value_and_grad(lambda p: method.loss(p, extra, b, ctx), has_aux=True))(params)

    for one, two in zip(jax.tree.leaves(run(1)), jax.tree.leaves(run(2)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_keys_are_encoded_where_their_rows_are():
    """After the shuffle each device encodes its share of the keys, not all of them."""
    method = moco.make({"image": Tower(4)}, embed_dim=4, queue=20)
    b = {k: batch()[k] for k in ("image/v0", "image/v1")}
    params, extra = start(method, b)
    mesh = make_mesh("4x2")
    ctx = dataclasses.replace(CTX, mesh=mesh, batch_axes=parallel.BATCH_AXES)
    placed = jax.device_put(b, parallel.by_rows(mesh))
    text = jax.jit(lambda p, b: method.loss(p, extra, b, ctx)).lower(params, placed).compile().as_text()
    products = [line for line in text.splitlines() if re.search(r" dot\(", line) and f",{F}]" in line.split("dot(")[0]]
    shapes = {re.search(r"f32\[(\d+),", line)[1] for line in products}
    assert shapes == {"1"}, f"a device encodes {shapes} of {B} rows, and there are 8 devices"


def test_views_of_two_sizes_are_refused():
    method = simclr.make({"image": Tower()}, embed_dim=4)
    b = {"image/v0": stream(0), "image/v1": Stream(jnp.ones((B, F + 1)))}
    params, extra = start(method, {"image": stream(0)})
    with pytest.raises(ConfigError, match=r"two views must have one size, they have image/v0 \(6,\), image/v1 \(7,\)"):
        method.loss(params, extra, b, CTX)
