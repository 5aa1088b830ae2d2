"""SimCLR (arXiv 2002.05709) on emoji, with the tower of clip_emoji.py; the recipe is ours.

mmcl data build emoji_styles/all && mmcl train --config configs/simclr_emoji.py
mmcl train --config configs/simclr_emoji.py:pairs                # the two views are two styles of one concept
mmcl train --config configs/simclr_emoji.py:tiny                 # synthetic data, a minute, no data set needed
"""

from . import common, emoji, views

VARIANTS = {"": False, "pairs": True}


def get_config(arg: str = ""):
    """Variants: "" (two views of one drawing), "pairs" (views of two styles of a concept), "tiny" (synthetic)."""
    pairs = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="simclr", embed_dim=64, hidden=256, temperature=0.2)
    c.encoders.image = emoji.image_tower()
    return views.tiny(c) if arg == "tiny" else emoji.finish_views(c, 400, pairs)
