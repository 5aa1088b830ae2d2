"""FILIP (arXiv 2111.07783) on emoji, with the towers of clip_emoji.py; the recipe is ours.

mmcl data build emoji_styles/all && mmcl train --config configs/filip_emoji.py
mmcl train --config configs/filip_emoji.py:tiny                  # synthetic data, a minute, no data set needed
"""

from . import common, emoji

VARIANTS = {"": 490}  # steps


def get_config(arg: str = ""):
    """Variants: "" (short, evaluated beside FDT) and "tiny" (synthetic)."""
    steps = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="filip", embed_dim=128)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    emoji.finish(c, arg or "compare", statistics="clip")
    c.steps = c.steps if arg else steps
    return c
