"""CLIP on emoji, small enough for a laptop. Paper: arXiv 2103.00020; recipe: ours, sized for two CPU cores."""

from . import common


def get_config(arg: str = ""):
    """Variants: "" (OpenMoji), "styles" (five styles, evaluated on three unseen ones), "tiny" (synthetic)."""
    c = common.base()
    c.method = dict(name="clip", embed_dim=128)
    c.encoders.image = dict(name="vit", size="Ti", width=128, depth=4, heads=4, mlp=512, patch=8, pool="mean")
    c.encoders.text = dict(name="text", size="Ti", width=128, depth=2, heads=4, mlp=512, vocab=4096)
    if arg == "tiny":
        common.tiny(c)
    return c
