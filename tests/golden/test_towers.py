"""Our towers, with the weights of tiny transformers models in them, give what those models gave."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmcl_jax.encoders import text, vit
from mmcl_jax.losses import unit
from mmcl_jax.types import Stream
from tests.golden.reference import FOLDER


def dense(w, name):
    return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}


def norm(w, name):
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def attention(q, k, v, out, heads):
    def split(p):
        width = p["kernel"].shape[0]
        return {"kernel": p["kernel"].reshape(width, heads, -1), "bias": p["bias"].reshape(heads, -1)}

    joined = {"kernel": out["kernel"].reshape(heads, -1, out["kernel"].shape[1]), "bias": out["bias"]}
    return {"query": split(q), "key": split(k), "value": split(v), "out": joined}


def mlp(w, name):
    return {"in": dense(w, f"{name}.fc1"), "out": dense(w, f"{name}.fc2")}


def blocks(w, prefix, config):
    heads = config["num_attention_heads"]
    made = {}
    for i in range(config["num_hidden_layers"]):
        p = f"{prefix}.encoder.layers.{i}"
        parts = [dense(w, f"{p}.self_attn.{k}_proj") for k in ("q", "k", "v", "out")]
        made[f"block{i}"] = {
            "norm1": norm(w, f"{p}.layer_norm1"),
            "norm2": norm(w, f"{p}.layer_norm2"),
            "attention": attention(*parts, heads),
            "mlp": mlp(w, f"{p}.mlp"),
        }
    return made


def text_params(w, config):
    return {
        "tokens": {"embedding": w["text_model.embeddings.token_embedding.weight"]},
        "positions": w["text_model.embeddings.position_embedding.weight"],
        "transformer": blocks(w, "text_model", config),
        "norm": norm(w, "text_model.final_layer_norm"),
    }


def image_params(w, config):
    v = "vision_model"
    params = {
        "patches": {"kernel": w[f"{v}.embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)},
        "positions": w[f"{v}.embeddings.position_embedding.weight"],
        "transformer": blocks(w, v, config),
        "norm": norm(w, f"{v}.post_layernorm"),
    }
    if f"{v}.embeddings.class_embedding" in w:
        params["class_token"] = w[f"{v}.embeddings.class_embedding"]
        params["pre_norm"] = norm(w, f"{v}.pre_layrnorm")
    else:
        params["patches"]["bias"] = w[f"{v}.embeddings.patch_embedding.bias"]
        kernels = np.split(w[f"{v}.head.attention.in_proj_weight"].T, 3, axis=1)
        biases = np.split(w[f"{v}.head.attention.in_proj_bias"], 3)
        parts = [{"kernel": k, "bias": b} for k, b in zip(kernels, biases, strict=True)]
        out = dense(w, f"{v}.head.attention.out_proj")
        params["pool"] = {
            "probe": w[f"{v}.head.probe"],
            "attention": attention(*parts, out, config["num_attention_heads"]),
            "norm": norm(w, f"{v}.head.layernorm"),
            "mlp": mlp(w, f"{v}.head.mlp"),
        }
    return params


def run(folder, activation=None):
    """Normalised image and text embeddings of our towers, and the reference's arrays."""
    w = load_file(FOLDER / folder / "model.safetensors")
    config = json.loads((FOLDER / folder / "config.json").read_text())
    siglip = config["model_type"] == "siglip"
    io = dict(np.load(FOLDER / folder / "io.npz"))

    def shape(c):
        act = {"gelu_pytorch_tanh": "gelu_tanh"}.get(c["hidden_act"], c["hidden_act"])
        return dict(width=c["hidden_size"], depth=c["num_hidden_layers"], heads=c["num_attention_heads"],
                    mlp=c["intermediate_size"], norm_eps=c["layer_norm_eps"], activation=activation or act)  # fmt: skip

    vc, tc = config["vision_config"], config["text_config"]
    style = dict(pool="attention") if siglip else dict(pool="class", pre_norm=True, patch_bias=False)
    image = vit.make(patch=vc["patch_size"], **style, **shape(vc))
    texts = text.make(vocab=tc["vocab_size"], pool="last" if siglip else "eot", **shape(tc))
    images = Stream(jnp.asarray(io["pixel_values_NCHW"].transpose(0, 2, 3, 1)))
    tokens = Stream(jnp.asarray(io["input_ids"]), jnp.asarray(io["attention_mask"], bool))
    u = image.apply({"params": image_params(w, vc)}, images)
    v = texts.apply({"params": text_params(w, tc)}, tokens)
    if siglip:
        u_out, v_out = u.pooled, v.pooled @ w["text_model.head.weight"].T + w["text_model.head.bias"]
    else:
        u_out, v_out = u.pooled @ w["visual_projection.weight"].T, v.pooled @ w["text_projection.weight"].T
    return unit(u_out), unit(v_out), u, v, io


@pytest.mark.parametrize("folder", ["hf_clip_quick_gelu", "hf_clip_gelu", "hf_siglip_gelutanh"])
def test_embeddings(folder):
    u, v, image, texts, io = run(folder)
    np.testing.assert_allclose(u, io["image_embeds_l2_normalized"], atol=1e-6)
    np.testing.assert_allclose(v, io["text_embeds_l2_normalized"], atol=1e-6)
    # HF masks padding in attention; behind the causal mask only padding itself can tell the difference.
    real = np.asarray(texts.mask if folder.startswith("hf_clip") else np.ones(texts.mask.shape, bool))
    np.testing.assert_allclose(texts.tokens[real], io["text_last_hidden_state"][real], atol=5e-5)
    if folder.startswith("hf_clip"):  # image tokens: without the class token, before the final norm
        np.testing.assert_allclose(image.tokens, io["vision_last_hidden_state"][:, 1:], atol=5e-5)


def test_the_wrong_activation_is_noticed():
    u, _, _, _, io = run("hf_clip_quick_gelu", activation="gelu")
    assert np.abs(u - io["image_embeds_l2_normalized"]).max() > 1e-4
