"""SLIP (arXiv 2112.12750) on emoji, with the towers of clip_emoji.py; the recipe is ours.

mmcl data build emoji_styles/all && mmcl train --config configs/slip_emoji.py
mmcl train --config configs/slip_emoji.py:compare                # beside FDT
mmcl train --config configs/slip_emoji.py:tiny                   # synthetic data, a minute, no data set needed
"""

from . import common, emoji, views

VARIANTS = {"": "probes", "compare": "compare"}


def get_config(arg: str = ""):
    """Variants: "", "compare" (what FDT's paper compares) and "tiny" (synthetic)."""
    measured = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="slip", embed_dim=128, ssl_dim=64, ssl_hidden=256, ssl_temperature=0.2)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    if arg == "tiny":
        return views.tiny(c)
    emoji.finish(c, measured, statistics="clip")
    return emoji.finish_views(c, 260 if arg == "compare" else 320, arg=measured)
