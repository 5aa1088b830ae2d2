"""CLIP's loss for each pair of modalities (as AudioCLIP, arXiv 2106.13043) on emoji, beside GMC; the recipe is ours.

mmcl data build emoji_modalities/speech && mmcl train --config configs/pairwise.py
mmcl train --config configs/pairwise.py:tiny                     # synthetic data, a minute, no data set needed

Data, towers and evaluations are those of gmc_emoji.py, which has a joint encoder besides: here there is time for more
steps.
"""

from . import common, gmc, gmc_emoji

VARIANTS = {"": None}


def get_config(arg: str = ""):
    """Variants: "" and "tiny" (synthetic)."""
    common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="pairwise", embed_dim=128)
    if arg == "tiny":
        gmc.tiny_data(c)
        c.method.embed_dim = 32
        return c
    c.encoders = gmc_emoji.towers()
    gmc_emoji.data(c)
    c.steps = 500
    return c
