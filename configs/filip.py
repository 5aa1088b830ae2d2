"""FILIP (Yao et al. 2021, arXiv 2111.07783) as it was compared with CLIP, SLIP and DeCLIP on 15 million pairs.

    mmcl train --config configs/filip.py --config.data.train.path=pairs.csv               # ViT-B/32
    mmcl train --config configs/filip.py:tiny                                             # synthetic data, a minute

The recipe is that of DeCLIP's repository for YFCC15M: AdamW b1 .9, b2 .98, eps 1e-8, decay .5, 2500 warm-up steps to
5e-4, cosine to 0, 128,000 steps at batch 4096, MoCo v2's augmentations; there ImageNet zero-shot 39.5 % (CLIP 32.8 %).
All tokens are compared, padding is masked; that repository masks nothing, and lets the 16 best of each side be found
(--config.method.top=16). The paper trains on 340 million pairs with LAMB, not verified. Not reproduced here.
"""

from . import clip, common, views

VARIANTS = {"": "B"}


def get_config(arg: str = ""):
    """Variants: "" (ViT-B/32) and "tiny"."""
    c = clip.get_config(common.variant(VARIANTS, arg, default=""))
    c.batch, c.steps = 4096, 128_000
    c.method = dict(name="filip", embed_dim=256)
    c.data.streams.image = views.view(224, "(.2, 1)", ".4, .4, .4, .1")
    c.data.eval_streams.image = "decode|resize_short(256)|center_crop(224) || normalize('imagenet')"
    c.optim.update(lr=5e-4, warmup=2500, decay=0.5, eps=1e-8, clip=0.0)
    return common.tiny(c) if arg == "tiny" else c
