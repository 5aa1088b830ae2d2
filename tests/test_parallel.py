"""Chunks, shared weights and what the compiler makes of them."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from mmcl_jax import config as configs
from mmcl_jax import method as methods
from mmcl_jax import named, parallel
from mmcl_jax.bench import hlo
from mmcl_jax.build import build
from mmcl_jax.losses import info_nce
from mmcl_jax.types import Ctx, Encoded, Stream
from tests.conftest import make_mesh

ROWS = 32


def model(repository, *overrides):
    """A tiny CLIP, its parameters and a batch."""
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
    method = methods.build(config)
    rng = np.random.default_rng(0)
    present = rng.permutation(ROWS) >= 0.3 * ROWS
    batch = {
        "image": Stream(jnp.asarray(rng.normal(size=(ROWS, 16, 16, 3)), jnp.float32), None, jnp.asarray(present)),
        "text": Stream(jnp.asarray(rng.integers(3, 300, (ROWS, 12)), jnp.int32), jnp.ones((ROWS, 12), bool)),
    }
    params, extra = jax.jit(method.init)(jax.random.key(0), batch)
    return method, params, extra, batch


def compile_gradient(method, extra, mesh, chunks):
    ctx = Ctx(mesh, parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1), chunks=chunks)
    return jax.jit(jax.value_and_grad(lambda p, batch: method.loss(p, extra, batch, ctx)[0]))


def close(a, b, tolerance=1e-5):
    """Against the largest gradient: that of the keys' biases is zero but for rounding."""
    peak = max(float(np.abs(g).max()) for g in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * peak)


@pytest.mark.parametrize("name", ["1", "8", "4x2"])
def test_chunks_change_nothing(repository, name):
    method, params, extra, batch = model(repository, "encoders.image.depth=1", "encoders.text.depth=1")
    mesh = make_mesh(name)
    whole = compile_gradient(method, extra, make_mesh("1"), 1)(params, batch)
    placed = jax.device_put(params, parallel.state_sharding(params, mesh))
    rows = jax.device_put(batch, parallel.by_rows(mesh))
    value, gradient = compile_gradient(method, extra, mesh, 4)(placed, rows)
    np.testing.assert_allclose(value, whole[0], rtol=1e-6)
    close(gradient, whole[1])


@pytest.mark.parametrize("name, scan", [("1", False), ("8", False), ("8", True)])
def test_chunks_with_dropout_are_exact(repository, name, scan):
    """The backward pass drops what the forward pass dropped: the gradient is that of plain autodiff over the chunks."""
    depth = 2 if scan else 1
    changes = ("dropout=0.3", f"depth={depth}", f"scan={scan}")
    dropout = [f"encoders.{m}.{change}" for m in ("image", "text") for change in changes]
    method, params, extra, batch = model(repository, *dropout)
    mesh, n = make_mesh(name), 2
    value, gradient = compile_gradient(method, extra, mesh, n)(params, jax.device_put(batch, parallel.by_rows(mesh)))

    def plainly(params, batch):
        def one(part):
            rows, i = part
            ctx = Ctx(train=True, rng=jax.random.fold_in(jax.random.key(1), i))
            return method.project(params, extra, rows, ctx)[0]

        split = jax.tree.map(lambda x: x.reshape(n * mesh.size, -1, *x.shape[1:]), batch)
        z = jax.lax.map(one, (split, jnp.arange(n * mesh.size)))
        z = {name: v.reshape(ROWS, -1) for name, v in z.items()}
        return info_nce(z["image"], z["text"], batch["image"].present, scale=jnp.exp(params["log_scale"]))

    other = jax.jit(jax.value_and_grad(plainly))(params, batch)
    np.testing.assert_allclose(value, other[0], rtol=1e-6)
    close(gradient, other[1])
    kept, _ = jax.jit(lambda: method.loss(params, extra, batch, Ctx()))()
    assert abs(float(kept) - float(value)) > 1e-3, "nothing was dropped"


def test_no_all_reduce_inside_the_loop(repository):
    """Where weights are whole on each device, their gradients are summed once, behind the loop."""
    method, params, extra, batch = model(repository)
    compiled = compile_gradient(method, extra, make_mesh("8"), 4).lower(params, batch).compile()
    found = hlo.collectives(compiled.as_text())
    assert any(c.kind == "all-reduce" for c in found)
    assert not [c for c in found if c.in_loop]


class Statistics(nn.Module):
    """An encoder with batch statistics."""

    @nn.compact
    def __call__(self, stream, *, train=False):
        x = nn.BatchNorm(use_running_average=not train)(stream.data.reshape(len(stream.data), -1))
        return Encoded(pooled=nn.Dense(32)(x))


def make(**_):
    return Statistics()


def test_chunks_refuse_batch_statistics(repository, tmp_path):
    overrides = ["batch=32", "chunks=2", f"encoders.image.name={__name__}"]
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
    with pytest.raises(named.ConfigError, match="encoders.image keeps batch_stats.*chunks=1"):
        build(config, tmp_path, make_mesh("1"))


