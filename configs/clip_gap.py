"""What opens and closes the modality gap of CLIP (arXiv 2203.02053), on emoji; the recipes are ours.

    mmcl train --config configs/clip_emoji.py --workdir runs/clip                                   # four minutes
    mmcl train --config configs/clip_gap.py:t20 --config.init_from.run=runs/clip                    # temperature 1 / 20
    mmcl train --config configs/clip_gap.py:all                                                     # from the start
    mmcl train --config configs/clip_gap.py:tiny                                                    # synthetic data

`t1` to `t100` go on from a run of CLIP at a fixed temperature. The others start anew, with the data, towers and steps
of clip_emoji.py: `plain` is CLIP; `all` has negatives of the own modality too, `easy` no gradient of pairs that are not
found yet, `uniform` the uniformity of both modalities, `turn` texts that are turned onto images at the start, `warm` a
temperature that falls from 1 to 1 / 50. The gap is measured on concepts trained on, and on others.
"""

from . import common, emoji

FIXED = {f"t{scale}": scale for scale in (1, 10, 20, 30, 50, 100)}
CHOICES = {
    "plain": dict(),
    "all": dict(negatives="all"),
    "easy": dict(negatives="easy"),
    "uniform": dict(uniformity=0.5),
    "turn": dict(turn=True),
    "warm": dict(scale_init=1.0, scale_end=50.0, scale_steps=800),
}
VARIANTS = (*CHOICES, *FIXED)


def get_config(arg: str = "plain"):
    """Variants: plain, all, easy, uniform, turn, warm; t1, t10, t20, t30, t50, t100, after a run of CLIP; tiny."""
    common.variant(dict.fromkeys(VARIANTS), arg, default="plain")
    c = common.base()
    c.method = dict(name="clip_gap", embed_dim=128)
    c.encoders.image, c.encoders.text = emoji.image_tower(), emoji.text_tower()
    c = emoji.finish(c, "tiny" if arg == "tiny" else "", statistics="clip")
    with c.unlocked():
        if arg == "tiny":  # all that there is
            c.method.update(uniformity=0.1, turn=True)
            return c
        if arg in FIXED:
            scale = float(FIXED[arg])
            c.method.update(scale_init=scale, scale_min=scale, scale_max=scale)
            c.steps = 400
            c.optim.update(lr=3e-4, warmup=20)
        else:
            c.method.update(CHOICES[arg])
        c.eval_every = 0
        for name in ("seen", "unseen"):
            c.evals[f"{name}_gap"] = dict(name="gap", data=c.evals[name].data)
    return c
