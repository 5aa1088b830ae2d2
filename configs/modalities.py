"""What the experiments with three modalities or more share: towers, data and evaluations, on emoji and on stamps."""

from ml_collections import ConfigDict

from . import emoji

SOUND = "log_mel(16000, mels=64, frames={frames})|standardize(-6, 4)"
STYLES = ("image", "images/noto", "images/twemoji", "images/fluent_flat")
LIGHT = emoji.LIGHT_VIEW.format(statistics="clip")
WHOLE = "decode(128)|resize(32) || normalize('clip')"


def set_up(c: ConfigDict, bed: str) -> None:
    """Encoders, data, streams, optimizer and evaluations of a test bed: "" (emoji) or "tux" (stamps)."""
    {"": _emoji, "tux": _tux}[bed](c)
    c.data.update(threads=1, cache_mib=256)
    c.optim.update(lr=1.2e-3, warmup=50, decay=0.1)
    c.batch, c.eval_every, c.checkpoint.every = 128, 0, 250


def _emoji(c: ConfigDict) -> None:
    """Drawings of one of four styles, OpenMoji's line art, names, and names spoken by eSpeak: all emoji have all."""
    emoji_towers(c)
    train, held_out = (
        dict(source="tfds", name="emoji_modalities/speech", split=split, in_memory=True)
        for split in ("train", "validation+test")  # nothing is chosen by the validation split
    )
    c.data.train = train
    c.data.record = drawings("labels/en", "tags/en")
    c.data.eval_record = ""
    c.data.streams = dict(
        image=f"drawings: pick|{LIGHT}", line=f"line_art: {LIGHT}", text="captions: pick(.8)|tokenize(10)",
        speech=heard("speech/en", augment=True),
    )  # fmt: skip
    c.data.eval_streams = dict(
        image=WHOLE, line=f"line_art: {WHOLE}", text="labels/en: tokenize(10)",
        speech=heard("speech/en"),
    )  # fmt: skip
    c.data.tokenizer.update(fields=("captions",), vocab=4096)
    parts = ("image", "line", "text", "speech")
    for label in ("group", "subgroup"):
        c.evals[f"missing_{label}"] = dict(
            name="missing", data=held_out, fit=train, modalities=parts, label=label, cs=(0.001, 0.01, 0.1, 1.0, 10.0)
        )
    for a, b in (("image", "text"), ("speech", "text"), ("line", "speech")):
        c.evals[f"{a}_{b}"] = dict(name="retrieval", data=held_out, a=a, b=b)
    emoji_gaps(c)


def emoji_gaps(c: ConfigDict) -> None:
    """How far apart modalities lie, of concepts trained on and of others."""
    for name, split in (("known", "train"), ("concepts", "validation+test")):
        c.evals[f"{name}_gap"] = dict(name="gap", data=dict(split=split))


def emoji_towers(c: ConfigDict) -> None:
    """A tower for each modality of the emoji."""
    tower = emoji.image_tower()
    speech = tower | dict(patch=16, stem_norm=True)
    c.encoders = dict(image=dict(tower), line=dict(tower), text=emoji.text_tower(), speech=speech)


def drawings(*texts: str) -> str:
    """Record ops that gather an emoji's drawings, and its texts in some fields."""
    images, captions = (", ".join(f"'{field}'" for field in fields) for fields in (STYLES, texts))
    return f"collect('drawings', {images})|collect('captions', {captions})"


def heard(field: str, seconds: int = 1, augment: bool = False) -> str:
    """The stream of a sound: its middle seconds; augmented, any seconds of it, louder or softer, with parts hidden."""
    samples, frames = 15600 * seconds, 96 * seconds
    sound = SOUND.format(frames=frames)
    if not augment:
        return f"{field}: sound(16000)|center_excerpt({samples}) || {sound}"
    return f"{field}: sound(16000)|excerpt({samples}) || gain(6)|{sound}|spec_augment(6, {frames // 8})"


def _tux(c: ConfigDict) -> None:
    """Pictures, captions and sound effects: of 950 stamps 130 have all three; these are tested in five folds."""
    layers = ((32, (8, 8), (4, 4), (2, 2)), (64, (4, 4), (2, 2), (1, 1)), (128, (4, 4), (2, 2), (1, 1)))
    c.encoders = dict(
        image=emoji.image_tower(), text=emoji.text_tower(), sound=dict(name="conv", layers=layers, norm="batch",
                                                                       pool="mean"),
    )  # fmt: skip
    c.data.train = dict(
        source="folds", of=dict(source="tfds", name="tux_stamps/default", split="all", in_memory=True),
        fold=0, by="thing", needs=("sfx",),
    )  # fmt: skip
    c.data.streams = dict(image=LIGHT, text="caption: tokenize(16)", sound=heard("sfx", 2, augment=True))
    c.data.eval_streams = dict(image=WHOLE, text="caption: tokenize(16)", sound=heard("sfx", 2))
    c.data.tokenizer.update(fields=("caption",), vocab=2048)
    c.encoders.text.vocab = 2048
    held_out, known = dict(part="test"), dict(part="train")
    c.evals.missing = dict(
        name="missing", data=held_out, fit=known, modalities=("image", "text", "sound"), label="category"
    )
    # Fourteen letters share four sounds: with and without them.
    for a, b in (("image", "text"), ("sound", "text"), ("image", "sound")):
        c.evals[f"{a}_{b}"] = dict(name="retrieval", data=held_out, a=a, b=b, without=("is_letter",))
