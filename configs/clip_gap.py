"""What opens and closes the modality gap of CLIP (arXiv 2203.02053), on emoji; the recipes are ours.

    mmcl train --config configs/clip_gap.py --workdir runs/clip                       # CLIP, five minutes
    mmcl train --config configs/clip_gap.py:t20 --config.init_from.run=runs/clip      # goes on at temperature 1 / 20
    mmcl train --config configs/clip_gap.py:all                                       # from the start
    mmcl train --config configs/clip_gap.py:tiny                                      # synthetic data

`plain` is CLIP, from the start, with the data, towers and steps of clip_emoji.py. With one thing changed: `all` has
negatives of the own modality too, `uniform` the uniformity of both modalities, `turn` texts that are turned onto images
at the start, `warm` a temperature that falls from 1 to 1 / 50 in the first half. The others go on from a run of CLIP:
`more` as it was, `t1` to `t100` at a fixed temperature, `easy` without gradient of pairs that are not found yet (from
the start, none is found). The gap is measured on concepts trained on, and on others.
"""

from . import common, emoji

VARIANTS = {  # arguments of the method; or 1 / temperature, fixed
    "plain": {},
    "all": {"negatives": "all"},
    "uniform": {"uniformity": 0.5},
    "turn": {"turn": True},
    "warm": {"scale_init": 1.0, "scale_end": 50.0, "scale_steps": 400},
    "more": {},
    "easy": {"negatives": "easy"},
    "t1": 1.0, "t10": 10.0, "t20": 20.0, "t30": 30.0, "t50": 50.0, "t100": 100.0,
}  # fmt: skip
FROM_THE_START = ("", "plain", "all", "uniform", "turn", "warm")


def get_config(arg: str = "plain"):
    """Variants: plain, all, uniform, turn, warm; after a run: more, easy, t1, t10, t20, t30, t50, t100; tiny."""
    chosen = common.variant(VARIANTS, arg, default="plain")
    c = common.base()
    c.method = dict(name="clip_gap", embed_dim=128)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    c = emoji.finish(c, "tiny" if arg == "tiny" else "", statistics="clip")
    with c.unlocked():
        if arg == "tiny":
            c.method.update(negatives="all", uniformity=0.1)
            c.evals.val_gap = dict(name="gap", data=c.evals.val.data)
            return c
        if isinstance(chosen, float):
            chosen = dict(scale_init=chosen, scale_min=chosen, scale_max=chosen)
        c.method.update(chosen)
        if arg not in FROM_THE_START:
            c.steps = 400
            c.optim.update(lr=3e-4, warmup=20)
        c.eval_every = 100
        for name in ("seen", "unseen"):
            c.evals[f"{name}_gap"] = dict(name="gap", data=c.evals[name].data)
    return c
