"""MCT (Yuan et al., CVPR 2021, arXiv 2104.12836) on one's own images, captions and tags.

    mmcl train --config configs/mct.py --config.data.train.path=coco.jsonl                # ResNet-50, COCO captions
    mmcl train --config configs/mct.py:tiny                                               # synthetic data, a minute

The table (jsonl or parquet) has a column of captions, of which two different ones of an image are drawn, and a column
`tags` of lists: words, which are hashed, or numbers below 4096. The recipe could not be verified against the paper:
SGD with momentum 0.9, learning rate 0.03, decay 1e-4, cosine, batch 512, 200 epochs of COCO's 118,287 images, queues
of 16,384. The constants of the losses are those of `mmcl_jax/methods/mct.py`, not verified either. The paper trains a
BERT that was trained before, with 4e-5; ours starts from scratch with the images' rate. For a text tower from another
run: --config.init_from.run=... --config.optim.rules="('text/: lr=0.00133',)".
"""

from ml_collections import ConfigDict

from . import common, views

VARIANTS = {"R50": ("50",)}


def get_config(arg: str = "R50"):
    """Variants: R50 (the default), tiny."""
    (size,) = common.variant(VARIANTS, arg, default="R50")
    c = common.base()
    c.batch, c.steps = 512, 200 * 118_287 // 512
    c.method = dict(name="mct", embed_dim=1024, queue=16_384, momentum=0.999)
    c.encoders.image = dict(name="resnet", size=size, bn_groups=0)
    # With a single caption, the two that are drawn are the same: only dropout tells them apart.
    c.encoders.text = dict(name="text", size="text-L", vocab=30_000, dropout=0.1)
    c.data.train = dict(source="files", path="", split="train", root="", image="image", caption="caption")
    c.data.record = "two('captions')"
    c.data.streams = {"tags": "multi_hot(4096)"}
    for i in (0, 1):
        c.data.streams[f"image/v{i}"] = views.view(224, "(.2, 1)", ".4, .4, .4, .1")
        c.data.streams[f"text/v{i}"] = f"captions{i}: tokenize(30)"
    c.data.eval_streams = dict(
        image="decode|resize_short(256)|center_crop(224) || normalize('imagenet')",
        text="captions: first|tokenize(30)",
    )
    c.data.tokenizer.update(fields=("captions",), vocab=30_000)
    c.data.update(threads=16, workers=8)
    c.optim.update(name="sgd", lr=0.03, warmup=0, decay=1e-4, no_decay="", clip=0.0)
    c.log.every, c.checkpoint.every, c.eval_every = 100, 2000, 10_000
    c.evals = dict(val=dict(name="retrieval", data=dict(split="validation")))
    return tiny(c) if arg == "tiny" else c


def tiny(c: ConfigDict) -> ConfigDict:
    """Turns a config of MCT into its `:tiny` variant: synthetic data, two layers, a minute."""
    views.tiny(c)
    with c.unlocked():
        c.data.train.modalities = ("image", "text", "tags")
        c.data.record = "two('captions')"
        for name in ("image", "text"):
            del c.data.streams[name]
        c.data.streams.update({f"text/v{i}": f"captions{i}: tokenize(12)" for i in (0, 1)} | {"tags": ""})
        c.method.update(intra_dim=32, tag_threshold=2, w_image_text=0.01, w_text_image=0.01)  # for the short queue
    return c
