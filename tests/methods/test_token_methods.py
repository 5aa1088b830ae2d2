"""What FILIP, DeCLIP and FDT's codebook promise beside their golden values; on tiny random towers that give tokens."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import parallel
from mmcl_jax.encoders import fdt
from mmcl_jax.encoders.fdt import Fdt, use_of_codes
from mmcl_jax.losses import info_nce, masked_tokens, similarities, unit
from mmcl_jax.methods import clip, declip, filip, slip
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Ctx, Encoded, Stream
from tests.conftest import make_mesh

B, N, F, V = 8, 3, 6, 11
CTX = Ctx(train=True, step=0, rng=jax.random.key(0))
FDT = dict(name="fdt", codes=7, temperature=3.0)


class Tower(nn.Module):
    """A dense layer on each token; they are pooled by their mean over real ones."""

    vocab: int = V

    @nn.compact
    def __call__(self, stream, *, train=False):
        x = stream.data["ids"] if isinstance(stream.data, dict) else stream.data
        tokens = nn.Dense(F, name="dense")(x)
        mask = jnp.ones(x.shape[:2], bool) if stream.mask is None else stream.mask
        pooled = (tokens * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
        return Encoded(pooled=pooled, tokens=tokens, mask=stream.mask)


def towers():
    return {"image": Tower(), "text": Tower()}


def stream(seed, mask=False, labels=False):
    rng = np.random.default_rng(seed)
    data = jnp.asarray(rng.normal(size=(B, N, F)), jnp.float32)
    if labels:
        data = {"ids": data, "labels": jnp.asarray(rng.integers(-3, V, (B, N)), jnp.int32)}
    lengths = rng.integers(1, N + 1, (B, 1))
    return Stream(data, jnp.asarray(np.arange(N) < lengths) if mask else None)


def batch():
    texts = {"text": stream(2, True), "text/v0": stream(3, True, True), "text/v1": stream(4, True)}
    return {"image": stream(5), "image/v0": stream(0), "image/v1": stream(1)} | texts


def start(method, b):
    return method.init(jax.random.key(1), {k: jax.tree.map(lambda x: x[:1], s) for k, s in b.items()})


def of(method, b=None):
    return {k: s for k, s in (b or batch()).items() if k in method.streams}


def run(method, b, params, extra, ctx=CTX):
    return jax.jit(jax.value_and_grad(lambda p: method.loss(p, extra, b, ctx), has_aux=True))(params)


def moved(grads):
    return {k for k, g in grads.items() if any(np.abs(x).max() > 0 for x in jax.tree.leaves(g))}


BOTH = {"image", "text", "image_readout", "text_readout"}
TERMS = {
    "w_clip": (BOTH | {"log_scale"}, {"image/v0", "image/v1", "text/v0", "text/v1"}),
    "w_nn": ({"image", "image_readout", "log_scale"}, {"image/v0", "image/v1", "text/v0", "text/v1"}),
    "w_simsiam": ({"image", "image_readout", "image_readout_simsiam"}, {"image/v0", "image/v1", "text/v0", "text/v1"}),
    "w_mlm": ({"text", "text_mlm"}, {"image/v0", "image/v1", "text/v0", "text/v1"}),
}
SMALL = dict(embed_dim=4, queue=20, simsiam_dim=4, simsiam_hidden=3)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_of_declip_trains_what_it_looks_at(term):
    weights = dict.fromkeys(TERMS, 0.0) | {term: 0.7}
    method = declip.make(towers(), **SMALL, **weights)
    parts, streams = TERMS[term]
    assert set(method.streams) == streams
    b = of(method)
    params, extra = start(method, b)
    assert ("queue" in extra) == (term == "w_nn")
    (loss, (_, metrics)), grads = run(method, b, params, extra)
    assert moved(grads) == parts
    np.testing.assert_allclose(loss, 0.7 * metrics[term[2:]], rtol=1e-6)


def test_one_view_of_declip_is_clip():
    method = declip.make(towers(), **SMALL, multi_view=False, w_clip=1.0, w_nn=0.0, w_simsiam=0.0, w_mlm=0.0)
    assert method.streams == ("image/v0", "text/v0")
    b = of(method)
    params, extra = start(method, b)
    z, _ = method.project(params, extra, b, CTX)
    expected = info_nce(z["image/v0"], z["text/v0"], scale=math.exp(3))
    np.testing.assert_allclose(run(method, b, params, extra)[0][0], expected, rtol=1e-5)
    also = declip.make(towers(), **SMALL, multi_view=False)
    assert set(also.streams) == {"image/v0", "image/v1", "text/v0"}, "SimSiam needs the second image all the same"


def test_neighbours_are_those_of_earlier_batches():
    """The queue is asked before this batch's texts enter it, the second view's first; absent ones are not valid."""
    method = declip.make(towers(), **SMALL)
    b = of(method)
    b["text/v1"] = b["text/v1"].replace(present=jnp.arange(B) != 2)
    params, extra = start(method, b)
    (_, (new, first)), _ = run(method, b, params, extra)
    z, _ = method.project(params, extra, b, CTX)
    rows, valid = new["queue"].rows["text"], new["queue"].valid["text"]
    there = np.arange(B) != 2
    np.testing.assert_allclose(rows[:B][there], z["text/v1"][there], atol=1e-6)
    np.testing.assert_allclose(rows[B : 2 * B], z["text/v0"], atol=1e-6)
    assert valid.tolist() == [i != 2 for i in range(20)] and new["queue"].pointer == 2 * B
    # Now each text finds itself: the loss of neighbours is that of the texts, in one direction.
    (_, (again, second)), _ = run(method, b, params, new)
    one_way = [
        info_nce(z[i], z[t], None if t == "text/v0" else jnp.asarray(there), scale=math.exp(3), both=False)
        for t in ("text/v0", "text/v1")
        for i in ("image/v0", "image/v1")
    ]
    np.testing.assert_allclose(second["nn"], np.mean(one_way), rtol=1e-4)
    assert abs(first["nn"] - second["nn"]) > 1e-3
    # Of the second batch's first texts four fit and the others are dropped; its second texts are written at the start.
    assert again["queue"].pointer == B
    np.testing.assert_allclose(again["queue"].rows["text"][:B], z["text/v0"], atol=1e-6)


def test_masked_words_see_no_gradient_from_places_that_were_not_hidden():
    method = declip.make(towers(), **SMALL, w_clip=0.0, w_nn=0.0, w_simsiam=0.0, w_mlm=1.0)
    b = of(method)
    params, extra = start(method, b)
    hidden = b["text/v0"].data["labels"] >= 0

    def loss(ids):
        words = {"ids": ids, "labels": b["text/v0"].data["labels"]}
        return method.loss(params, extra, b | {"text/v0": b["text/v0"].replace(data=words)}, CTX)[0]

    grad = jax.grad(loss)(b["text/v0"].data["ids"])
    np.testing.assert_array_equal(jnp.abs(grad).max(-1) > 0, hidden)
    none = b["text/v0"].replace(data=b["text/v0"].data | {"labels": jnp.full((B, N), -100)})
    assert method.loss(params, extra, b | {"text/v0": none}, CTX)[0] == 0, "nothing hidden: 0, not NaN"


METHODS = {
    "clip+fdt": lambda: clip.make(towers(), embed_dim=4, readout=FDT),
    "slip+fdt": lambda: slip.make(towers(), embed_dim=4, ssl_dim=4, ssl_hidden=6, readout=FDT),
    "filip": lambda: filip.make(towers(), embed_dim=4),
    "filip, top": lambda: filip.make(towers(), embed_dim=4, top=2),
    "filip+fdt": lambda: filip.make(towers(), embed_dim=4, readout=FDT),
    "declip": lambda: declip.make(towers(), **SMALL),
    "declip+fdt": lambda: declip.make(towers(), **SMALL, readout=FDT),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_missing_and_what_is_encoded_in_parts(name):
    method = METHODS[name]()
    b = of(method)
    params, extra = start(method, b)
    whole = run(method, b, params, extra)
    assert np.isfinite(whole[0][0]) and moved(whole[1]) >= {"image", "text"}
    parts = run(method, b, params, extra, dataclasses.replace(CTX, chunks=2))
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    # Absent rows: whatever stands there, value, gradient and what is kept are the same.
    there = jnp.arange(B) < 5

    def fill(x, value):
        return jnp.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, value) if x.dtype == jnp.float32 else x

    results = []
    for value in (0.0, 7.0):
        some = {k: Stream(jax.tree.map(lambda x, v=value: fill(x, v), s.data), s.mask, there) for k, s in b.items()}
        results.append(run(method, some, params, extra))
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    absent = {k: s.replace(present=jnp.zeros(B, bool)) for k, s in b.items()}
    (loss, (kept, _)), grads = run(method, absent, params, extra)
    assert loss == 0 and all((g == 0).all() for g in jax.tree.leaves(grads))
    for one, two in zip(
        jax.tree.leaves(extra.get("batch_stats")), jax.tree.leaves(kept.get("batch_stats")), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_score_is_what_the_loss_compares():
    method = filip.make(towers(), embed_dim=4)
    b = {"image": stream(0), "text": stream(1, True)}
    params, extra = start(method, b)
    items = method.items(params, extra, b, Ctx())
    assert items["image"]["tokens"].shape == (B, N, 4) and items["text"]["mask"].shape == (B, N)
    x, y = items["image"], items["text"]
    s_x, s_y = similarities(x["tokens"], y["tokens"], x["mask"], y["mask"])
    np.testing.assert_allclose(method.score(params, extra, x, y, Ctx()), s_x, atol=1e-6)
    np.testing.assert_allclose(method.score(params, extra, y, x, Ctx()), s_y.T, atol=1e-6)
    assert np.abs(s_x - s_y).max() > 0.01
    z = method.embed(params, extra, b, Ctx())
    np.testing.assert_allclose(jnp.linalg.norm(z["text"], axis=1), 1, rtol=1e-5)
    padded = b["text"].replace(data=jnp.where(b["text"].mask[..., None], b["text"].data, 99.0))
    again = method.embed(params, extra, {"text": padded}, Ctx())["text"]
    np.testing.assert_allclose(again, z["text"], atol=1e-5)


def test_modalities_share_one_codebook():
    method = METHODS["clip+fdt"]()
    b = of(method)
    params, extra = start(method, b)
    assert params["codebook"].shape == (7, 4) and "codebook" not in params["image_readout"]
    grad = run(method, b, params, extra)[1]["codebook"]
    parts = []
    for frozen in ("image", "text"):  # the gradient is the sum of what comes from either side

        def loss(codebook, frozen=frozen):
            encoded, _ = method.encode(params, extra, b, CTX)
            z = {}
            for name in ("image", "text"):
                codes = params["codebook"] if name == frozen else codebook
                z[name], _ = method.read(f"{name}_readout", params | {"codebook": codes}, extra, encoded[name], CTX)
            return info_nce(z["image"], z["text"], scale=1 / 0.07)

        parts.append(jax.grad(loss)(params["codebook"]))
    np.testing.assert_allclose(grad, sum(parts), rtol=1e-4, atol=1e-5)


def test_use_of_codes():
    """Weights are counted of rows that are there, in training only; a code that is not active grows idle."""
    module = Fdt(4, 7, temperature=1.0)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(B, N, F)), jnp.float32) * 3
    there = jnp.arange(B) < 3
    tokens = jnp.where(there[:, None, None], tokens, jnp.nan)  # whatever an encoder makes of a placeholder
    encoded = Encoded(tokens[:, 0], tokens)
    variables = module.init(jax.random.key(0), encoded)
    (_, kept) = module.apply(variables, encoded, train=True, present=there, mutable=["batch_stats", "intermediates"])
    weights = np.asarray(kept["intermediates"]["weights"][0])[:3]
    stats = kept["batch_stats"]
    np.testing.assert_allclose(stats["usage"], 0.01 * weights.mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(stats["active"], (weights > 0).sum(1).mean(), rtol=1e-6)
    np.testing.assert_array_equal(stats["idle"], (weights == 0).all(0))
    for _ in range(100):
        _, new = module.apply(variables | {"batch_stats": stats}, encoded, train=True, present=there, mutable=True)
        stats = new["batch_stats"]
    found = use_of_codes({"batch_stats": {"image_readout": stats, "image": {"mean": jnp.zeros(3)}}})
    assert set(found) == {"image_codes", "image_entropy", "image_dead"}
    np.testing.assert_allclose(found["image_dead"], (weights == 0).all(0).mean(), rtol=1e-6)
    p = weights.mean(0) / weights.mean()
    p = p / p.sum()
    np.testing.assert_allclose(found["image_entropy"], -(p[p > 0] * np.log(p[p > 0])).sum(), rtol=1e-3)
    _, same = module.apply(variables | {"batch_stats": stats}, encoded, mutable=True)
    np.testing.assert_array_equal(same["batch_stats"]["idle"], stats["idle"])


def test_temperature_falls_in_steps():
    """T = max(T0 * w^(step // every), 0.01): the same weights as with that temperature from the start."""
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(B, N, F)), jnp.float32)
    encoded = Encoded(tokens[:, 0], tokens)
    falling = Fdt(4, 7, temperature=8.0, temperature_decay=0.5, temperature_every=10)
    variables = falling.init(jax.random.key(0), encoded)
    for step, temperature in ((0, 8.0), (9, 8.0), (10, 4.0), (25, 2.0), (10_000, 0.01)):
        expected = Fdt(4, 7, temperature=temperature).apply(variables, encoded)
        np.testing.assert_allclose(falling.apply(variables, encoded, step=jnp.int32(step)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make, wrong, told",
    [
        (declip.make, dict(w_nn=-1.0), "none may be negative"),
        (declip.make, dict.fromkeys(TERMS, 0.0), "one must be positive"),
        (declip.make, dict(queue=0), "queue=0 must be positive"),
        (filip.make, dict(top=-1), "top=-1"),
        (filip.make, dict(readout="linear"), "'linear' gives one vector"),
        (filip.make, dict(readout=FDT | {"pool": "max"}), "'fdt' gives one vector"),
        (clip.make, dict(readout="tokens"), "'tokens' gives a vector of each token"),
        (declip.make, dict(readout=FDT | {"pool": "none"}), "'fdt' gives a vector of each token"),
        (clip.make, dict(readout=FDT | {"attention": "softmin"}), "'softmin'; possible: sparsemax, softmax"),
        (clip.make, dict(readout=FDT | {"temperature": 0}), "temperature=0 must be positive"),
        (clip.make, dict(scale_cap=-1.0), "scale_cap=-1.0"),
        (clip.make, dict(readout="fdd"), "did you mean 'fdt'"),
        (clip.make, dict(readout=dict(name="fdt", code=3)), "did you mean 'method.readout.codes'"),
        (clip.make, dict(scale_min=30.0), "must lie between scale_min=30.0"),
    ],
)
def test_what_cannot_work_is_refused(make, wrong, told):
    with pytest.raises(ValueError, match=told):
        make(towers(), **wrong)


def test_declip_says_what_hides_words():
    method = declip.make(towers(), **SMALL)
    b = of(method) | {"text/v0": stream(3, True)}
    params, extra = start(method, b)
    with pytest.raises(ConfigError, match=r"end its ops with mlm\(.15\)"):
        method.loss(params, extra, b, CTX)


def test_many_codes_are_visited_in_parts(monkeypatch):
    """Value, gradients and statistics are those of all codes at once; the logits of all are never there."""
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(B, N, F)), jnp.float32)
    mask = jnp.asarray(np.arange(N) < np.arange(1, B + 1)[:, None])

    def run(pool, tokens, mask, at_once):
        monkeypatch.setattr(fdt, "AT_ONCE", at_once)
        module, encoded = Fdt(4, 50, pool=pool, temperature=2.0), Encoded(tokens[:, 0], tokens, mask)
        variables = module.init(jax.random.key(0), encoded)

        def loss(params, tokens):
            encoded = Encoded(tokens[:, 0], tokens, mask)
            out, new = module.apply(variables | {"params": params}, encoded, train=True, mutable=["batch_stats"])
            return jnp.square(out).sum(), new

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], tokens)

    for pool in ("max", "mean", "sum"):
        for one, two in zip(*(jax.tree.leaves(run(pool, tokens, mask, k)) for k in (50, 8)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    many = jnp.asarray(np.random.default_rng(0).normal(size=(64, 100, F)), jnp.float32)
    text = jax.jit(lambda t: run("max", t, None, 8)).lower(many).compile().as_text()
    assert "f32[64,100,8]" in text and "f32[64,100,50]" not in text and "f32[64,100,56]" not in text


def test_words_are_guessed_a_few_places_at_a_time():
    rng = np.random.default_rng(0)
    tokens, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, 19, F), (F, V)))
    labels, bias = jnp.asarray(rng.integers(-4, V, (B, 19))), jnp.asarray(rng.normal(size=V), jnp.float32)

    def plain(tokens, kernel, bias):
        nll = -jax.nn.log_softmax(tokens @ kernel + bias)
        own = jnp.take_along_axis(nll, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
        return jnp.where(labels >= 0, own, 0).sum() / (labels >= 0).sum()

    for mesh in (None, "8", "4x2"):
        ctx = CTX if mesh is None else dataclasses.replace(CTX, mesh=make_mesh(mesh), batch_axes=parallel.BATCH_AXES)

        def loss(tokens, kernel, bias, ctx=ctx):
            return ctx.over_batch(masked_tokens)(tokens, labels, kernel=kernel, bias=bias)

        ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(tokens, kernel, bias) for f in (loss, plain))
        for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_a_cap_of_the_scale_keeps_its_gradient():
    method = clip.make(towers(), embed_dim=4, scale_max=math.exp(6), scale_cap=100.0)
    scale, slope = jax.value_and_grad(lambda s: method.scale({"log_scale": s}))(jnp.float32(5.0))
    np.testing.assert_allclose([scale, slope], [100, math.exp(5)], rtol=1e-6)
    clamped, _ = method.after_update({"log_scale": jnp.float32(7)}, {}, CTX)
    np.testing.assert_allclose(clamped["log_scale"], 6, rtol=1e-6)


def test_linear_tokens_are_projected_one_by_one():
    method = filip.make(towers(), embed_dim=4, readout=dict(name="tokens", bias=True))
    b = of(method)
    params, extra = start(method, b)
    encoded, _ = method.encode(params, extra, {"image": b["image"]}, Ctx())
    projection = params["image_readout"]["projection"]
    expected = unit(encoded["image"].tokens @ projection["kernel"] + projection["bias"])
    items = method.items(params, extra, {"image": b["image"]}, Ctx())
    np.testing.assert_allclose(items["image"]["tokens"], expected, atol=1e-6)
