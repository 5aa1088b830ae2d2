"""CLIP (arXiv 2103.00020) on emoji, sized for two CPU cores; the recipe is ours.

bash launch/quickstart.sh                                        # builds OpenMoji, trains this config, evaluates
mmcl data build emoji_styles/all && mmcl train --config configs/clip_emoji.py:styles
mmcl train --config configs/clip_emoji.py:tiny                   # synthetic data, a minute, no data set needed
"""

from . import common, emoji


def get_config(arg: str = ""):
    """Variants: "" (OpenMoji from pip), "styles" (five styles, and three never trained on), "tiny" (synthetic)."""
    c = common.base()
    c.method = dict(name="clip", embed_dim=128)
    tower = dict(size="Ti", width=128, heads=2, activation="quick_gelu")
    c.encoders.image = dict(name="vit", depth=4, patch=8, pool="mean", **tower)
    c.encoders.text = dict(name="text", depth=1, vocab=4096, **tower)
    return emoji.finish(c, arg, statistics="clip")
