"""GMC (arXiv 2202.03390) on emoji: colour drawings, line art, names and spoken names; the recipe is ours.

mmcl data build emoji_modalities/speech && mmcl train --config configs/gmc_emoji.py
mmcl train --config configs/gmc_emoji.py:tiny                    # synthetic data, a minute, no data set needed

Images are drawings of one of four styles, line art is OpenMoji's, speech is synthetic and English. All emoji have all
four, so that each subset can be compared with the whole.
"""

from . import common, emoji, gmc

VARIANTS = {"": None}
MODALITIES = ("image", "line", "text", "speech")
SOUND = "log_mel(16000, mels=64, frames=96)|standardize(-6, 4)"
STYLES = ("image", "images/noto", "images/twemoji", "images/fluent_flat")


def get_config(arg: str = ""):
    """Variants: "" and "tiny" (synthetic)."""
    common.variant(VARIANTS, arg, default="")
    c = common.base()
    c.method = dict(name="gmc", embed_dim=128, latent=128, hidden=(256,), temperature=0.1)
    if arg == "tiny":
        return gmc.tiny(c)
    c.encoders = towers()
    data(c)
    c.steps = 250
    return c


def towers() -> dict:
    """The encoders, for GMC and what is compared with it."""
    tower = emoji.image_tower()
    speech = tower | dict(patch=16, stem_norm=True)
    return dict(image=dict(tower), line=dict(tower), text=emoji.text_tower(), speech=speech)


def data(c) -> None:
    """Data, streams, optimizer and evaluations, for GMC and what is compared with it."""
    train, held_out = (
        dict(source="tfds", name="emoji_modalities/speech", split=split, in_memory=True) for split in ("train", "test")
    )
    fields = ", ".join(f"'{style}'" for style in STYLES)
    c.data.train = train
    c.data.record = f"collect('drawings', {fields})|collect('captions', 'labels/en', 'tags/en')"
    c.data.eval_record = ""
    light = emoji.LIGHT_VIEW.format(statistics="clip")
    whole = "decode(128)|resize(32) || normalize('clip')"
    c.data.streams = dict(
        image=f"drawings: pick|{light}",
        line=f"line_art: {light}",
        text="captions: pick(.8)|tokenize(10)",
        speech=f"speech/en: sound(16000)|excerpt(15600) || gain(6)|{SOUND}|spec_augment(6, 12)",
    )
    c.data.eval_streams = dict(
        image=whole,
        line=f"line_art: {whole}",
        text="labels/en: tokenize(10)",
        speech=f"speech/en: sound(16000)|center_excerpt(15600) || {SOUND}",
    )
    c.data.tokenizer.update(fields=("captions",), vocab=4096)
    c.data.update(threads=1, cache_mib=256)
    c.optim.update(lr=1.2e-3, warmup=50, decay=0.1)
    c.batch, c.eval_every, c.checkpoint.every = 128, 0, 250
    c.evals = {
        f"missing_{label}": dict(name="missing", data=held_out, fit=train, modalities=MODALITIES, label=label)
        for label in ("group", "subgroup")
    }
    for a, b in (("image", "text"), ("speech", "text"), ("line", "speech")):
        c.evals[f"{a}_{b}"] = dict(name="retrieval", data=held_out, a=a, b=b)
