# %% [markdown]
# # The modality gap
#
# Images and texts of a contrastive model lie in two regions that do not meet: *Mind the Gap*, [arXiv 2203.02053](https://arxiv.org/abs/2203.02053). This notebook measures it on a run, looks at it, moves it,
# and follows it back to where it comes from: to networks that have learnt nothing yet.
#
# Everything of `mmcl_jax.analysis` takes arrays: [N, D] of one modality and of another, row i of both of one example. `modality_gap.read_pairs("image.npz", "text.npz")` reads embeddings of any origin.
# During training the evaluator `gap` writes the cheap part of it to the log, for any method.

# %% tags=["parameters"]
CONFIG = "configs/clip_gap.py"
OVERRIDES = []
RUN = "runs/clip"
BUILD = "openmoji/color"  # the data set; "" if the config needs none
CLASS = "group"  # field of a class, for zero-shot classification
DATA = dict(source="tfds", name="openmoji/color", split="train")
EVALUATION = "seen_gap"  # of the config: the evaluator `gap`
SEEDS = 25  # untrained models
WIDTH = 256  # of networks of random numbers
DEPTH = 20
REPEATS = 3

# %%
# %matplotlib inline
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE

import mmcl_jax
from mmcl_jax import config
from mmcl_jax.analysis import gap_figures, geometry, modality_gap
from mmcl_jax.data import datasets, sources
from mmcl_jax.log import read_metrics
from mmcl_jax.train import train

os.chdir(Path(mmcl_jax.__file__).parent.parent)  # the root of the clone
if BUILD:
    datasets.build(BUILD)
if not Path(RUN, "summary.json").exists():
    train(config.load(CONFIG, OVERRIDES), RUN)

# %% [markdown]
# ## How large is it
#
# The gap is the vector between the means of the two modalities' unit vectors; its size is its length, between 0 and 2. Here of emoji that were trained on, before the first step (`begun(seed)` gives the weights that a run with that seed
# begins with) and after the last.

# %%
source, trained = sources.make(DATA), mmcl_jax.load(RUN)


def embed(model, limit=0):
    """Images and first captions, row i of both of one record."""
    return model.embed_source(source, ["image", "text"], limit=limit).pairs("image", "text")[1]


pairs = {"untrained": embed(trained.begun(0)), f"after {trained.step} steps": embed(trained)}
for name, (x, y) in pairs.items():
    numbers = modality_gap.gap(x, y) | {
        "cone of images": geometry.cone(x)["cosine"],
        "of texts": geometry.cone(y)["cosine"],
        "least cosine of two images": geometry.cone(x)["min_cosine"],
        "alignment": geometry.alignment(x, y),
        "uniformity of images": geometry.uniformity(x),
        "of texts ": geometry.uniformity(y),
        "effective rank of images": geometry.collapse(x)["rank"],
        "told apart by a line": geometry.separability(x, y),
        "CKA": geometry.cka(x, y),
    }
    print(f"{name}: " + ", ".join(f"{k.strip()} {v:.3f}" for k, v in numbers.items()))

# %% [markdown]
# "paired" and "unpaired" are mean cosines across the modalities, "cone" the mean cosine within one, "told apart by a line" the accuracy of a logistic regression (0.5: they lie in one place).
#
# The map below shows the two directions in which all vectors together vary most, with lines between some of the pairs. Before training all images lie in one cone, all texts in another, and no line between them is short.

# %%
x, y = pairs["untrained"]
gap_figures.map_of_modalities({"image": x, "text": y}, pairs=100)

# %%
x, y = pairs[f"after {trained.step} steps"]
gap_figures.map_of_modalities({"image": x, "text": y}, pairs=100)

# %% [markdown]
# And over the steps of training, as the evaluator `gap` wrote it down. Most of it goes at once: the first point is a hundred steps after the start.

# %%
gap_figures.curves_of_training({"clip": f"{RUN}/metrics.jsonl"}, evaluation=EVALUATION)

# %% [markdown]
# ## Moving the modalities
#
# What if images and texts are pushed towards each other, or apart, along the gap, and brought to unit length again? A shift of 0.5 about closes it, beyond that they have crossed. Left: CLIP's loss at several temperatures, the run's own among them, a dot at its least; right: retrieval.
# Where the dot of the run's own temperature lies off the dotted line, its loss would be smaller with another gap, along this one direction.

