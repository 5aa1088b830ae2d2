"""GMC (Vasco et al. 2022, arXiv 2202.03390) as on MHD: images, sounds and trajectories of handwritten digits.

    mmcl train --config configs/gmc.py --config.data.train.path='mhd_{split}.npz'         # MHD
    mmcl train --config configs/gmc.py:label --config.data.train.path='mhd_{split}.npz'   # the label as a modality, too
    mmcl train --config configs/gmc.py:tiny                                               # synthetic data, a minute

mhd_train.npz, mhd_validation.npz and mhd_test.npz have arrays `image` (uint8 [N, 28, 28, 1]), `sound` (float [N, 32,
128, 1], a spectrogram), `trajectory` (float [N, 200]) and `label` (int [N]); a float row of NaN is a missing value.
With the label as a modality, as the paper has it, the joint vector knows the answer; so it is left out by default.

Recipe: Adam with learning rate 1e-3, constant, batch 64, 100 epochs, temperature .1; 50,000 training examples are our
guess. MOSEI and MOSI: `gru` encoders (hidden 30), method.hidden=(), embed_dim and latent 60, temperature .3, batch 24,
40 epochs, and method.target; their joint encoder is a transformer (MulT), which is not here. The numbers of the paper
were not reproduced here.
"""

from ml_collections import ConfigDict

from . import common

VARIANTS = {"": False, "label": True}  # whether the label is a modality
SOUND = ((128, (1, 128), (1, 1), (0, 0)), (128, (4, 1), (2, 1), (1, 0)), (256, (4, 1), (2, 1), (1, 0)))


def get_config(arg: str = ""):
    """Variants: "" (three modalities), label (four), tiny."""
    label = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.batch, c.steps = 64, 100 * 50_000 // 64
    c.method = dict(name="gmc", embed_dim=64, latent=64, hidden=(512, 512), temperature=0.1)
    c.encoders = dict(
        image=dict(name="conv"),
        sound=dict(name="conv", layers=SOUND, activation="relu", norm="batch"),
        trajectory=dict(name="mlp", hidden=(512, 512)),
    )
    c.data.train = dict(source="arrays", path="", split="train")
    c.data.streams = dict(image="", sound="", trajectory="")
    if label:
        c.encoders.label = dict(name="mlp", hidden=())
        c.data.streams.label = "multi_hot(10)"
    c.data.eval_streams = c.data.streams.copy_and_resolve_references()
    c.optim.update(lr=1e-3, end_lr=1e-3, warmup=0, b1=0.9, b2=0.999, eps=1e-8, decay=0.0, clip=0.0)
    c.log.every, c.checkpoint.every = 100, 2000
    held_out = dict(split="test")
    parts = tuple(c.encoders.keys())
    c.evals = {
        # From each subset of modalities: the classifier is fitted on the joint vectors of complete training examples.
        "missing": dict(name="missing", data=held_out, fit=dict(split="train"), modalities=parts),
        "image_sound": dict(name="retrieval", data=held_out, a="image", b="sound"),
    }
    return tiny(c) if arg == "tiny" else c


def tiny(c: ConfigDict) -> ConfigDict:
    """Turns a config of GMC into its `:tiny` variant: synthetic images, tones and tags, of which some are missing."""
    tiny_data(c)
    with c.unlocked():
        c.method.update(embed_dim=32, latent=32, hidden=(64,), joint="present")
    return c


def tiny_data(c: ConfigDict) -> None:
    """Data, encoders and evaluations of `:tiny`, for methods of any number of modalities."""
    with c.unlocked():
        common.tiny_run(c, modalities=("image", "audio", "tags"), missing=0.1)
        layers = ((16, (4, 4), (2, 2), (1, 1)), (32, (4, 4), (2, 2), (1, 1)))
        c.encoders = dict(
            image=dict(name="conv", layers=layers),
            audio=dict(name="conv", layers=layers, activation="relu", norm="batch"),
            tags=dict(name="mlp", hidden=(32,)),
        )
        sound = "sound(8000) || log_mel(8000, mels=16)|standardize(-5, 3)"
        c.data.streams = dict(image="decode || normalize", audio=sound + "|spec_augment(2, 2)", tags="")
        c.data.eval_streams = dict(image="decode || normalize", audio=sound, tags="")
        held_out = common.HELD_OUT | dict(modalities=("image", "audio", "tags"))
        known = c.data.train.copy_and_resolve_references()
        c.evals = dict(
            val=dict(name="retrieval", data=held_out, b="audio"),
            missing=dict(name="missing", data=held_out, fit=known, modalities=("image", "audio", "tags"), cs=(1.0,)),
        )
