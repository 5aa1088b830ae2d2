"""Late fusion (see arXiv 1705.09406) on emoji, beside GMC: a class is learned from all modalities; the recipe is ours.

mmcl data build emoji_modalities/speech && mmcl train --config configs/late_fusion.py
mmcl data build tux_stamps/default && mmcl train --config configs/late_fusion.py:tux
mmcl train --config configs/late_fusion.py:tiny                  # synthetic data, a minute, no data set needed

Data, towers and evaluations are those of gmc_emoji.py; the class is the emoji's group, the stamp's category.
"""

from . import common, gmc, modalities

VARIANTS = {"": (500, "group", 10), "tux": (150, "category", 16)}  # steps, the class's field, how many there are


def get_config(arg: str = ""):
    """Variants: "" (emoji), tux and tiny (synthetic)."""
    steps, field, classes = common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="late_fusion", embed_dim=128, classes=classes)
    if arg == "tiny":
        gmc.tiny_data(c)
        c.data.streams.label = ""
        fit = c.data.train.to_dict()
        c.evals.val = dict(name="knn", data=fit | dict(size=256, split="test"), fit=fit, label="label")
        c.method.update(embed_dim=32, classes=256)
        return c
    modalities.set_up(c, arg)
    c.data.streams.label = f"{field}: "
    if arg == "tux":
        c.data.train.complete = True  # it learns nothing from others
    c.steps = steps
    return c
