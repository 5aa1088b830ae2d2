"""DeCLIP and DeCLIP+FDT against the official forward passes, several steps with their bank, computed in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.methods import declip
from mmcl_jax.momentum import Queue
from mmcl_jax.types import Ctx, Stream
from tests.golden.reference import load
from tests.golden.stubs import Given
from tests.golden.test_fdt import close, head

TERMS = {"clip": "clip_loss", "nn": "nn_text_loss", "simsiam": "simsiam_loss", "mlm": "mlm_loss"}


def layers(g, part):
    """Dense layers and norms of the projector or the predictor, under our names."""
    found, pattern = {}, re.compile(rf"param_{part}/(linear|bn|layer)(\d)\.(weight|bias)")
    for key, value in g.items():
        match = pattern.fullmatch(key)
        if match:
            kind, number, what = match.groups()
            name = f"{'norm' if kind == 'bn' else 'dense'}{number}"
            leaf = "bias" if what == "bias" else "scale" if kind == "bn" else "kernel"
            found.setdefault(name, {})[leaf] = value.T if leaf == "kernel" else value
    return found


def start(g, method, batch, readouts):
    """The golden file's parameters and bank in the method's form."""
    _, extra = method.init(jax.random.key(0), batch)
    mlm = {"kernel": g["param_text_label_predictor/weight"].T, "bias": g["param_text_label_predictor/bias"]}
    params = {"image": {}, "text": {}, "text_mlm": {"projection": mlm}} | readouts
    params["image_readout_simsiam"] = {part: layers(g, part) for part in ("projector", "predictor")}
    rows, valid = g["bank_before"], np.ones(len(g["bank_before"]), bool)
    queue = Queue({"text": jnp.asarray(rows)}, {"text": jnp.asarray(valid)}, jnp.int32(g["bank_ptr_before"]))
    return params, extra | {"queue": queue}


def steps(g):
    return sorted({int(k[4 : k.index("_")]) for k in g if re.match(r"step\d+_", k)})


def make(g, embed_dim, **how):
    """The method with the golden file's sizes and weights."""
    vocab = len(g["param_text_label_predictor/weight"])
    names = ("w_clip", "w_nn", "w_simsiam", "w_mlm")
    weights = dict(zip(names, map(float, g["weights_clip_nn_simsiam_mlm"]), strict=True))
    return declip.make(
        {"image": Given(), "text": Given(vocab)},
        embed_dim=embed_dim,
        queue=len(g["bank_before"]),
        simsiam_dim=len(g["param_projector/linear1.weight"]),
        simsiam_hidden=len(g["param_predictor/linear1.weight"]),
        **weights,
        **how,
    )


def given(g, step, names):
    return {name: jnp.asarray(g[f"step{step}_in_{name}"]) for name in names}


def check(g, method, params, extra, batch, inputs, beside, ctx, tolerance):
    """Losses, gradients by the inputs and bank of each step; `batch` makes one of the inputs and what is beside."""
    ctx = Ctx(ctx.mesh, ctx.batch_axes, train=True, step=0, rng=jax.random.key(0))

    def loss(rows, log_scale, extra, other):
        return method.loss(params | {"log_scale": log_scale}, extra, batch(rows, other), ctx)

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    assert len(steps(g)) > 1
    for number in steps(g):
        step = f"step{number}"
        rows, other = given(g, number, inputs), given(g, number, beside)
        (value, (extra, metrics)), grads = compiled(rows, jnp.asarray(g["in_logit_scale_log"]), extra, other)
        close(value, g[f"{step}_loss"], tolerance["loss"])
        for ours, theirs in TERMS.items():
            close(metrics[ours], g[f"{step}_{theirs}"], tolerance["loss"])
        for name in inputs:
            close(grads[0][name], g[f"{step}_grad_{name}"], tolerance["grad"])
        close(np.asarray(grads[1]).reshape(1), g[f"{step}_grad_logit_scale_log"], tolerance["grad"])
        close(extra["queue"].rows["text"], g[f"{step}_bank_after"], 1e-6)
        assert extra["queue"].pointer == int(np.ravel(g[f"{step}_bank_ptr_after"])[0])


def test_declip(ctx):
    g = load("declip")
    method = make(g, embed_dim=0)
    inputs = ("image1_raw", "image2_raw", "text_masked_raw", "text_eda_raw", "word_feat")

    def batch(rows, other):
        # The stub gives the words as tokens and the caption as pooled feature, as a tower would.
        words = {"tokens": rows["word_feat"], "pooled": rows["text_masked_raw"], "labels": other["mlm_labels"]}
        return {
            "image/v0": Stream(rows["image1_raw"]),
            "image/v1": Stream(rows["image2_raw"]),
            "text/v0": Stream(words),
            "text/v1": Stream({"tokens": rows["word_feat"], "pooled": rows["text_eda_raw"]}),
        }

    beside = ("mlm_labels",)
    first = batch(given(g, 0, inputs), given(g, 0, beside))
    params, extra = start(g, method, first, {"image_readout": {}, "text_readout": {}})
    check(g, method, params, extra, batch, inputs, beside, ctx, {"loss": 2e-5, "grad": 5e-6})


def test_declip_with_fdt(ctx):
    g = load("declip_fdt")
    k, dim = g["param_codebook"].shape
    method = make(g, embed_dim=dim, readout=dict(name="fdt", codes=k, temperature=1.0))
    inputs = ("image1_patch", "image2_patch", "word_feat", "word_feat_eda")

    beside = ("mlm_labels", "word_mask_1_is_valid", "word_eda_mask_1_is_valid")

    def batch(rows, other):
        words = {"tokens": rows["word_feat"], "labels": other["mlm_labels"]}
        return {
            "image/v0": Stream(rows["image1_patch"]),
            "image/v1": Stream(rows["image2_patch"]),
            "text/v0": Stream(words, other["word_mask_1_is_valid"]),
            "text/v1": Stream({"tokens": rows["word_feat_eda"]}, other["word_eda_mask_1_is_valid"]),
        }

    first = batch(given(g, 0, inputs), given(g, 0, beside))
    readouts = {"image_readout": head(g, "img"), "text_readout": head(g, "txt"), "codebook": g["param_codebook"]}
    params, extra = start(g, method, first, readouts)
    check(g, method, params, extra, batch, inputs, beside, ctx, {"loss": 5e-5, "grad": 1e-5})


@pytest.mark.parametrize("name", ["declip", "declip_fdt"])
def test_the_official_sum_is_of_these_terms(name):
    """The golden total is the weighted sum of its parts: what the tests above compare is all that there is."""
    g = load(name)
    for number in steps(g):
        total = g["weights_clip_nn_simsiam_mlm"] @ [g[f"step{number}_{t}"] for t in TERMS.values()]
        close(total, g[f"step{number}_loss"], 1e-9)
        close(g[f"step{number}_clip_parts"].mean(), g[f"step{number}_clip_loss"], 1e-9)
