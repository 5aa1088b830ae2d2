"""CLIP's loss for each pair of modalities (as AudioCLIP, arXiv 2106.13043) on emoji, beside GMC; the recipe is ours.

mmcl data build emoji_modalities/speech && mmcl train --config configs/pairwise.py
mmcl data build tux_stamps/default && mmcl train --config configs/pairwise.py:tux
mmcl train --config configs/pairwise.py:tiny                     # synthetic data, a minute, no data set needed

Data, towers and evaluations are those of gmc_emoji.py, which has a joint encoder besides: here there is time for more
steps.
"""

from . import common, gmc, modalities

VARIANTS = {"": 500, "tux": 300}  # steps


def get_config(arg: str = ""):
    """Variants: "" (emoji), tux and tiny (synthetic)."""
    steps = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="pairwise", embed_dim=128)
    if arg == "tiny":
        gmc.tiny_data(c)
        c.method.embed_dim = 32
        return c
    modalities.set_up(c, arg)
    c.steps = steps
    return c
