"""ImageBind (Girdhar et al. 2023, arXiv 2305.05665) with the paper's towers, on one's own pairs of images and others.

    mmcl train --config configs/imagebind.py --config.data.train.path=clips.csv --config.init_from.run=runs/clip
    mmcl train --config configs/imagebind.py:imu --config.data.train.path=rides.csv --config.init_from.run=runs/clip
    mmcl train --config configs/imagebind.py:tiny                                         # synthetic data, a minute

The table has a column `image`, one of the other modality's paths, `audio` (sounds), `depth` or `thermal` (images) or
`imu` (.npy, [6, 2000]), and `caption`, which may be empty but for some rows. runs/clip is a run of CLIP with the same
image and text towers (`configs/clip.py`, with encoders.image.size=H and so on as below); both are frozen by
`optim.rules`, and the other modality meets texts without ever having seen any. Towers and scales are the paper's.
Several modalities at once: give each its encoder, stream and scale, and name several sources in data.train.

Recipe, not verified: AdamW decay .2 (imu .5), learning rate 1.6e-3 for audio, 5e-4 for others, batch 2,048 for audio,
512 for others; 64 epochs, of 2,000,000 pairs for audio; 8 for imu. Not as published: images are not erased or
changed by RandAugment, frames of videos are single images, the mean of a sound's three clips is brought to unit
length, and depth has 8 bits once it is decoded. The numbers of the paper were not reproduced here.
"""

from ml_collections import ConfigDict

from . import common

# variant: (1 / tau, batch, learning rate, decay, epochs, pairs)
VARIANTS = {
    "audio": (20.0, 2048, 1.6e-3, 0.2, 64, 2_000_000),
    "depth": (5.0, 512, 5e-4, 0.2, 64, 10_000),
    "thermal": (10.0, 512, 5e-4, 0.2, 64, 12_000),
    "imu": (5.0, 512, 5e-4, 0.5, 8, 500_000),
}
SHAPE = dict(stem_norm=True, bias_kv=True, pool="class", norm_eps=1e-6, init="xavier")
PATCHES = SHAPE | dict(name="vit", patch=16, patch_bias=False)
ENCODERS = {
    "audio": PATCHES | dict(size="B", stride=10, drop_path=0.1),
    "depth": PATCHES | dict(size="S", heads=8),
    "thermal": PATCHES | dict(size="B"),
    "imu": SHAPE | dict(name="series", size="text-B", depth=6, window=8, head_dropout=0.5, drop_path=0.7),
}
SOUND = "log_mel(16000, mels=128, frames=204)|standardize(-4.268, 9.138)"
VIEW = "decode|crop(224, scale=(.5, 1), @view)|flip(@side)"
WHOLE = "decode|resize_short(224)|center_crop(224)"
STREAMS = {  # in training, in evaluation
    "audio": (f"sound(16000)|excerpt(32000) || {SOUND}|spec_augment(12, 48)",
              f"sound(16000)|excerpts(32000, 3) || {SOUND}"),
    "depth": (f"{VIEW} || one_channel", f"{WHOLE} || one_channel"),
    "thermal": (f"{VIEW} || one_channel", f"{WHOLE} || one_channel"),
    "imu": ("array", "array"),
}  # fmt: skip


def get_config(arg: str = "audio"):
    """Variants: audio (the default), depth, thermal, imu, tiny."""
    scale, batch, lr, decay, epochs, pairs = common.variant(VARIANTS, arg, default="audio")
    name = arg if arg in VARIANTS else "audio"
    stream, whole = STREAMS[name]
    c = common.base()
    c.batch, c.steps, c.dtype = batch, epochs * pairs // batch, "bfloat16"
    c.method = dict(name="imagebind", embed_dim=1024, scales={name: scale})
    tower = dict(remat="dots", scan=True)
    c.encoders = {
        "image": dict(name="vit", size="H", patch=14, pool="class", pre_norm=True, patch_bias=False, **tower),
        "text": dict(name="text", size="text-L", width=1024, depth=24, heads=16, vocab=49_408, **tower),
        name: ENCODERS[name] | tower,
    }
    c.data.train = dict(
        source="files", path="", split="train", root="", image="image", caption="caption", paths=(name,)
    )
    crop = VIEW if name in ("depth", "thermal") else "decode|crop(224, scale=(.5, 1))|flip"
    c.data.streams = {
        "image": f"{crop} || normalize('clip')", "text": "captions: first|tokenize(77)", name: f"{name}: {stream}",
    }  # fmt: skip
    c.data.eval_streams = {
        "image": f"{WHOLE} || normalize('clip')", "text": "captions: first|tokenize(77)", name: f"{name}: {whole}",
    }  # fmt: skip
    c.data.tokenizer.update(fields=("captions",), vocab=49_408)
    c.data.update(threads=16, workers=8)
    c.optim.update(
        lr=lr, warmup=min(2000, c.steps // 10), b2=0.95, decay=decay, rules=("(image|text)(_readout)?/: lr=0",)
    )
    c.log.every, c.checkpoint.every, c.eval_every = 100, 2000, 10_000
    held_out = dict(split="validation")
    c.evals = dict(
        val=dict(name="retrieval", data=held_out, b=name),
        emergent=dict(name="retrieval", data=held_out, a=name, b="text"),  # of the rows that have a caption
    )
    return tiny(c) if arg == "tiny" else c


def tiny(c: ConfigDict) -> ConfigDict:
    """Turns a config of ImageBind into its `:tiny` variant: images and tones; the text tower is frozen, untrained."""
    with c.unlocked():
        common.tiny_run(c, modalities=("image", "text", "audio"), missing=0.05)
        for tower in c.encoders.values():
            common.tiny_tower(tower)
        # A tower that tells tones apart within a hundred steps.
        c.encoders.audio = dict(name="conv", layers=((16, (4, 4), (2, 2), (1, 1)), (32, (4, 4), (2, 2), (1, 1))))
        c.encoders.text.vocab = c.data.tokenizer.vocab = 400
        c.data.tokenizer.fields = ("text",)
        sound = "sound(8000) || log_mel(8000, mels=16)|standardize(-5, 3)"
        c.data.streams = dict(image="decode || normalize", text="tokenize(12)", audio=sound)
        c.data.eval_streams = c.data.streams.copy_and_resolve_references()
        c.method.update(embed_dim=32)
        c.optim.rules = ("text(_readout)?/: lr=0",)
        held_out = common.HELD_OUT | dict(modalities=("image", "text", "audio"))
        c.evals = dict(val=dict(name="retrieval", data=held_out, b="audio"))
    return c
