"""What the configs of self-supervised methods share: augmented views, and their `:tiny` variants."""

from ml_collections import ConfigDict

from . import common


def view(
    pixels: int, scale: str, jitter: str, blur: bool = True, pad: str = "edge", statistics: str = "imagenet"
) -> str:
    """A strongly augmented view of a photo: cropped on the host, the rest on the device.

    Args:
        pixels: side of the crop.
        scale: range of its share of the area.
        jitter: strengths of brightness, contrast, saturation and hue, drawn for 8 of 10 images.
        blur: whether half of the images are blurred.
        pad: of the blur's borders.
        statistics: of `normalize`; "" = none.
    """
    device = [f"jitter({jitter};.8)", "gray(.2)"] + [f"blur(.5, pad='{pad}')"] * blur
    return f"decode|crop({pixels}, scale={scale})|flip || {'|'.join(device + _normalize(statistics))}"


def _normalize(statistics: str) -> list[str]:
    return [f"normalize('{statistics}')"] if statistics else []


def images(c: ConfigDict, pixels: int, probe: dict, statistics: str = "imagenet") -> None:
    """Data of one's own: a table of images with labels, on which kNN and a linear probe are evaluated at the end.

    Args:
        c: the config.
        pixels: side of the evaluation's crop.
        probe: the paper's numbers for the linear probe, by SGD.
        statistics: of `normalize`; "" = none.
    """
    c.data.train = dict(source="files", path="", split="train", root="", image="image", caption="")
    middle = f"decode|resize_short({round(pixels / 0.875)})|center_crop({pixels})"
    c.data.eval_streams = dict(image=f"{middle} || {'|'.join(_normalize(statistics))}")
    c.data.update(threads=16, workers=8)
    c.log.every, c.checkpoint.every, c.eval_every = 100, 2000, 0
    own = dict(data=dict(split="validation"), fit=dict(split="train"), label="label")
    c.evals = dict(knn=dict(name="knn", k=200, **own), linear=dict(name="linear", protocol="sgd", **probe, **own))


def tiny(c: ConfigDict) -> ConfigDict:
    """Turns a config with two views into its `:tiny` variant: synthetic data, two layers, a minute."""
    views = "decode|crop(16, scale=(.7, 1)) || jitter(.2, .2, .2, .05;.5)|blur(.2)|normalize"
    captions = c.encoders.get("text") is not None
    if captions:
        common.tiny(c)
    with c.unlocked():
        if not captions:
            common.tiny_run(c)
            c.data.streams, c.data.eval_streams = {}, dict(image="decode || normalize")
            common.tiny_tower(c.encoders.image)
        for name in ("image/v0", "image/v1"):
            c.data.streams[name] = views
        sizes = dict(embed_dim=32, hidden=32, queue=100, ssl_dim=32, ssl_hidden=32, ssl_layers=2)
        for key, value in sizes.items():
            if key in c.method:  # 100 is no multiple of the batch
                c.method[key] = value
        if "momentum" in c.method:
            c.method.momentum = 0.9  # the twin has 120 steps to follow
        bank = dict(source="synthetic", size=1024)
        knn = dict(name="knn", data=common.HELD_OUT, fit=bank, label="label", k=5)
        c.evals = dict(val=knn) if not captions else {**c.evals, "knn": knn}
    return c
