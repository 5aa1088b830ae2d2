"""MoCo v2 (He et al. 2019, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297) with the papers' recipe.

    mmcl train --config configs/moco.py --config.data.train.path=images.csv               # ResNet-50, 224 pixels
    mmcl train --config configs/moco.py:tiny                                              # synthetic data, a minute

Recipe: SGD with learning rate 0.03 x batch / 256, momentum 0.9, decay 1e-4 of all parameters, no warm-up, a cosine
that falls once an epoch, batch 256, 200 epochs of ImageNet's 1,281,167 images. Batch statistics are those of each
device (`bn_groups=0`: as many groups as there are devices when the run begins) and keys are shuffled, as published;
`--config.encoders.image.bn_groups=1` takes statistics of the whole batch instead, where shuffling means nothing. The
official crops are bilinear, ours bicubic. The table needs a column `image` and, for the evaluations, `label`. Another
batch wants other steps and `optim.hold`, the learning rate follows by itself. The numbers of the papers were not
reproduced here.
"""

from . import common, views

VARIANTS = {"R50": ("50", 200), "R50-800": ("50", 800)}  # (ResNet, epochs)


def get_config(arg: str = "R50"):
    """Variants: R50 (200 epochs, the default), R50-800, tiny."""
    size, epochs = common.variant(VARIANTS, arg, default="R50")
    c = common.base()
    epoch = 1_281_167 // 256  # steps; the official code leaves out the last few images
    c.batch, c.steps = 256, epochs * epoch
    c.method = dict(name="moco", embed_dim=128, queue=65_536, momentum=0.999)
    c.encoders.image = dict(name="resnet", size=size, bn_groups=0)
    views.images(c, 224, dict(lr=30.0, batch=256, epochs=100, schedule="steps"))
    for name in ("image/v0", "image/v1"):
        c.data.streams[name] = views.view(224, "(.2, 1)", ".4, .4, .4, .1")
    c.optim.update(name="sgd", lr=0.03, scaling="linear", warmup=0, hold=epoch, decay=1e-4, no_decay="", clip=0.0)
    return views.tiny(c) if arg == "tiny" else c
