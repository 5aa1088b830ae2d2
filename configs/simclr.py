"""SimCLR (Chen et al. 2020, arXiv 2002.05709) with the paper's recipe, on one's own images.

    mmcl train --config configs/simclr.py --config.data.train.path=images.csv             # ResNet-50, 224 pixels
    mmcl train --config configs/simclr.py:cifar --config.data.train.path=cifar.csv        # ResNet-18, 32 pixels
    mmcl train --config configs/simclr.py:tiny                                            # synthetic data, a minute

Recipe: LARS with learning rate 0.3 x batch / 256, warm-up of 10 epochs, cosine, batch 4096, 100 epochs of ImageNet's
1,281,167 images, temperature 0.1, batch statistics of the global batch. Decay is 1e-6 as in the paper; the official
code's README has 1e-4. CIFAR: temperature 0.5, colours half as strong, no blur, batch 512, 1000 epochs of 50,000
images, learning rate 1.0 (the paper's, on a ResNet-50). Images are not normalised. The table needs a column `image`
and, for the evaluations, `label`. Another batch wants other steps and warm-up, the learning rate follows by itself.
The numbers of the paper were not reproduced here.
"""

from . import common, views

# variant: (ResNet, stem, pixels, strength of the colours, temperature, batch, images, epochs, learning rate)
VARIANTS = {
    "R50": ("50", "imagenet", 224, 1.0, 0.1, 4096, 1_281_167, 100, 0.3),
    "cifar": ("18", "small", 32, 0.5, 0.5, 512, 50_000, 1000, 0.5),
}


def get_config(arg: str = "R50"):
    """Variants: R50 (the default), cifar, tiny."""
    size, stem, pixels, s, temperature, batch, examples, epochs, lr = common.variant(VARIANTS, arg, default="R50")
    c = common.base()
    c.batch, c.steps = batch, epochs * examples // batch
    c.dtype = "bfloat16"
    c.method = dict(name="simclr", embed_dim=128, temperature=temperature)
    c.encoders.image = dict(name="resnet", size=size, stem=stem, zero_init=True)
    views.images(c, pixels, dict(lr=0.1, batch=4096, epochs=90), statistics="")
    jitter = f"{0.8 * s:.2g}, {0.8 * s:.2g}, {0.8 * s:.2g}, {0.2 * s:.2g}"
    for name in ("image/v0", "image/v1"):
        c.data.streams[name] = views.view(pixels, "(.08, 1)", jitter, blur=pixels > 64, pad="zero", statistics="")
    c.optim.update(name="lars", lr=lr, scaling="linear", warmup=10 * examples // batch, decay=1e-6, clip=0.0)
    return views.tiny(c) if arg == "tiny" else c
