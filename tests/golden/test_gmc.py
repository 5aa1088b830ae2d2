"""GMC's losses and its latent of what is there, against the official class; computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.losses import unit
from mmcl_jax.methods.gmc import Gmc, mean_absolute_error
from mmcl_jax.types import Ctx, Stream
from tests.golden.reference import load
from tests.golden.stubs import Given

GOLDEN = load("gmc_loss")
CASES = range(int(GOLDEN["n_cases"]))


class Together(Given):
    """Gives the joint vector that the stub of each modality carries along."""

    def __call__(self, stream, *, train=False):
        return super().__call__(Stream(stream.data["m0"].data["joint"]), train=train)


def case(i):
    return {k.removeprefix(f"case{i}_"): v for k, v in GOLDEN.items() if k.startswith(f"case{i}_")}


def method(g, negatives="all"):
    names = [f"m{m}" for m in range(len(g["raw_modalities"]))]
    encoders = {name: Given() for name in names} | {"joint": Together()}
    how = dict(temperature=float(g["temperature"]), negatives=negatives, joint="all", target="")
    return Gmc(encoders=encoders, readouts={name: Linear(0) for name in encoders}, **how)


def batch(g, modalities, joint, mask=None):
    there = [None if mask is None else jnp.asarray(mask[:, m]) for m in range(len(modalities))]
    data = [{"pooled": x, "joint": joint} for x in modalities]
    return {f"m{m}": Stream(d, present=p) for m, (d, p) in enumerate(zip(data, there, strict=True))}


@pytest.mark.parametrize("negatives", ["all", "joint"])
@pytest.mark.parametrize("number", CASES)
def test_loss(ctx, number, negatives):
    g = case(number)
    name = {"all": "infonce", "joint": "joints_as_negatives"}[negatives]
    gmc = method(g, negatives)
    params, _ = gmc.init(jax.random.key(0), batch(g, g["raw_modalities"], g["raw_joint"]))

    def loss(modalities, joint):
        value, (_, metrics) = gmc.loss(params, {}, batch(g, modalities, joint), ctx)
        return value, metrics

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(g["raw_modalities"], g["raw_joint"])
    np.testing.assert_allclose(value[0], g[f"{name}_loss"], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(grads[0], g[f"{name}_grad_raw_modalities"], rtol=1e-4, atol=5e-6)
    np.testing.assert_allclose(grads[1], g[f"{name}_grad_raw_joint"], rtol=1e-4, atol=1e-5)
    if negatives == "all":
        terms = [value[1][f"m{m}"] for m in range(int(g["num_modalities"]))]
        np.testing.assert_allclose(terms, g["infonce_per_modality_loss"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("number", CASES)
def test_supervised(ctx, number):
    g = case(number)

    def loss(said):
        return ctx.over_batch(mean_absolute_error)(said, g["supervised_target"])

    value, grad = jax.jit(jax.value_and_grad(loss))(g["supervised_prediction"])
    np.testing.assert_allclose(value, g["supervised_l1"], rtol=1e-6)
    np.testing.assert_allclose(value + g["infonce_loss"], g["supervised_total_loss"], rtol=1e-6)
    np.testing.assert_allclose(grad, g["supervised_grad_prediction"], atol=1e-7)


@pytest.mark.parametrize("number", CASES)
def test_latent_of_what_is_there(number):
    g = case(number)
    mask, gmc = g["missing_available_mask"], method(g)
    given = batch(g, g["raw_modalities"], g["raw_joint"], mask)
    params, _ = gmc.init(jax.random.key(0), given)
    fused, present = gmc.fuse(params, {}, given, Ctx())
    complete = mask.all(1)
    np.testing.assert_allclose(fused[~complete], g["missing_latent"][~complete], atol=1e-6)
    np.testing.assert_allclose(fused[complete], unit(g["raw_joint"])[complete], atol=1e-6)
    np.testing.assert_array_equal(present, mask.any(1))
