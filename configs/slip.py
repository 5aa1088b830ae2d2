"""SLIP (Mu et al. 2021, arXiv 2112.12750) with the paper's recipe, on one's own images and captions.

    mmcl train --config configs/slip.py --config.data.train.path=pairs.csv                # ViT-B/16
    mmcl train --config configs/slip.py:tiny                                              # synthetic data, a minute

Recipe: AdamW b1 .9, b2 .98, eps 1e-8, decay .1, learning rate 3e-3, warm-up of one epoch from 1e-6, cosine to 1e-5,
batch 4096, 25 epochs of YFCC15M's 15 million pairs; the image of the CLIP term is only cropped, its two views are
SimCLR's. Deviations: crops are bicubic here and bilinear there, weights of the image tower start as CLIP's. Towers:
ViT with GELU and 12 heads also for S, CLIP's text tower. Sized for 64 accelerators. The numbers of the paper were not
reproduced here.
"""

from . import common, views

VARIANTS = {"S": ("S", 12), "B": ("B", 12), "L": ("L", 16)}  # (ViT, heads)


def get_config(arg: str = "B"):
    """Variants: S, B (ViT-B/16, the default), L, tiny."""
    size, heads = common.variant(VARIANTS, arg, default="B")
    c = common.base()
    epoch = 15_000_000 // 4096
    c.batch, c.steps, c.dtype = 4096, 25 * epoch, "bfloat16"
    c.method = dict(name="slip", embed_dim=512)
    tower = dict(remat="dots", scan=True)
    c.encoders.image = dict(name="vit", size=size, heads=heads, patch=16, pool="class", norm_eps=1e-6, **tower)
    c.encoders.text = dict(name="text", size="text-B", vocab=49_408, activation="quick_gelu", **tower)
    c.data.train = dict(source="files", path="", split="train", root="", image="image", caption="caption")
    c.data.streams = {
        "image": "decode|crop(224, scale=(.5, 1)) || normalize('imagenet')",
        "text": "captions: pick|tokenize(77)",
        "image/v0": views.view(224, "(.08, 1)", ".4, .4, .4, .1"),
        "image/v1": views.view(224, "(.08, 1)", ".4, .4, .4, .1"),
    }
    c.data.eval_streams = dict(
        image="decode|resize_short(224)|center_crop(224) || normalize('imagenet')",
        text="captions: first|tokenize(77)",
    )
    c.data.tokenizer.update(fields=("captions",), vocab=49_408)
    c.data.update(threads=16, workers=8)
    c.optim.update(lr=3e-3, warmup=epoch, warmup_inclusive=True, start_lr=1e-6, end_lr=1e-5, eps=1e-8, clip=0.0)
    c.log.every, c.checkpoint.every, c.eval_every = 100, 2000, 10_000
    c.evals = dict(val=dict(name="retrieval", data=dict(split="validation")))
    return views.tiny(c) if arg == "tiny" else c
