"""CLIP (arXiv 2103.00020) on emoji, sized for two CPU cores; the recipe is ours.

bash launch/quickstart.sh                                        # builds OpenMoji, trains this config, evaluates
mmcl data build emoji_styles/all && mmcl train --config configs/clip_emoji.py:styles
mmcl train --config configs/clip_emoji.py:probes                 # six minutes, and probes of the image tower
mmcl train --config configs/clip_emoji.py:compare                # the same, and what FDT's paper compares
mmcl train --config configs/clip_emoji.py:tiny                   # synthetic data, a minute, no data set needed
"""

from . import common, emoji


def get_config(arg: str = ""):
    """Variants: "" (OpenMoji), "styles" (five, and three never trained on), "probes", "compare" (short), "tiny"."""
    c = common.base()
    c.method = dict(name="clip", embed_dim=128)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    return emoji.finish(c, arg, statistics="clip")
