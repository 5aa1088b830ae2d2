"""Steps of the official MoCo builder in worlds of 1 and 4 processes: queue, pointer, twin, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import momentum, parallel
from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.methods import moco
from mmcl_jax.types import Ctx, Encoded, Stream
from tests.conftest import make_mesh
from tests.golden.reference import load


class Encoder(nn.Module):
    """The reference's: a dense layer, batch normalisation by process, ReLU."""

    width: int
    groups: int

    @nn.compact
    def __call__(self, stream, *, train=False):
        x = nn.Dense(self.width, name="lin")(stream.data)
        x = BatchNorm(self.groups, name="bn")(x, train=train, present=stream.present)
        return Encoded(pooled=nn.relu(x))


def dense(g, name):
    return {"kernel": g[f"{name}.weight"].T, "bias": g[f"{name}.bias"]}


def parameters(g, prefix):
    norm = {"scale": g[f"{prefix}/bn.weight"], "bias": g[f"{prefix}/bn.bias"]}
    head = {"dense1": dense(g, f"{prefix}/fc.0"), "dense2": dense(g, f"{prefix}/fc.2")}
    return jax.tree.map(jnp.float32, {"image": {"lin": dense(g, f"{prefix}/lin"), "bn": norm}, "image_readout": head})


def statistics(g, prefix):
    """Of one process, or the mean over the processes, as ours are."""

    def one(name):
        return g[name] if name in g else g[f"{name}_per_rank"].mean(0)

    found = {"mean": one(f"{prefix}/bn.running_mean"), "var": one(f"{prefix}/bn.running_var")}
    return jax.tree.map(jnp.float32, {"image": {"bn": found}})


def close(ours, theirs, atol):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


@pytest.mark.parametrize("mesh", ["none", "1", "8", "4x2"])
@pytest.mark.parametrize("world", ["world1", "world4"])
def test_steps(world, mesh, monkeypatch):
    g = load(f"moco_step_{world}")
    steps = sum(k.endswith("_in_xq") for k in g)
    size, groups = int(g["queue_size"]), int(g["world_size"])
    width = g["param_q/lin.bias"].shape[0]
    method = moco.make(
        {"image": Encoder(width, groups)},
        embed_dim=int(g["dim"]),
        temperature=float(g["temperature"]),
        momentum=float(g["momentum"]),
        queue=size,
    )
    params = parameters(g, "param_q")
    queue = momentum.Queue(
        {"image": jnp.asarray(g["queue_before"].T)}, {"image": jnp.ones(size, bool)}, jnp.zeros((), jnp.int32)
    )
    key = {"params": parameters(g, "param_k_before"), "batch_stats": statistics(g, "param_k_before")}
    extra = {"batch_stats": statistics(g, "param_q"), "key": key, "queue": queue}
    devices = None if mesh == "none" else make_mesh(mesh)
    ctx = Ctx(devices, parallel.BATCH_AXES if devices else (), train=True, rng=jax.random.key(0))

    @jax.jit
    def step(params, extra, xq, xk, order):
        # The permutations are those of the reference.
        monkeypatch.setattr(jax.random, "permutation", lambda *_: order)
        batch = {"image/v0": Stream(xq), "image/v1": Stream(xk)}
        return jax.value_and_grad(lambda p: method.loss(p, extra, batch, ctx), has_aux=True)(params)

    told = sum(k.endswith("_grad_param_q_mean_over_ranks/bn.weight") for k in g)
    assert steps > 1 and told
    for s in range(steps):
        inputs = [jnp.asarray(g[f"step{s}_{k}"]) for k in ("in_xq", "in_xk", "idx_shuffle")]
        if devices is not None and len(inputs[0]) % devices.size == 0:
            inputs[:2] = parallel.put_rows([np.asarray(x) for x in inputs[:2]], devices)
        (loss, (extra, _)), grads = step(params, extra, *inputs)
        late = 1 + 4 * s / max(steps - 1, 1)  # errors of float32 grow from step to step
        at = f"step{s}"
        close(loss, np.mean(g.get(f"{at}_loss", g.get(f"{at}_loss_per_rank"))), 5e-6 * late)
        close(extra["queue"].rows["image"].T, g[f"{at}_queue_after"], 1e-5 * late)
        assert int(extra["queue"].pointer) == int(g[f"{at}_queue_ptr_after"].item())
        close(extra["key"]["params"], parameters(g, f"{at}_param_k_after"), 1e-6)
        close(extra["key"]["batch_stats"], statistics(g, f"{at}_param_k_after"), 1e-6 * late)
        if s < told:  # of later steps the reference tells no gradients; the next queue depends on them
            close(grads, parameters(g, f"{at}_grad_param_q_mean_over_ranks"), 2e-6 * late)
        params = jax.tree.map(lambda p, d: p - float(g["sgd_lr_between_steps"]) * d, params, grads)
