"""SigLIP (arXiv 2303.15343) on emoji, sized for two CPU cores; the recipe is ours.

mmcl data build openmoji/color && mmcl train --config configs/siglip_emoji.py
mmcl data build emoji_styles/all && mmcl train --config configs/siglip_emoji.py:styles
mmcl train --config configs/siglip_emoji.py:compare              # short, beside what FDT's paper compares
mmcl train --config configs/siglip_emoji.py:tiny                 # synthetic data, a minute, no data set needed
"""

from . import common, emoji


def get_config(arg: str = ""):
    """Variants: "" (OpenMoji from pip), "styles" (five, and three never trained on), "probes", "compare", "tiny"."""
    c = common.base()
    # About minus the log of the number of negatives, as the paper's -10 is for its batch of 32 k.
    c.method = dict(name="siglip", embed_dim=128, scale_init=10.0, bias_init=-5.0)
    tower = dict(size="Ti", width=128, heads=2, activation="gelu_tanh", norm_eps=1e-6, init="xavier")
    c.encoders.image = dict(name="vit", depth=4, patch=8, pool="mean", **tower)
    c.encoders.text = dict(name="text", depth=1, vocab=4096, pool="last", **tower)
    return emoji.finish(c, arg, statistics="half", sot=False)
