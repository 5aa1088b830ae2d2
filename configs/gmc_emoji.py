"""GMC (arXiv 2202.03390) on emoji: colour drawings, line art, names and spoken names; the recipe is ours.

mmcl data build emoji_modalities/speech && mmcl train --config configs/gmc_emoji.py
mmcl data build tux_stamps/default && mmcl train --config configs/gmc_emoji.py:tux --config.data.train.fold=0
mmcl train --config configs/gmc_emoji.py:tiny                    # synthetic data, a minute, no data set needed

Images are drawings of one of four styles, line art is OpenMoji's, speech is synthetic and English. All emoji have all
four, so that each subset can be compared with the whole. `tux`: stamps of Tux Paint, pictures, captions and sound
effects, which most of them lack; trained with joint="present" on all of them, tested in five folds.
"""

from . import common, gmc, modalities

VARIANTS = {"": 250, "tux": 150}  # steps


def get_config(arg: str = ""):
    """Variants: "" (emoji), tux and tiny (synthetic)."""
    steps = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="gmc", embed_dim=128, latent=128, hidden=(256,), temperature=0.1)
    if arg == "tiny":
        return gmc.tiny(c)
    modalities.set_up(c, arg)
    if arg == "tux":
        c.method.joint = "present"
    c.steps = steps
    return c
