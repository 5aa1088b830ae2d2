"""DeCLIP (arXiv 2110.05208) and DeCLIP+FDT (arXiv 2303.14865) on emoji, with the towers of clip_emoji.py.

mmcl data build emoji_styles/all && mmcl train --config configs/declip_emoji.py
mmcl train --config configs/declip_emoji.py:fdt                  # with a codebook
mmcl train --config configs/declip_emoji.py:tiny                 # synthetic data, a minute, with a codebook

The recipe is ours: both views of the image are drawn as CLIP's one is, synonyms are any of an emoji's keywords, the
scale is CLIP's, the queue holds 1.3 texts of each concept. Of captions that are one word, two thirds are the same in
both views: there is nothing to swap or to leave out.
"""

from . import common, declip, emoji, fdt, fdt_emoji

VARIANTS = {"": 280, "fdt": 190}  # steps


def get_config(arg: str = ""):
    """Variants: "" and "fdt" (short, evaluated beside CLIP), "tiny" (synthetic, with codes)."""
    steps = common.variant(VARIANTS, arg, default="")
    readout = "linear" if arg == "" else fdt_emoji.READOUT
    c = common.base()
    scale = dict(scale_init=1 / 0.07, scale_min=1.0, scale_max=100.0, scale_cap=0.0)
    c.method = dict(name="declip", embed_dim=128, readout=readout, queue=2048, simsiam_dim=256, simsiam_hidden=128)
    c.method.update(scale)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    if arg == "tiny":
        return fdt.few_codes(declip.tiny(c))
    emoji.finish(c, "compare", statistics="clip")
    for i in (0, 1):
        c.data.streams[f"image/v{i}"] = "image: " + c.data.streams.image
    declip.texts(c, 10, "draw('captions', 'caption', main=.8)|eda('caption', 'caption_eda', synonyms='tags/en')")
    c.steps = steps
    return c
