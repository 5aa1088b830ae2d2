"""Values and gradients of open_clip's ClipLoss and SigLipLoss; the references were computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.losses import info_nce, sigmoid, unit
from tests.golden.reference import load


def close(actual, expected, atol):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=atol)


def test_clip_loss(ctx):
    g = load("clip_loss")

    def loss(x, y, log_scale):
        return ctx.over_batch(info_nce)(unit(x), unit(y), scale=jnp.exp(log_scale))

    inputs = [g[k] for k in ("in_image_emb_raw", "in_text_emb_raw", "in_logit_scale_log")]
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)
    close(value, g["loss"], 1e-5)
    close(grads[0], g["grad_image_emb_raw"], 2e-6)
    close(grads[1], g["grad_text_emb_raw"], 2e-6)
    close(grads[2], g["grad_logit_scale_log"], 2e-6)


def test_clip_loss_of_free_unit_vectors(ctx):
    g = load("clip_loss")

    def loss(x, y):
        return ctx.over_batch(info_nce)(x, y, scale=jnp.float32(g["logit_scale"]))

    grads = jax.jit(jax.grad(loss, (0, 1)))(jnp.float32(g["image_emb_norm"]), jnp.float32(g["text_emb_norm"]))
    close(grads[0], g["grad_image_emb_norm"], 2e-6)
    close(grads[1], g["grad_text_emb_norm"], 2e-6)


def test_clip_loss_is_what_open_clip_computes_over_several_processes():
    """The mean over ranks of the exact setting (local loss, gather with gradient) is the global loss."""
    g = load("clip_loss")
    per_rank = g["world4_local1_gradgather1_grad_image_emb_raw_per_rank"]
    expected = per_rank.reshape(g["grad_image_emb_raw"].shape) / g["world_size"]

    def loss(x):
        return info_nce(unit(x), unit(g["in_text_emb_raw"]), scale=jnp.exp(g["in_logit_scale_log"]))

    value, grad = jax.value_and_grad(loss)(jnp.asarray(g["in_image_emb_raw"]))
    close(value, g["world4_local1_gradgather1_loss_per_rank"].mean(), 1e-5)
    close(grad, expected, 2e-6)


def test_siglip_loss(ctx):
    g = load("siglip_loss")

    def loss(x, y, log_scale, bias):
        return ctx.over_batch(sigmoid)(unit(x), unit(y), scale=jnp.exp(log_scale), bias=bias)

    inputs = [g[k] for k in ("in_image_emb_raw", "in_text_emb_raw", "in_t_prime_log", "in_bias")]
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*inputs)
    close(value, g["loss"], 2e-5)
    for grad, name in zip(grads, ("image_emb_raw", "text_emb_raw", "t_prime_log", "bias"), strict=True):
        close(grad, g[f"grad_{name}"], 2e-6)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_rows_that_do_not_divide_are_padded_absent(ctx, rows):
    """On any number of devices the first rows alone give what one device makes of them."""
    g = load("clip_loss")
    x, y = unit(g["in_image_emb_raw"][:rows]), unit(g["in_text_emb_raw"][:rows])
    expected = jax.value_and_grad(lambda x: info_nce(x, y, scale=10.0))(x)
    actual = jax.jit(jax.value_and_grad(lambda x: ctx.over_batch(info_nce)(x, y, scale=10.0)))(x)
    close(actual[0], expected[0], 1e-6)
    close(actual[1], expected[1], 1e-6)
