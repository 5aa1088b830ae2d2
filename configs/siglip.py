"""SigLIP (Zhai et al. 2023, arXiv 2303.15343) with the paper's recipe, on one's own images and captions.

    mmcl train --config configs/siglip.py --config.data.train.path=pairs.csv              # ViT-B/16
    mmcl train --config configs/siglip.py:L --config.data.train.path=pairs.parquet        # ViT-L/16
    mmcl train --config configs/siglip.py:tiny                                            # synthetic data, a minute

Recipe as far as the paper tells: learning rate 1e-3, decay 1e-4, b2 .95, batch 32 k, images resized without a crop,
64 tokens. The paper trains with Adafactor, here it is AdamW; its clipping at 1 and warm-up of some 3 % are those of
big_vision's published config. Sized for 32 or more accelerators. The numbers of the paper were not reproduced here.
"""

from . import common

# variant: (tower size, patch, pixels)
VARIANTS = {
    "S": ("S", 16, 224),
    "B": ("B", 16, 224),
    "L": ("L", 16, 256),
    "So400m": ("So400m", 14, 224),
}


def get_config(arg: str = "B"):
    """Variants: S, B (ViT-B/16, the default), L, So400m, tiny."""
    size, patch, pixels = common.variant(VARIANTS, arg, default="B")
    c = common.base()
    c.batch, c.steps, c.dtype = 32_768, 300_000, "bfloat16"
    tower = dict(size=size, activation="gelu_tanh", norm_eps=1e-6, init="xavier", remat="dots", scan=True)
    c.encoders.image = dict(name="vit", patch=patch, pool="attention", **tower)
    c.encoders.text = dict(name="text", vocab=32_000, pool="last", **tower)
    c.method = dict(name="siglip", embed_dim=common.width(size), scale_init=10.0, bias_init=-10.0)
    c.data.train = dict(source="files", path="", split="train", root="", image="image", caption="caption")
    image = f"decode|resize({pixels}) || normalize('half')"
    c.data.streams = dict(image=image, text="captions: pick|tokenize(64, sot=False)")
    c.data.eval_streams = dict(image=image, text="captions: first|tokenize(64, sot=False)")
    c.data.tokenizer.update(fields=("captions",), vocab=32_000)
    c.data.update(threads=16, workers=8)
    c.optim.update(lr=1e-3, warmup=9_000, b1=0.9, b2=0.95, eps=1e-8, decay=1e-4, clip=1.0)
    c.log.every, c.checkpoint.every, c.eval_every = 100, 2000, 10_000
    c.evals = dict(val=dict(name="retrieval", data=dict(split="validation")))
    return common.tiny(c) if arg == "tiny" else c
