"""ImageBind (arXiv 2305.05665) on emoji and stamps: what never met a text, bound to images; the recipes are ours.

    mmcl data build emoji_modalities/speech
    mmcl train --config configs/imagebind_emoji.py:clip --workdir runs/clip            # images and English names
    mmcl train --config configs/imagebind_emoji.py --config.init_from.run=runs/clip    # line art and speech to images
    mmcl train --config configs/imagebind_emoji.py:direct --config.init_from.run=runs/clip   # and to names, to compare
    mmcl train --config configs/imagebind_emoji.py:tiny                                # synthetic data, a minute

Towers of images and texts are those of the first run, frozen. Line art and names spoken in two languages, by eSpeak,
are bound to images of the training split; that they are near texts then, and near each other, is what emerges. A name
is always the same recording, its middle two seconds: to know it at any shift takes more steps than these. In
`direct` the hub are texts: the pair that is evaluated is trained. `tux-clip`, `tux` and `tux-direct` are the same with
stamps and their sound effects, in five folds (--config.data.train.fold=0), all three runs of a fold on the same one.
"""

from . import common, imagebind, modalities

VARIANTS = {  # hub of what is bound; "" = CLIP, from which the towers come
    "": "image", "direct": "text", "clip": "", "tux": "image", "tux-direct": "text", "tux-clip": "",
}  # fmt: skip
LANGUAGES = ("en", "de")
SCALES = dict(line=10.0, speech=20.0, sound=20.0)  # 1 / tau; of sounds, that of the paper


def get_config(arg: str = ""):
    """Variants: "" and direct, after clip; tux and tux-direct, after tux-clip; tiny (synthetic)."""
    hub = common.variant(VARIANTS, arg, default="")
    if arg == "tiny":
        return imagebind.get_config("tiny")
    c = common.base()
    modalities.set_up(c, "tux" if arg.startswith("tux") else "")
    if arg.startswith("tux"):
        bound = ("sound",)
        c.steps = 200 if hub else 300
    else:
        bound = ("line", "speech")
        c.steps = 600
        _speech(c)
    if hub:
        if arg.startswith("tux"):
            c.data.train.complete = True  # a picture without a sound binds nothing
        c.method = dict(name="imagebind", embed_dim=128, hub=hub, scales={name: SCALES[name] for name in bound})
        c.optim.rules = ("(image|text)(_readout)?/: lr=0",)
    else:
        c.method = dict(name="clip", embed_dim=128)
        for name in bound:
            del c.encoders[name], c.data.streams[name]
        for name in [name for name in c.data.eval_streams if name.split("/")[0] in bound]:
            del c.data.eval_streams[name]
    _evaluate(c, bound if hub else ())
    return c


def _speech(c) -> None:
    """Names are spoken in one of the languages; of these, each is evaluated."""
    c.encoders.speech.patch = 32  # twelve tokens are enough for two seconds
    fields = ", ".join(f"'speech/{language}'" for language in LANGUAGES)
    c.data.record = modalities.drawings("labels/en", "tags/en", "group_words")  # words that zero-shot classes ask for
    c.data.record += f"|one_of('said', {fields})"
    c.data.streams.speech = modalities.heard("said", 2)
    for language in LANGUAGES:
        name = "speech" if language == "en" else f"speech/{language}"
        c.data.eval_streams[name] = modalities.heard(f"speech/{language}", 2)


def _evaluate(c, bound) -> None:
    """Retrieval of texts, of trained and of held-out concepts; of what is bound from each other, and its classes."""
    tux = c.data.train.source == "folds"
    held_out = dict(part="test") if tux else dict(split="validation+test")
    known = dict(part="train", complete=True) if tux else dict(split="train")
    letters = dict(without=("is_letter",)) if tux else {}  # fourteen of them share four sounds
    streams = [name for name in c.data.eval_streams if name.split("/")[0] in bound]
    c.evals = {}
    if not tux:
        modalities.emoji_gaps(c)
    for prefix, data in (("", held_out), ("known_", known)):
        for name in ("image", *streams):
            c.evals[f"{prefix}{name.replace('/', '_')}_text"] = dict(
                name="retrieval", data=data, a=name, b="text", **letters
            )
        if len(bound) > 1:
            c.evals[f"{prefix}line_speech"] = dict(name="retrieval", data=data, a="line", b="speech")
    if bound and not tux:  # for gradient blending, see mmcl_jax/analysis/blend.py
        for name, split in (("held", "validation"), ("seen", "train")):
            c.evals[name] = dict(name="losses", data=dict(split=split), limit=128)
    if bound:
        how = dict(label="category", title="caption") if tux else dict(label="group", title="labels/en")
        how["weight"] = 2.0  # images lie near each other: with as much weight as they have, a sound would hardly count
        c.evals.known_arithmetic = dict(name="arithmetic", data=known, added="sound" if tux else "speech", **how)
    for name in bound:
        c.evals[f"{name}_image"] = dict(name="retrieval", data=held_out, a=name, b="image", **letters)
        c.evals[f"{name}_zeroshot"] = dict(
            name="zeroshot", data=held_out, stream=name, label="category" if tux else "group"
        )
