"""CLIP (Radford et al. 2021, arXiv 2103.00020) with the paper's recipe, on one's own images and captions.

    mmcl train --config configs/clip.py --config.data.train.path=pairs.csv                # ViT-B/32
    mmcl train --config configs/clip.py:L --config.data.train.path=pairs.parquet          # ViT-L/14
    mmcl train --config configs/clip.py:tiny                                              # synthetic data, a minute

Recipe as far as the paper tells: AdamW b1 .9, b2 .98, eps 1e-6, decay .2, 2000 warm-up steps, cosine to 0, batch
32,768, 32 epochs, random resized crop .9-1 (open_clip's; the paper crops a random square). Sized for 32 or more
accelerators; on fewer set batch and optim.lr. The numbers of the paper were not reproduced here.
"""

from . import common

# variant: (image size, patch, text tower, embed_dim, peak learning rate, pixels)
VARIANTS = {
    "S": ("S", 16, "text-B", 384, 1e-3, 224),
    "B": ("B", 32, "text-B", 512, 5e-4, 224),
    "B16": ("B", 16, "text-B", 512, 5e-4, 224),
    "L": ("L", 14, "text-L", 768, 4e-4, 224),
}


def get_config(arg: str = "B"):
    """Variants: S, B (ViT-B/32, the default), B16, L, tiny."""
    size, patch, text, embed_dim, lr, pixels = common.variant(VARIANTS, arg, default="B")
    c = common.base()
    c.batch, c.steps, c.dtype = 32_768, 390_000, "bfloat16"
    c.method = dict(name="clip", embed_dim=embed_dim)
    tower = dict(activation="quick_gelu", remat="dots", scan=True)
    c.encoders.image = dict(name="vit", size=size, patch=patch, pool="class", pre_norm=True, patch_bias=False, **tower)
    c.encoders.text = dict(name="text", size=text, vocab=49_408, **tower)
    c.data.train = dict(source="files", path="", split="train", root="", image="image", caption="caption")
    c.data.streams = dict(
        image=f"decode|crop({pixels}, scale=(.9, 1)) || normalize('clip')", text="captions: pick|tokenize(77)"
    )
    c.data.eval_streams = dict(
        image=f"decode|resize_short({pixels})|center_crop({pixels}) || normalize('clip')",
        text="captions: first|tokenize(77)",
    )
    c.data.tokenizer.update(fields=("captions",), vocab=49_408)
    c.data.update(threads=16, workers=8)
    c.optim.update(lr=lr, warmup=2000, b1=0.9, b2=0.98, eps=1e-6, decay=0.2, clip=0.0)
    c.log.every, c.checkpoint.every, c.eval_every = 100, 2000, 10_000
    c.evals = dict(val=dict(name="retrieval", data=dict(split="validation")))
    return common.tiny(c) if arg == "tiny" else c