@pytest.mark.parametrize("chunks, fits", [(3, False), (4, True)])
def test_chunks_must_divide(repository, chunks, fits):
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", ["batch=64", f"chunks={chunks}"])
    if fits:
        configs.validate(config, 8)
    else:
        with pytest.raises(named.ConfigError, match="chunks=3 does not divide the 8 rows.*chunks=2"):
            configs.validate(config, 8)


def parts(repository, workdir, mesh, *overrides):
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
    configs.validate(config, mesh.size)
    return config, build(config, workdir, mesh)


def specs(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parallel.path_name(path): tuple(s.spec) for path, s in leaves}


def test_rules_say_where_weights_live_and_their_moments_follow(repository, tmp_path):
    rules = "mesh.rules=('text/tokens/embedding: 1', 'image/.*bias: none', 'image/patches: 3')"
    _, built = parts(repository, tmp_path, make_mesh("4x2"), rules, "optim.average=0.9")
    params, moments = specs(built.sharding.params), specs(built.sharding.opt_state)
    assert params["text/tokens/embedding"] == (None, "fsdp")
    assert params["image/patches/kernel"] == (None, None, None, "fsdp")
    assert params["image/transformer/block0/mlp/in/bias"] == ()
    assert params["text/transformer/block0/mlp/in/bias"] == ("fsdp",), "the largest that divides, where no rule says"
    assert params["log_scale"] == ()
    for place in ("inner/1/mu", "inner/1/nu", "average"):
        assert {k.removeprefix(f"{place}/"): v for k, v in moments.items() if k.startswith(f"{place}/")} == params


@pytest.mark.parametrize(
    "rule, message",
    [
        ("text/tokens/embeding: 1", "matches no parameter"),
        ("text/tokens/embedding: 2", "not there to be spread"),
        ("text: first", "can't read"),
    ],
)
def test_rules_that_cannot_work(repository, tmp_path, rule, message):
    with pytest.raises(named.ConfigError, match=message):
        parts(repository, tmp_path, make_mesh("4x2"), f"mesh.rules=({rule!r},)")


def test_initialisation_happens_sharded(repository, tmp_path):
    """No device ever holds the whole of a shared weight: its shape does not occur in the compiled program."""
    mesh = parallel.make_mesh({"data": 1, "fsdp": 8})
    _, built = parts(repository, tmp_path, mesh)
    text = jax.jit(built.init, out_shardings=built.sharding).lower(jax.random.key(0)).compile().as_text()
    shapes = {tuple(x.shape) for x in jax.tree.leaves(built.shapes.params) if x.size >= 1024}
    shared = {
        tuple(s.shard_shape(x.shape))
        for x, s in zip(jax.tree.leaves(built.shapes.params), jax.tree.leaves(built.sharding.params), strict=True)
        if x.size >= 1024
    }
    assert len(shapes) > 4
    found = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert not found & (shapes - shared), found & (shapes - shared)
    assert shared <= found


def test_shared_weights_are_not_kept_whole(capsys):
    """What the backward pass keeps are shares; it gathers again. Also where the computation is in another dtype."""
    mesh = parallel.make_mesh({"data": 1, "fsdp": 8})
    weights = jax.device_put([jnp.ones((64, 64))] * 4, jax.sharding.NamedSharding(mesh, jax.P("fsdp")))
    rows = jax.device_put(jnp.ones((8, 64)), parallel.by_rows(mesh))

    def encode(weights, rows):
        for w in weights:
            rows = jnp.tanh(rows @ w.astype(jnp.bfloat16).astype(jnp.float32))
        return rows, ()

    def loss(weights, rows):
        return parallel.with_whole_weights(encode, mesh)(weights, rows)[0].sum()

    print_saved_residuals(loss, weights, rows)
    kept = [line for line in capsys.readouterr().out.splitlines() if "[64,64]" in line]
    assert len(kept) == 4 and all("from the argument weights" in line for line in kept), kept
    text = jax.jit(jax.grad(loss)).lower(weights, rows).compile().as_text()
    assert len([c for c in hlo.collectives(text) if c.kind == "all-gather"]) >= 7, "the last one's serves both passes"
    ours, plain = jax.jit(jax.grad(loss))(weights, rows), jax.grad(lambda w: encode(w, rows)[0].sum())(weights)
    close(ours, plain)


@pytest.mark.parametrize("chunks", [1, 4])
def test_shared_weights_travel_and_activations_stay(repository, chunks):
    """Rows are encoded where they are: all that moves are weights, their gradients and the embeddings."""
    method, params, extra, batch = model(repository, "encoders.image.depth=1", "encoders.text.depth=1")
    batch = jax.tree.map(lambda x: jnp.tile(x, (16, *[1] * (x.ndim - 1))), batch)  # 512 rows: activations are large
    mesh = parallel.make_mesh({"data": 1, "fsdp": 8})
    placed = jax.device_put(params, parallel.state_sharding(params, mesh))
    rows = jax.device_put(batch, parallel.by_rows(mesh))
    compiled = compile_gradient(method, extra, mesh, chunks).lower(placed, rows).compile()
    found = hlo.collectives(compiled.as_text())
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    embeddings = 512 * 32 * 4
    assert weights < sum(c.output_bytes for c in found) < 4 * weights + 4 * embeddings
    assert not [c for c in found if c.kind == "all-to-all" and c.output_bytes > embeddings]
