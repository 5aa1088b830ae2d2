"""FILIP's loss with masked tokens (the paper's formula), and with the token selection of DeCLIP's repository."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.losses import plan, similarities, tokenwise_nce, unit
from mmcl_jax.losses.tokenwise import _Side, _sides, _similarities
from tests.golden.reference import load


def close(actual, expected, atol):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("impl", plan.IMPLS)
def test_masked(ctx, impl):
    g = load("filip_masked")

    def loss(x, y, log_scale):
        mask = g["in_text_mask_1_is_valid"]
        scale = jnp.exp(log_scale)
        return ctx.over_batch(tokenwise_nce)(unit(x), unit(y), None, mask, scale=scale, impl=impl, chunk=2)

    inputs = [g[f"in_{n}"] for n in ("image_tokens_raw", "text_tokens_raw", "logit_scale_log")]
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)
    close(value, g["loss"], 5e-6)
    close(grads[0], g["grad_image_tokens_raw"], 1e-6)
    close(grads[1], g["grad_text_tokens_raw"], 1e-6)
    close(grads[2], g["grad_logit_scale_log"], 1e-6)


def test_masked_similarities():
    g = load("filip_masked")
    x, y, mask = unit(g["in_image_tokens_raw"]), unit(g["in_text_tokens_raw"]), g["in_text_mask_1_is_valid"]
    s_x, s_y = similarities(x, y, None, mask)
    close(s_x, g["sim_image_to_text"], 1e-6)
    close(s_y.T, g["sim_text_to_image"], 1e-6)
    assert np.abs(s_x - s_y).max() > 0.01, "they are not each other's transposes"
    wrong = g["WRONG_sim_image_to_text_if_padding_not_masked"]
    close(similarities(x, y)[0], wrong, 1e-6)
    assert np.abs(s_x - wrong).max() > 0.01


@pytest.mark.parametrize("impl", plan.IMPLS)
def test_selected(ctx, impl):
    g = load("filip_declip_repo_topk")

    def loss(x, y, log_scale):
        how = {"top": int(g["top_k"]), "impl": impl, "chunk": 2}
        return ctx.over_batch(tokenwise_nce)(unit(x), unit(y), scale=jnp.exp(log_scale), **how)

    names = ("image_tokens_mapped", "text_tokens_mapped", "logit_scale_dense_log")
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*[g[f"in_{n}"] for n in names])
    close(value, g["loss"], 2e-5)
    for grad, name in zip(grads, names, strict=True):
        close(grad, g[f"grad_{name}"], 2e-6)


def test_selected_logits():
    g = load("filip_declip_repo_topk")
    x, y = unit(g["in_image_tokens_mapped"]), unit(g["in_text_tokens_mapped"])
    x, y, _ = _sides(x, y, None, None, None, int(g["top_k"]), None)
    np.testing.assert_array_equal(x.keys, g["selected_image_token_indices"])
    np.testing.assert_array_equal(y.keys, g["selected_text_token_indices"])
    scale = np.exp(g["in_logit_scale_dense_log"])
    s_x, s_y = _similarities(x, y)
    close(scale * s_x, g["logits_per_image"], 2e-5)
    close(scale * s_y.T, g["logits_per_text"], 2e-5)
    everything = _similarities(_Side(x.tokens, None), _Side(y.tokens, None))[0]
    assert np.abs(scale * everything - g["logits_per_image"]).max() > 0.01, "a selection is something else"
