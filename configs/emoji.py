"""What the emoji configs share: data, streams, evaluations and the length of the runs."""

from ml_collections import ConfigDict

from . import common

TRAINED = ("openmoji", "noto", "emojione", "noto_v1", "emojione_v1")
VARIANTS = ("", "styles")
UNSEEN = ("twemoji", "fluent_flat", "fluent_high_contrast")


def finish(c: ConfigDict, arg: str, statistics: str, sot: bool = True) -> ConfigDict:
    """Completes a config by its variant: "", "styles" or "tiny"."""
    if arg not in (*VARIANTS, "tiny"):
        raise ValueError(f"Variant {arg!r}; possible: '' (none), styles, tiny.")
    if arg == "tiny":
        return common.tiny(c)
    label, tags = ("labels/en", "tags/en") if arg else ("label", "tags")
    c.data.record = f"collect('captions', '{label}', '{tags}')"
    tokenize = f"tokenize(10, sot={sot})"
    # On grey, a background is close to 0 once normalised, and neither black lines nor white shapes get lost in it.
    c.data.streams = dict(
        image=f"decode(128)|crop(32, scale=(.7, 1), ratio=(.85, 1.18)) "
        f"|| jitter(.2, .2, .3, .02)|gray(.1)|normalize('{statistics}')",
        text=f"captions: pick(.8)|{tokenize}",
    )
    c.data.eval_streams = dict(
        image=f"decode(128)|resize(32) || normalize('{statistics}')", text=f"{label}: {tokenize}"
    )
    c.data.tokenizer.update(fields=("captions",), vocab=4096)
    c.data.update(threads=1, cache_mib=256)
    c.optim.update(lr=1.2e-3, warmup=100, decay=0.1)
    if arg == "styles":
        _styles(c)
    else:
        _openmoji(c)
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


def _set(name: str, split: str) -> dict:
    return dict(source="tfds", name=name, split=split, in_memory=True)
