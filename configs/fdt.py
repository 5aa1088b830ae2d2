"""CLIP+FDT (Chen et al. 2023, arXiv 2303.14865): CLIP, with codes of a codebook in place of the two projections.

    mmcl train --config configs/fdt.py --config.data.train.path=pairs.csv                 # ViT-B/32
    mmcl train --config configs/fdt.py:tiny                                               # synthetic data, a minute

The recipe is the official code's for CC3M: batch 1024, 86,560 steps (32 epochs), AdamW b1 .9, b2 .98, eps 1e-8, decay
.1, warm-up from 1e-4 to 1e-3 over 2500 steps, cosine to 0, MoCo v2's augmentations, exp(s) within [e^3, e^6] and at
most 100 for the loss, the patch embedding frozen; there ImageNet zero-shot 18.4 % (CLIP 15.4 %) and COCO's sum of
recalls 189.5 (145.1). Not reproduced here. DeCLIP+FDT is `configs/declip.py:fdt`.
"""

import math

from . import clip, common, views

VARIANTS = {"": "B"}
# Of the readout: T=1000 from the start to the end, as in the official recipe.
READOUT = dict(name="fdt", codes=16_384, temperature=1000.0)


def get_config(arg: str = ""):
    """Variants: "" (ViT-B/32) and "tiny"."""
    c = clip.get_config(common.variant(VARIANTS, arg, default=""))
    c.batch, c.steps = 1024, 86_560
    scale = dict(scale_init=math.exp(3), scale_min=math.exp(3), scale_max=math.exp(6), scale_cap=100.0)
    c.method = dict(name="clip", embed_dim=512, readout=READOUT, **scale)
    c.data.streams.image = views.view(224, "(.2, 1)", ".4, .4, .4, .1")
    c.data.eval_streams.image = "decode|resize_short(256)|center_crop(224) || normalize('imagenet')"
    recipe(c)
    return tiny(c) if arg == "tiny" else c


def recipe(c):
    """The optimizer of DeCLIP's and of FDT's code."""
    c.optim.update(lr=1e-3, start_lr=1e-4, warmup=2500, decay=0.1, eps=1e-8, clip=0.0)
    c.optim.update(no_decay=r"(bias|scale)$", rules=("image/patches: lr=0",))


def tiny(c):
    """The `:tiny` variant: synthetic data, two layers, a small codebook, a minute."""
    return few_codes(common.tiny(c))


def few_codes(c):
    """As few codes as synthetic data needs."""
    c.method.readout.update(codes=64, temperature=30.0)
    return c
