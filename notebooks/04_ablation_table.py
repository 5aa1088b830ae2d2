# %% [markdown]
# # An ablation
#
# Runs of several configs with several seeds, as a table with deviations, as learning curves, and as a picture of one metric against another. Here: what closes the modality gap of CLIP (`configs/clip_gap.py`), five variants with three seeds each.
#
# Point `OUT` at a folder of finished runs and leave `CONFIGS` empty: then nothing is trained.

# %% tags=["parameters"]
CONFIGS = [f"configs/clip_gap.py:{variant}" for variant in ("plain", "all", "uniform", "turn", "warm")]
GRID = ["seed=0,1,2"]
OVERRIDES = []
BUILD = "openmoji/color"  # the data set; "" if the configs need none
OUT = "runs/closing"
METRICS = ["seen_gap/image_text/size", "seen/i2t/R@1", "unseen_gap/image_text/size", "unseen/i2t/R@5"]
OVER_STEPS = ["loss", "seen_gap/image_text/size", "seen/i2t/R@1"]

# %%
# %matplotlib inline
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown

import mmcl_jax
from mmcl_jax import files, sweep, table
from mmcl_jax.data import datasets
from mmcl_jax.log import read_metrics
from mmcl_jax.table.picture import name_of, picture

os.chdir(Path(mmcl_jax.__file__).parent.parent)  # the root of the clone

# %% [markdown]
# What is not finished yet is trained, one run after another, five minutes of a CPU core each: an hour and a quarter for all. It does what this command does, and may be interrupted and started again:
#
# ```bash
# mmcl sweep --config configs/clip_gap.py:{plain,all,uniform,turn,warm} --grid seed=0,1,2 --out runs/closing
# ```

# %%
if CONFIGS:
    if BUILD:
        datasets.build(BUILD)
    runs = sweep.plan(CONFIGS, GRID, OVERRIDES, OUT)
    if sweep.run(runs, OUT) != 0:
        raise SystemExit("The sweep was interrupted, or a run failed; this cell goes on with what is left.")

# %% [markdown]
# ## The table
#
# A line for runs that differ in nothing but the seed; columns are the keys of the config that tell the lines apart. Mean ± deviation over seeds; where a metric can be better or worse, bold is the best, and ≈ what these seeds can't tell from it. Below it stands what else differs.
# `mmcl table` prints the same, and writes it as markdown, csv and a picture.

# %%
groups = table.group(table.read([OUT]))
metrics = table.choose(groups, METRICS)
Markdown(table.markdown(groups, metrics))

# %% [markdown]
# One number says little: each seed as a dot, mean and deviation as a bar.

# %%
picture(groups, metrics, files.path(f"{OUT}/table.png"))
Image(f"{OUT}/table.png")

# %% [markdown]
# ## Learning curves
#
# From each run's `metrics.jsonl`: the mean over seeds, and a band from the least to the most.

# %%
def curve(group, key):
    """Steps, and a metric's values [seeds, steps] at those that all seeds have."""
    found = [{row["step"]: row[key] for row in read_metrics(r.folder / "metrics.jsonl") if row.get(key) is not None} for r in group.runs]
    steps = sorted(set.intersection(*map(set, found)))
    return steps, np.array([[f[s] for s in steps] for f in found])


fig, axes = plt.subplots(1, len(OVER_STEPS), figsize=(4.4 * len(OVER_STEPS), 3.2), layout="constrained", squeeze=False)
for ax, key in zip(axes[0], OVER_STEPS):
    for group in groups:
        steps, values = curve(group, key)
        ax.plot(steps, values.mean(0), lw=1.3, label=name_of(group))
        ax.fill_between(steps, values.min(0), values.max(0), alpha=0.2)
    ax.set(xlabel="step", title=key)
    ax.spines[["top", "right"]].set_visible(False)
axes[0, 0].legend(frameon=False, fontsize=8)

# %% [markdown]
# ## One metric against another
#
# Is a smaller gap a better model? A dot is a run.

# %%
fig, ax = plt.subplots(figsize=(4.6, 3.4))
for group in groups:
    ax.plot(group.values(metrics[0]), group.values(metrics[1]), "o", label=name_of(group))
ax.set(xlabel=metrics[0], ylabel=metrics[1])
ax.legend(frameon=False, fontsize=8)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# All metrics of all runs, for a spreadsheet or a plot of one's own:

# %%
rows = table.rows(groups)
table.write_csv(groups, files.path(f"{OUT}/table.csv"))
print(len(rows), "lines of", len(rows[0]), "columns:", ", ".join([*rows[0]][:8]), "...")
