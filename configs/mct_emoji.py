"""MCT (arXiv 2104.12836) on emoji, with the towers of clip_emoji.py; the recipe is ours.

mmcl data build emoji_styles/all && mmcl train --config configs/mct_emoji.py
mmcl sweep --config configs/mct_emoji.py --out runs/mct          # image only, + text, + tag, + inter-modal
mmcl train --config configs/mct_emoji.py:tiny                    # synthetic data, a minute, no data set needed

Captions are an emoji's English label and keywords, of which two different ones are drawn; its tags are the keywords,
the subgroup and the group. More than two shared tags are mostly group, subgroup and a keyword; some 3,200 different
ones share 2,048 places, so that one in twenty of the further positives is a coincidence. A queue of 2,048 holds about
1.4 drawings of each concept, which count as negatives.
"""

from . import common, emoji, mct

VARIANTS = {"": None}


def get_config(arg: str = ""):
    """Variants: "" and "tiny" (synthetic)."""
    common.variant(VARIANTS, arg, default="")
    c = common.base()
    # The weights between modalities are for a queue of 2048; the paper's, as far as we know, for a longer one.
    inter = dict(w_image_text=0.01, w_text_image=0.01)
    c.method = dict(name="mct", embed_dim=128, intra_dim=64, hidden=256, queue=2048, momentum=0.99, **inter)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower(dropout=0.1)
    if arg == "tiny":
        return mct.tiny(c)
    emoji.finish(c, "probes", statistics="clip")
    del c.data.streams["image"], c.data.streams["text"]
    c.data.record += "|two('captions')|collect('tag_words', 'tags/en', 'subgroup', 'group')"
    c.data.streams.update({f"text/v{i}": f"captions{i}: tokenize(10)" for i in (0, 1)})
    c.data.streams.tags = "tag_words: multi_hot(2048)"
    return emoji.finish_views(c, 450)


def sweep():
    """The ablation of the terms: image only, + text, + tag, + inter-modal."""
    off = {f"method.w_{term}": 0.0 for term in ("text", "tag", "image_text", "text_image")}
    yield off
    yield off | {"method.w_text": 1.0}
    yield off | {"method.w_text": 1.0, "method.w_tag": 1.0}
    yield {}
