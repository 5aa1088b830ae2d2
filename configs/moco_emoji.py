"""MoCo v2 (arXiv 1911.05722, 2003.04297) on emoji, with the tower of clip_emoji.py; the recipe is ours.

mmcl data build emoji_styles/all && mmcl train --config configs/moco_emoji.py
mmcl train --config configs/moco_emoji.py:tiny                   # synthetic data, a minute, no data set needed

The tower has no batch statistics, so that there is nothing to shuffle. A queue of 2,048 holds about 1.4 drawings of
each concept, which count as negatives.
"""

from . import common, emoji, views

VARIANTS = {"": None}


def get_config(arg: str = ""):
    """Variants: "" and "tiny" (synthetic)."""
    common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="moco", embed_dim=64, hidden=256, queue=2048, momentum=0.99)  # short runs, short memory
    c.encoders.image = emoji.image_tower()
    return views.tiny(c) if arg == "tiny" else emoji.finish_views(c, 650)
