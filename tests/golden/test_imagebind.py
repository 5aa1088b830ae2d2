"""ImageBind: its towers of sounds and of inertial sensors with the official weights in them, and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.encoders import series, vit
from mmcl_jax.encoders.readouts import Linear
from mmcl_jax.evals.zeroshot import classification_metrics
from mmcl_jax.items import prototypes
from mmcl_jax.losses import info_nce, unit
from mmcl_jax.method import mean_of_present
from mmcl_jax.methods import imagebind
from mmcl_jax.types import Encoded, Stream
from tests.golden.reference import load
from tests.golden.stubs import Given
from tests.golden.test_towers import attention, dense, mlp, norm

HEADS = {"audio": 3, "imu": 2}  # which no array tells
TOWERS = load("imagebind_tower")
LOSSES = load("imagebind_loss")


def weights(modality):
    """Our parameters of a tower and of its head."""
    w = {k.removeprefix("param_").replace("/", "."): v for k, v in TOWERS.items() if k.startswith("param_")}
    stem = {"audio": "audio.rgbt_stem", "imu": "imu.imu_stem"}[modality]
    kernel, positions = (
        w[f"modality_preprocessors.{name}"]
        for name in (f"{stem}.proj.weight", f"{modality}.pos_embed" + "ding_helper.pos_embed" * (modality == "audio"))
    )
    blocks, i = {}, 0
    while f"modality_trunks.{modality}.blocks.{i}.norm_1.weight" in w:
        name = f"modality_trunks.{modality}.blocks.{i}"
        kernels, biases = (np.split(w[f"{name}.attn.in_proj_{part}"], 3) for part in ("weight", "bias"))
        q, k, v = ({"kernel": a.T, "bias": b} for a, b in zip(kernels, biases, strict=True))
        attended = attention(q, k, v, dense(w, f"{name}.attn.out_proj"), HEADS[modality])
        extra = {f"bias_{x}": w[f"{name}.attn.bias_{x}"].reshape(HEADS[modality], -1) for x in "kv"}
        blocks[f"block{i}"] = {
            "norm1": norm(w, f"{name}.norm_1"), "norm2": norm(w, f"{name}.norm_2"),
            "attention": attended | extra, "mlp": mlp(w, f"{name}.mlp"),
        }  # fmt: skip
        i += 1
    tower = {
        "patches" if modality == "audio" else "windows": {
            "kernel": kernel.transpose(2, 3, 1, 0) if modality == "audio" else kernel.T
        },
        "stem_norm": norm(w, f"modality_preprocessors.{stem}.norm_layer"),
        "class_token": w[f"modality_preprocessors.{modality}.cls_token"].reshape(-1),
        "positions": positions[0],
        "transformer": blocks,
        "norm": norm(w, f"modality_heads.{modality}.0"),
    }
    last = {"audio": 2, "imu": 3}[modality]
    head = {"projection": {"kernel": w[f"modality_heads.{modality}.{last}.weight"].T}}
    return tower, head, float(np.exp(w[f"modality_postprocessors.{modality}.1.log_logit_scale"]))


def encoder(modality, tower):
    width = tower["class_token"].size
    shape = dict(width=width, heads=HEADS[modality], depth=len(tower["transformer"]), norm_eps=1e-6, bias_kv=True)
    shape["mlp"] = tower["transformer"]["block0"]["mlp"]["in"]["bias"].size
    if modality == "imu":
        return series.make(window=tower["windows"]["kernel"].shape[0] // TOWERS["input_imu"].shape[1], **shape)
    patch = tower["patches"]["kernel"].shape[0]
    return vit.make(patch=patch, stride=10, patch_bias=False, stem_norm=True, **shape)


def embed(modality, data, scan=False):
    tower, head, scale = weights(modality)
    model = encoder(modality, tower)
    encoded = model.apply({"params": tower}, Stream(jnp.asarray(data)))
    assert isinstance(encoded, Encoded)
    return scale * unit(Linear(head["projection"]["kernel"].shape[1]).apply({"params": head}, encoded))


def test_sounds():
    images = TOWERS["input_audio"].transpose(0, 2, 3, 1)  # [B, mels, frames, 1]
    np.testing.assert_allclose(embed("audio", images), TOWERS["out_audio_scaled"], atol=2e-4)


def test_several_clips_of_a_sound_are_averaged_with_their_scale():
    clips = TOWERS["input_audio_three_clips"]
    images = clips.reshape(-1, *clips.shape[2:]).transpose(0, 2, 3, 1)
    found = embed("audio", images).reshape(*clips.shape[:2], -1).mean(1)
    np.testing.assert_allclose(found, TOWERS["out_audio_three_clips_mean"], atol=2e-4)


def test_inertial_sensors():
    np.testing.assert_allclose(embed("imu", TOWERS["input_imu"]), TOWERS["out_imu_scaled"], atol=1e-4)


@pytest.mark.parametrize("modality", HEADS)
def test_towers_start_with_the_official_shapes(modality):
    tower, _, _ = weights(modality)
    data = TOWERS[f"input_{modality}"]
    data = data.transpose(0, 2, 3, 1) if modality == "audio" else data
    ours = encoder(modality, tower).init(jax.random.key(0), Stream(jnp.asarray(data)))["params"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, jax.tree.map(jnp.asarray, tower))


def cases():
    return range(int(LOSSES["n_cases"]))


@pytest.mark.parametrize("number", cases())
def test_loss(ctx, number):
    g = {k.removeprefix(f"case{number}_"): v for k, v in LOSSES.items() if k.startswith(f"case{number}_")}
    scale = float(g["logit_scale"])
    encoders = {"image": Given(), "other": Given()}
    method = imagebind.make(encoders, embed_dim=0, scales={"other": scale})

    def loss(image, other):
        batch = {"image": Stream(image), "other": Stream(other)}
        params, extra = method.init(jax.random.key(0), batch)
        return method.loss(params, extra, batch, ctx)[0]

    inputs = g["image_embedding_raw"], g["other_embedding_raw"]
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(*inputs)
    np.testing.assert_allclose(value, g["loss_sum_paper"], rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(value / 2, g["loss_half_sum_clip_style"], rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(grads[0], g["grad_sum_wrt_image_raw"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], g["grad_sum_wrt_other_raw"], rtol=1e-4, atol=1e-6)

    def of_scale(log_scale):
        return 2 * ctx.over_batch(info_nce)(unit(inputs[0]), unit(inputs[1]), None, scale=jnp.exp(log_scale))

    slope = jax.jit(jax.grad(of_scale))(jnp.log(scale))
    # A small difference of logits of up to 20, in float32.
    np.testing.assert_allclose(slope, g["grad_sum_wrt_log_logit_scale"], rtol=1e-4, atol=1e-5)


def test_each_direction():
    for i in cases():
        x, y = (unit(LOSSES[f"case{i}_{name}_embedding_raw"]) for name in ("image", "other"))
        for a, b, name in ((x, y, "image_to_other"), (y, x, "other_to_image")):
            found = info_nce(a, b, scale=float(LOSSES[f"case{i}_logit_scale"]), both=False)
            np.testing.assert_allclose(found, LOSSES[f"case{i}_loss_{name}"], rtol=1e-5, atol=5e-6)


def test_emergent_zero_shot_classes():
    g = {k.removeprefix("zeroshot_"): v for k, v in LOSSES.items() if k.startswith("zeroshot_")}
    found = prototypes(np.asarray(unit(g["prompt_embeddings"])))
    np.testing.assert_allclose(found, g["class_prototypes"], atol=1e-6)
    scores = np.asarray(unit(g["query_embeddings"])) @ found.T
    np.testing.assert_allclose(scores, g["similarity"], atol=1e-6)
    assert scores.argmax(1).tolist() == g["predictions"].tolist()
    np.testing.assert_allclose(classification_metrics(scores, g["labels"])["top1"], g["top1"], rtol=1e-6)


def test_clips_are_averaged_once_they_are_normalised():
    """`mean_of_present`, which represents an example by several vectors, does as the official code does with clips."""
    clips = [jnp.asarray(unit(z)) for z in LOSSES["multiclip_raw"].swapaxes(0, 1)]
    found, _ = mean_of_present(clips, [jnp.ones(len(clips[0]), bool)] * len(clips))
    np.testing.assert_allclose(found, LOSSES["multiclip_mean_of_normalised"], atol=1e-6)