# %%
grid = np.linspace(-1, 2, 25)
own = [row["scale"] for row in read_metrics(f"{RUN}/metrics.jsonl") if "scale" in row][-1]  # 1 / temperature at the end
scales = sorted([*modality_gap.SCALES, round(own, 1)])
curve = modality_gap.shift_curve(x, y, grid, scales, batch=128)
for scale, losses in zip(scales, curve["loss"].T):
    at = losses.argmin()
    print(f"temperature 1 / {scale:<5g} least loss {losses[at]:.3f} at a gap of {curve['signed'][at]:+.3f}; as it is {losses[np.abs(grid).argmin()]:.3f}")
gap_figures.curve_of_shift(curve, scales)

# %%
best = curve["x2y/R@1"].argmax()
as_it_is = np.abs(grid).argmin()
print(f"i2t R@1 {curve['x2y/R@1'][as_it_is]:.3f} as it is, {curve['x2y/R@1'][best]:.3f} at best, shifted by {grid[best]:.2f}: to choose it is to look at the answers")

# %% [markdown]
# The same for classification by words: images, and the vectors of their classes' words, are moved along the gap between these two.

# %%
found = trained.embed_source(source, ["image"], keep=[CLASS])
labels = np.array([found.kept[CLASS][i] for i in found.owners["image"]])
classes = trained.embed(text=[name.replace("-", " ") for name in sources.class_names(source, CLASS)])["text"]
accuracy = modality_gap.zero_shot_curve(found.vectors["image"], classes, labels, grid, along="gap")
print(f"{len(classes)} classes; the largest has {np.bincount(labels).max() / len(labels):.3f} of the images")
print("top-1 by shift:", " ".join(f"{by:.2f}: {a:.3f}" for by, a in zip(grid[::4], accuracy[::4])))

# %% [markdown]
# ## Why the loss does not close it
#
# The paper's simulation: nine pairs on a sphere, images at one height and texts at the opposite one; the gap is twice that height. With all pairs right the loss is least where there is no gap. If two pairs are swapped, as captions of the web
# are now and then, it is least at a gap for low temperatures: to be wrong and close costs more than to be apart.

# %%
heights = np.linspace(0, 0.99, 60)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for ax, wrong in zip(axes, (False, True)):
    for scale in (1.0, 10.0, 50.0, 100.0):
        loss = np.array([modality_gap.contrastive_loss(*modality_gap.sphere(z, wrong), scale) for z in heights])
        loss = (loss - loss.min()) / np.ptp(loss)
        (line,) = ax.plot(2 * heights, loss, lw=1.3, label=f"1 / {scale:g}")
        ax.plot(2 * heights[loss.argmin()], 0, "o", color=line.get_color(), ms=6)
    ax.set(xlabel="gap", ylabel="loss, from its least to its most", title="two pairs swapped" if wrong else "all pairs right")
    ax.legend(frameon=False, fontsize=8, title="temperature")
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Where it comes from
#
# Layers of random numbers: the deeper, the narrower the cone in which whatever is put in comes out, most of all behind activations that are never negative. Inputs are Gaussian: their mean cosine is 0. Bands: several networks.

# %%
rng = np.random.default_rng(0)
inputs = rng.normal(size=(200, WIDTH))
fig, ax = plt.subplots(figsize=(5.5, 3.4))
for name in geometry.ACTIVATIONS:
    curves = np.array([geometry.cones_by_depth(inputs, *geometry.random_network(rng, WIDTH, DEPTH), name) for _ in range(REPEATS)])
    ax.plot(curves.mean(0), lw=1.3, label=name)
    ax.fill_between(np.arange(DEPTH + 1), curves.min(0), curves.max(0), alpha=0.2)
ax.set(xlabel="layers", ylabel="mean cosine of two inputs", ylim=(-0.05, 1.05))
ax.legend(frameon=False, fontsize=8)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Each network has a cone of its own. Below the same images through the image tower of the run, untrained, with different seeds; a colour is a seed. Two towers of two modalities are two such networks: there is the gap, before any data.

# %%
cones = [embed(trained.begun(seed), limit=60)[0] for seed in range(SEEDS)]
print({k: round(v, 3) for k, v in geometry.cones_apart(cones).items()})
points = TSNE(random_state=0).fit_transform(np.concatenate(cones))
fig, ax = plt.subplots(figsize=(4.6, 4.2))
ax.scatter(*points.T, s=5, c=np.repeat(np.arange(SEEDS), len(cones[0])), cmap="gist_rainbow", linewidths=0)
ax.set(xticks=[], yticks=[], title=f"t-SNE of the same {len(cones[0])} images in {SEEDS} untrained towers");

# %% [markdown]
# "within" is the mean cosine of two images of one seed, "across" of two seeds; "least_gap" the distance of the two seeds that are closest. The commands that measure what temperature does to the gap, what other methods leave of it, and what closes it in training stand in the README;
# `04_ablation_table` reads the last of these.
