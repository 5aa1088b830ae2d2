"""Losses of SimCLR, SLIP and MCT against the official classes (MCT: an independent reference), computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.losses import info_nce, nt_xent, queue_margin, queue_nce, queue_tag_nce, unit
from tests.golden.reference import load

IMPLS = ("shared_tile", "chunked", "ring")


def close(actual, expected, atol):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=atol)


def temperatures(g):
    return sorted(k.removesuffix("_temperature") for k in g if k.endswith("_temperature"))


@pytest.mark.parametrize("impl", IMPLS)
def test_nt_xent(ctx, impl):
    g = load("simclr_ntxent")
    assert temperatures(g)
    for t in temperatures(g):

        def loss(x, y, t=t):
            scale = 1 / g[f"{t}_temperature"]
            return ctx.over_batch(nt_xent)(unit(x), unit(y), scale=float(scale), impl=impl, chunk=6)

        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(g["in_z1_raw"], g["in_z2_raw"])
        close(value, g[f"{t}_loss_mean_over_2N"], 5e-6)
        close(2 * value, g[f"{t}_loss_google_tf_sum_of_two_means"], 1e-5)
        close(grads[0], g[f"{t}_grad_z1_raw"], 1e-6)
        close(grads[1], g[f"{t}_grad_z2_raw"], 1e-6)


def test_nt_xent_is_what_slip_computes_over_several_processes():
    """The mean of the ranks' losses is the global one; each rank's gradient is `world_size` times that of its rows."""
    g = load("simclr_ntxent")
    for t in temperatures(g):
        close(g[f"{t}_world4_loss_per_rank"].mean(), g[f"{t}_loss_mean_over_2N"], 1e-9)
        rows = g[f"{t}_world4_grad_z1_raw_per_rank"].reshape(g[f"{t}_grad_z1_raw"].shape)
        close(rows / g["world_size"], g[f"{t}_grad_z1_raw"], 1e-9)


def test_slip(ctx):
    g = load("slip_total")

    def loss(image, text, view1, view2, log_scale):
        clip = ctx.over_batch(info_nce)(unit(image), unit(text), scale=jnp.exp(log_scale))
        ssl = ctx.over_batch(nt_xent)(unit(view1), unit(view2), scale=float(1 / g["ssl_temperature"]))
        return clip + float(g["ssl_scale"]) * ssl, (clip, ssl)

    names = ("image_emb_raw", "text_emb_raw", "aug1_emb_raw", "aug2_emb_raw", "logit_scale_log")
    inputs = [g[f"in_{n}"] for n in names]
    (value, (clip, ssl)), grads = jax.jit(jax.value_and_grad(loss, range(5), has_aux=True))(*inputs)
    close(value, g["loss"], 1e-5)
    close(clip, g["clip_loss"], 1e-5)
    close(ssl, g["ssl_loss"], 1e-5)
    for grad, name in zip(grads, names, strict=True):
        close(grad, g[f"grad_{name}"], 2e-6)


def mct_terms(ctx, g, q_image, q_caption, q_image_joint, q_caption_joint):
    """The five terms, in the order of `weights_ii_tag_cc_ic_ci`."""
    scale, margin = float(1 / g["temperature"]), float(g["margin_alpha"])
    over = ctx.over_batch
    q_ii, q_cc, q_ic, q_ci = (unit(q) for q in (q_image, q_caption, q_image_joint, q_caption_joint))
    tags = dict(queue_tags=g["in_queue_tags"], threshold=float(g["tag_overlap_threshold_eps_strict_gt"]))
    k = {name: jnp.float32(g[f"in_k_{name}"]) for name in ("image", "caption", "caption_for_ic", "image_for_ci")}
    queue = {name: jnp.float32(g[f"in_queue_{name}"]) for name in k}
    return (
        over(queue_nce)(q_ii, k["image"], queue=queue["image"], scale=scale),
        over(queue_tag_nce)(
            q_ii,
            k["image"],
            g["in_tags"],
            queue=queue["image"],
            scale=scale,
            valid=g["in_queue_valid_for_tag_loss"],
            **tags,
        ),
        over(queue_nce)(q_cc, k["caption"], queue=queue["caption"], scale=scale),
        over(queue_margin)(q_ic, k["caption_for_ic"], queue=queue["caption_for_ic"], margin=margin),
        over(queue_margin)(q_ci, k["image_for_ci"], queue=queue["image_for_ci"], margin=margin),
    )


def test_mct(ctx):
    g = load("mct_losses")
    names = ("image", "caption", "image_to_caption", "caption_to_image")
    queries = [g[f"in_q_{n}_raw"] for n in names]

    def loss(*queries):
        terms = mct_terms(ctx, g, *queries)
        weights = np.float32(g["weights_ii_tag_cc_ic_ci"])
        return sum(w * t for w, t in zip(weights, terms, strict=True)), terms

    (value, terms), grads = jax.jit(jax.value_and_grad(loss, range(4), has_aux=True))(*queries)
    np.testing.assert_allclose(value, g["loss_total"], rtol=1e-5)
    for term, name in zip(terms, ("ii", "tag", "cc", "ic", "ci"), strict=True):
        np.testing.assert_allclose(term, g[f"loss_{name}"], rtol=1e-5)
    for grad, name in zip(grads, names, strict=True):
        close(grad, g[f"grad_q_{name}_raw"], 2e-6)


def test_tag_loss_alone(ctx):
    g = load("mct_losses")
    rest = [g[f"in_q_{n}_raw"] for n in ("caption", "image_to_caption", "caption_to_image")]
    grad = jax.jit(jax.grad(lambda q: mct_terms(ctx, g, q, *rest)[1]))(g["in_q_image_raw"])
    close(grad, g["grad_loss_tag_wrt_q_image_raw"], 2e-6)
