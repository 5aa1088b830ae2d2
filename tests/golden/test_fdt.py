"""Sparsemax, FDT's readout and CLIP+FDT against the official modules, computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.encoders.fdt import Fdt
from mmcl_jax.encoders.sparsemax import sparsemax
from mmcl_jax.methods import clip
from mmcl_jax.types import Ctx, Encoded, Stream
from tests.golden.reference import load
from tests.golden.stubs import Given

FEATURE = {"img": "patch", "txt": "word"}


def close(actual, expected, atol):
    # rtol: the last digits of float32, in which processors differ where gradients are as large as 15.
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6, atol=atol)


def head(g, modality):
    """The parameters of a query head; the official names number the layers, PyTorch's weights are [out, in]."""
    part = {k.split("/")[1]: v for k, v in g.items() if k.startswith(f"param_{modality}_q_map/")}
    norms = {f"norm{i}": {"scale": part[f"{n}.weight"], "bias": part[f"{n}.bias"]} for i, n in ((1, 0), (2, 3))}
    dense = {f"dense{i}": {"kernel": part[f"{n}.weight"].T, "bias": part[f"{n}.bias"]} for i, n in ((1, 1), (2, 4))}
    return norms | dense


def test_sparsemax():
    g = load("sparsemax")
    cases = [k.removeprefix("in_") for k in g if k.startswith("in_") and not k.startswith("in_cotangent")]
    assert cases
    for case in cases:
        out, vjp = jax.vjp(sparsemax, jnp.asarray(g[f"in_{case}"]))
        close(out, g[f"out_{case}"], 1e-6)
        # On a tie at the border of the support, which side a weight of exactly 0 is on is anyone's choice.
        stable = (g[f"out_{case}"] > 1e-9) == (np.asarray(out) > 0)
        (grad,) = vjp(jnp.asarray(g[f"in_cotangent_{case}"]))
        rows = stable.all(-1)
        assert rows.any(), case
        close(grad[rows], g[f"vjp_exact_{case}"][rows], 1e-6)


def cases(g):
    return sorted(k.removesuffix("_img_att_weight") for k in g if k.endswith("_img_att_weight"))


@pytest.mark.parametrize("modality", FEATURE)
def test_query(modality):
    g = load("fdt_query")
    tokens = g[f"in_{FEATURE[modality]}_feat"]
    mask = g["in_text_mask_1_is_valid"] if modality == "txt" else None
    k, dim = g["in_codebook"].shape
    assert cases(g)
    for case in cases(g):
        attention, pool, t = case.split("_")
        temperature = float(t[1:].replace("p", "."))
        how = dict(attention=attention, pool=pool, temperature=temperature)

        def feature(params, tokens, codebook, module=Fdt(dim, k, **how)):  # noqa: B008
            variables = {"params": params | {"codebook": codebook}}
            stats = module.init(jax.random.key(0), Encoded(tokens[:, 0], tokens, mask))["batch_stats"]
            out, new = module.apply(
                variables | {"batch_stats": stats}, Encoded(tokens[:, 0], tokens, mask), train=True, mutable=True
            )
            return (out * g["in_cotangent_for_fdt_feature"]).sum(), (out, new["batch_stats"])

        params = head(g, modality)
        compiled = jax.jit(jax.value_and_grad(feature, (0, 1, 2), has_aux=True))
        (_, (out, stats)), grads = compiled(params, tokens, g["in_codebook"])
        name = f"{case}_{modality}"
        close(out, g[f"{name}_fdt_feature"], 5e-5)
        weights = g[f"{name}_att_weight"]
        close(stats["usage"] / 0.01, weights.mean(0), 2e-5)  # the first batch's share of the running mean
        if attention == "sparsemax":
            close(stats["active"], (weights > 1e-7).sum(1).mean(), 1e-5)
            np.testing.assert_array_equal(stats["idle"] == 0, (weights > 1e-7).any(0))
        close(grads[1], g[f"{name}_grad_input_feat"], 5e-5)
        if f"{name}_grad_codebook" in g:
            close(grads[2], g[f"{name}_grad_codebook"], 5e-5)
        if f"{name}_grad_q_map/0.weight" in g:
            official = {f"param_{modality}_q_map/{p}": g[f"{name}_grad_q_map/{p}"] for p in
                        (k.split("/")[1] for k in g if k.startswith(f"{name}_grad_q_map/"))}  # fmt: skip
            for ours, theirs in zip(jax.tree.leaves(grads[0]), jax.tree.leaves(head(official, modality)), strict=True):
                close(ours, theirs, 5e-5)


def test_padding_that_is_left_out():
    g = load("fdt_query")
    mask, (k, dim) = g["in_text_mask_1_is_valid"], g["in_codebook"].shape
    tokens, params = g["in_word_feat"], head(g, "txt") | {"codebook": g["in_codebook"]}
    alternatives = [c for c in cases(g) if f"{c}_txt_att_weight_ALT_minus_inf_padding" in g]
    assert alternatives
    for case in alternatives:
        attention, pool, t = case.split("_")
        how = dict(attention=attention, pool=pool, temperature=float(t[1:].replace("p", ".")), pad_fill="neg_inf")
        out, _ = Fdt(dim, k, **how).apply({"params": params}, Encoded(tokens[:, 0], tokens, mask), mutable=True)
        weights = g[f"{case}_txt_att_weight_ALT_minus_inf_padding"]
        close(out, weights @ g["in_codebook"], 1e-4)


def test_clip_with_fdt(ctx):
    g, queries = load("fdt_clip_loss"), load("fdt_query")
    k, dim = g["in_codebook"].shape
    readout = dict(name="fdt", codes=k, temperature=float(g["sd_temperature"]), attention=str(g["att_func"]),
                   pool=str(g["pool"]))  # fmt: skip
    method = clip.make({"image": Given(), "text": Given()}, embed_dim=dim, readout=readout)
    ctx = Ctx(ctx.mesh, ctx.batch_axes, train=True, step=0, rng=jax.random.key(0))
    mask = jnp.asarray(g["in_text_mask_1_is_valid"])

    def batch(image, text):
        return {"image": Stream(image), "text": Stream(text, mask)}

    _, extra = method.init(jax.random.key(0), batch(g["in_patch_feat"], g["in_word_feat"]))
    heads = {f"{ours}_readout": head(queries, theirs) for ours, theirs in (("image", "img"), ("text", "txt"))}
    fixed = {"image": {}, "text": {}} | heads

    def loss(image, text, codebook, log_scale):
        params = fixed | {"codebook": codebook, "log_scale": log_scale}
        return method.loss(params, extra, batch(image, text), ctx)[0]

    inputs = [jnp.asarray(g[f"in_{n}"]) for n in ("patch_feat", "word_feat", "codebook", "logit_scale_log")]
    value, grads = jax.jit(jax.value_and_grad(loss, range(4)))(*inputs)
    close(value, g["loss"], 2e-5)
    for grad, name in zip(grads, ("patch_feat", "word_feat", "codebook", "logit_scale_log"), strict=True):
        close(np.asarray(grad).reshape(g[f"grad_{name}"].shape), g[f"grad_{name}"], 1e-5)
