"""What the emoji configs share: data, streams, evaluations and the length of the runs."""

from ml_collections import ConfigDict

from . import common

TRAINED = ("openmoji", "noto", "emojione", "noto_v1", "emojione_v1")
VARIANTS = ("", "styles", "probes", "compare")
UNSEEN = ("twemoji", "fluent_flat", "fluent_high_contrast")
# Emoji are stored at 64 x 64: small enough to be cropped on the device.
LIGHT_VIEW = (
    "decode(128)|crop(32, scale=(.7, 1), ratio=(.85, 1.18)) "
    "|| jitter(.2, .2, .3, .02, shuffled=False)|gray(.1)|normalize('{statistics}')"
)
VIEW = (
    "{field}: decode(128) || crop(32, scale=(.3, 1))|flip|jitter(.4, .4, .4, .1;.8)|gray(.2)|blur(.3)"
    "|normalize('{statistics}')"
)


def image_tower() -> dict:
    """The image tower of CLIP and of the self-supervised methods."""
    return dict(name="vit", size="Ti", width=128, heads=2, depth=4, patch=8, pool="mean", activation="quick_gelu")


def text_tower(**more) -> dict:
    """The text tower of CLIP and of what is compared with it."""
    return dict(name="text", size="Ti", width=128, heads=2, depth=1, vocab=4096, activation="quick_gelu") | more


def finish(c: ConfigDict, arg: str, statistics: str, sot: bool = True) -> ConfigDict:
    """Completes an image-text config by its variant: one of `VARIANTS`, or "tiny"."""
    if arg not in (*VARIANTS, "tiny"):
        raise ValueError(f"Variant {arg!r}; possible: '' (none), styles, probes, compare, tiny.")
    if arg == "tiny":
        return common.tiny(c)
    label, tags = ("labels/en", "tags/en") if arg else ("label", "tags")
    # For zero-shot classification, the names of groups stand among the captions, as those of classes do in the web's.
    more = ", 'subgroup_words', 'group_words'" if arg == "compare" else ""
    c.data.record = f"collect('captions', '{label}', '{tags}'{more})"
    tokenize = f"tokenize(10, sot={sot})"
    # On grey, a background is close to 0 once normalised, and neither black lines nor white shapes get lost in it.
    c.data.streams = dict(image=LIGHT_VIEW.format(statistics=statistics), text=f"captions: pick(.8)|{tokenize}")
    c.data.eval_streams = dict(
        image=f"decode(128)|resize(32) || normalize('{statistics}')", text=f"{label}: {tokenize}"
    )
    c.data.tokenizer.update(fields=("captions",), vocab=4096)
    c.data.update(threads=1, cache_mib=256)
    c.optim.update(lr=1.2e-3, warmup=100, decay=0.1)
    {"": _openmoji, "styles": _styles, "probes": _probes, "compare": _compare}[arg](c)
    return c


def finish_views(
    c: ConfigDict, steps: int, pairs: bool = False, statistics: str = "clip", arg: str = "probes"
) -> ConfigDict:
    """Completes a config with two views: of one drawing, or of the drawings of two styles, `pairs`.

    Streams and record ops that the config has already stay. `arg` is "probes" or "compare".
    """
    for i, field in enumerate(("images0", "images1") if pairs else ("image", "image")):
        c.data.streams[f"image/v{i}"] = VIEW.format(field=field, statistics=statistics)
    c.data.eval_streams.image = f"decode(128)|resize(32) || normalize('{statistics}')"
    c.data.update(threads=1, cache_mib=256)
    c.optim.update(lr=1.2e-3, decay=0.1)
    {"probes": _probes, "compare": _compare}[arg](c, steps)
    if pairs:
        c.data.train = dict(source="joined", parts=dict(c.data.train))
        images = ", ".join(f"'{style}/image'" for style in TRAINED)
        c.data.record = f"collect('images', {images})|two('images')"
    return c


