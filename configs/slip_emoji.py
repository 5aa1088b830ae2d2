"""SLIP (arXiv 2112.12750) on emoji, with the towers of clip_emoji.py; the recipe is ours.

mmcl data build emoji_styles/all && mmcl train --config configs/slip_emoji.py
mmcl train --config configs/slip_emoji.py:tiny                   # synthetic data, a minute, no data set needed
"""

from . import common, emoji, views

VARIANTS = {"": None}


def get_config(arg: str = ""):
    """Variants: "" and "tiny" (synthetic)."""
    common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="slip", embed_dim=128, ssl_dim=64, ssl_hidden=256, ssl_temperature=0.2)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    if arg == "tiny":
        return views.tiny(c)
    emoji.finish(c, "probes", statistics="clip")
    return emoji.finish_views(c, 320)
