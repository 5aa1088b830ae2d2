"""DeCLIP (Li et al. 2021, arXiv 2110.05208) and DeCLIP+FDT (arXiv 2303.14865), on one's own images and captions.

    pip install -e '.[eda]'                                                               # WordNet, for synonyms
    mmcl train --config configs/declip.py --config.data.train.path=pairs.csv              # ViT-B/32
    mmcl train --config configs/declip.py:fdt --config.data.train.path=pairs.csv          # with a codebook
    mmcl train --config configs/declip.py:tiny                                            # synthetic data, a minute

The recipe is the official code's for YFCC15M: batch 4096 on 32 devices, each with batch statistics of its own, 128,000
steps, AdamW b1 .9, b2 .98, eps 1e-8, decay .1, warm-up from 1e-4 to 1e-3 over 2500 steps, cosine to 0, two views with
MoCo v2's augmentations, weights .4, .2, .2, .2, a queue of 65,536 texts; there ImageNet zero-shot 43.2 % (CLIP 32.8 %).
Not reproduced here.
"""

from . import clip, common, fdt, views

VARIANTS = {"": "linear", "fdt": "fdt"}


def get_config(arg: str = ""):
    """Variants: "" (ViT-B/32), "fdt" (the same with a codebook) and "tiny"."""
    codes = common.variant(VARIANTS, arg, default="") == "fdt"
    c = clip.get_config("B")
    c.batch, c.steps = 4096, 128_000
    c.method = dict(name="declip", embed_dim=512, readout=fdt.READOUT if codes else "linear", bn_groups=0)
    for i in (0, 1):
        c.data.streams[f"image/v{i}"] = views.view(224, "(.2, 1)", ".4, .4, .4, .1")
    c.data.eval_streams.image = "decode|resize_short(256)|center_crop(224) || normalize('imagenet')"
    texts(c, 77, "draw('captions', 'caption')|eda('caption', 'caption_eda')")
    fdt.recipe(c)
    return tiny(c) if arg == "tiny" else c


def texts(c, length: int, record: str):
    """The two views of the text, of one caption that `record` draws and changes; the first has hidden words."""
    c.data.eval_record = c.data.record  # nothing is changed there, and WordNet not needed
    c.data.record = f"{c.data.record}|{record}".strip("|")
    c.data.streams["text/v0"] = f"caption: tokenize({length})|mlm(.15)"
    c.data.streams["text/v1"] = f"caption_eda: tokenize({length})"
    for name in ("image", "text"):
        del c.data.streams[name]


def tiny(c):
    """The `:tiny` variant: synthetic data, two layers, a minute."""
    views.tiny(c)
    with c.unlocked():
        texts(c, 12, "draw('captions', 'caption')|eda('caption', 'caption_eda', synonyms='words')")
        c.method.update(queue=128, simsiam_dim=32, simsiam_hidden=16, bn_groups=4)
    return c