def _openmoji(c: ConfigDict) -> None:
    """One style, for the quickstart: some four minutes."""
    c.batch, c.steps, c.eval_every, c.checkpoint.every = 128, 800, 200, 200
    c.data.train = _set("openmoji/color", "train")
    c.evals = dict(
        seen=dict(name="retrieval", data=_set("openmoji/color", "train")),
        unseen=dict(name="retrieval", data=_set("openmoji/color", "test"), without=("is_flag",)),
        zeroshot=dict(name="zeroshot", data=_set("openmoji/color", "test"), label="group"),
    )


def _styles(c: ConfigDict) -> None:
    """Five styles; evaluated on concepts never trained on, and on styles never trained on."""
    c.batch, c.steps, c.eval_every, c.checkpoint.every = 128, 5500, 500, 500
    c.data.train = {style: _set(f"emoji_styles/{style}", "train") for style in TRAINED}
    unseen = {style: _set(f"emoji_styles/{style}", "train") for style in UNSEEN}
    held_out = _set("emoji_styles/openmoji", "test")
    c.evals = dict(
        unseen_concepts=dict(name="retrieval", data=held_out, without=("is_flag",)),
        unseen_styles=dict(name="shift", of="retrieval", over=unseen, without=("is_flag",)),
        groups=dict(name="zeroshot", data=held_out, label="group"),
        subgroups=dict(name="zeroshot", data=held_out, label="subgroup"),
    )


def _probes(c: ConfigDict, steps: int = 750) -> None:
    """Five styles for six minutes of a core, and what the image tower's features are good for."""
    c.steps = steps
    c.batch, c.eval_every, c.checkpoint.every = 128, 0, 500
    c.optim.warmup = 50
    c.data.train = {style: _set(f"emoji_styles/{style}", "train") for style in TRAINED}
    known, held_out = _set("emoji_styles/openmoji", "train"), _set("emoji_styles/openmoji", "test")
    labels = dict(fit=known, label=("group", "subgroup"))
    c.evals = {
        "knn": dict(name="knn", data=held_out, **labels),
        "linear": dict(name="linear", data=held_out, **labels),
        "fewshot": dict(name="fewshot", data=held_out, **labels),
        # Is the nearest drawing of a known style that of the same concept?
        "concept": dict(name="knn", data=_set("emoji_styles/twemoji", "train"), fit=known, label="concept_id", k=1),
        # Concepts and styles that are both unseen.
        "shift": dict(
            name="shift", of="knn", over={style: _set(f"emoji_styles/{style}", "test") for style in UNSEEN}, **labels
        ),
    }
    if "text" in c.encoders:
        c.evals.seen = dict(name="retrieval", data=_set("emoji_styles/twemoji", "train"), without=("is_flag",))
        c.evals.unseen = dict(name="retrieval", data=held_out, without=("is_flag",))


def _compare(c: ConfigDict, steps: int = 750) -> None:
    """Five styles for six minutes of a core; the tables of FDT's paper on known and unknown styles and concepts."""
    _probes(c, steps)
    # known concepts in a known style (trained on), and in a new one; new concepts in both
    known, style = _set("emoji_styles/openmoji", "train"), _set("emoji_styles/twemoji", "train")
    concepts, both = _set("emoji_styles/openmoji", "test"), _set("emoji_styles/twemoji", "test")
    c.evals = {"known": dict(name="retrieval", data=known)}
    for name, data in dict(style=style, concepts=concepts).items():
        c.evals[name] = dict(name="retrieval", data=data, without=("is_flag",))
    for name, data in dict(known=known, style=style, concepts=concepts).items():
        c.evals[f"{name}_gap"] = dict(name="gap", data=data)
    for name, data in dict(style=style, concepts=concepts, both=both).items():
        for label in ("group", "subgroup"):
            c.evals[f"{name}_{label}"] = dict(name="zeroshot", data=data, label=label)
        if name != "style":
            c.evals[f"{name}_linear"] = dict(name="linear", data=data, fit=known, label=("group", "subgroup"))


def _set(name: str, split: str) -> dict:
    return dict(source="tfds", name=name, split=split, in_memory=True)
