# %% [markdown]
# # Embeddings and retrieval
#
# Vectors of a whole data set, search by words and by pictures, what a method takes for near, and where its numbers come from: recall is counted here by hand, too.
#
# Works on any run with images and texts whose vectors are compared by their cosine, as nearly all are; for FILIP, which compares tokens, take `model.items` and `embed_source(..., of="items")`.
# Here it is the run of `01_first_run`, which is trained now if it is not there.

# %% tags=["parameters"]
CONFIG = "configs/clip_emoji.py"
OVERRIDES = []
RUN = "runs/first"
BUILD = "openmoji/color"  # the data set; "" if the config needs none
DATA = dict(source="tfds", name="openmoji/color", split="train")
QUERIES = ["a grinning cat", "sunrise over the sea", "a slice of pizza", "blue flag", "a trumpet"]
CLASSES = ["animal", "food", "flag", "person", "clock", "arrow", "house"]
PROMPTS = ["{}", "{} emoji"]

# %%
# %matplotlib inline
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import mmcl_jax
from mmcl_jax import config, files
from mmcl_jax.analysis import geometry
from mmcl_jax.data import datasets, sources
from mmcl_jax.data.ops import decode
from mmcl_jax.evals import embeddings, figures, retrieval
from mmcl_jax.train import train

os.chdir(Path(mmcl_jax.__file__).parent.parent)  # the root of the clone
if BUILD:
    datasets.build(BUILD)
if not Path(RUN, "summary.json").exists():
    train(config.load(CONFIG, OVERRIDES), RUN)

# %% [markdown]
# ## Vectors of a data set
#
# `embed_source` reads records, a batch at a time. Each stream gives unit vectors, and `owners` says of which record each is: a record may have several captions, or no image.

# %%
model, source = mmcl_jax.load(RUN), sources.make(DATA)
found = model.embed_source(source, ["image", "text"])
image, text = found.vectors["image"], found.vectors["text"]
print(image.shape, text.shape, f"{found.size} records, {found.unreadable} unreadable")
print(found.texts["text"][:3])

# %% [markdown]
# ## Search by words
#
# Texts of one's own: nothing of these queries need be in the data. A row is a query and its six best images, with their scores.

# %%
def picture(i):
    """The image of the i-th vector."""
    return decode(source[int(found.owners["image"][i])]["image"])


def sheet(rows, titles):
    """Draws [(index, score), ...] of each row."""
    fig, axes = plt.subplots(len(rows), len(rows[0]), figsize=(1.3 * len(rows[0]), 1.55 * len(rows)), squeeze=False)
    for line, row, title in zip(axes, rows, titles):
        for ax, (i, score) in zip(line, row):
            ax.imshow(picture(i))
            ax.set_title(f"{score:.2f}", fontsize=7)
            ax.axis("off")
        line[0].set_title(f"{title}\n", fontsize=8, loc="left")
    fig.tight_layout()


scores = model.score(model.embed(text=QUERIES)["text"], image)  # [Q, N]
sheet([[(i, row[i]) for i in np.argsort(-row)[:6]] for row in scores], QUERIES)

# %% [markdown]
# ## Search by a picture, and by a picture and words
#
# The nearest images of an image (itself first), and of the sum of its vector and a text's: vectors are added like any other.

# %%
chosen = np.linspace(0, len(image) - 1, 4).astype(int)
rows = [[(j, s[j]) for j in np.argsort(-s)[:6]] for s in image[chosen] @ image.T]
sheet(rows, [f"record {found.owners['image'][i]}" for i in chosen])

# %%
added = geometry.unit(image[chosen] + model.embed(text=QUERIES[3:4])["text"])
sheet([[(j, s[j]) for j in np.argsort(-s)[:6]] for s in added @ image.T], [f"+ {QUERIES[3]}"] * len(chosen))

# %% [markdown]
# ## Recall by hand
#
# Each text looks for its record's image. Its rank is one more than the number of other records' images with a score as high or higher: ties count against us. The evaluator `retrieval` finds the same.

# %%
scores = model.score(text, image)  # [T, N]
own = found.owners["text"][:, None] == found.owners["image"]  # [T, N]
rows = own.any(1)  # texts whose record has an image
best = np.where(own, scores, -np.inf).max(1, keepdims=True)
rank = 1 + ((scores >= best) & ~own).sum(1)[rows]
print("by hand:  ", {k: round(float((rank <= k).mean()), 4) for k in (1, 5, 10)}, "median rank", np.median(rank))
results = retrieval.run(model, DATA)
print("evaluator:", {k: round(results[f"t2i/R@{k}"], 4) for k in (1, 5, 10)}, "median rank", results["t2i/MedR"])

# %%
figures.retrieval(model, DATA, f"{RUN}/sheet.png", name="training records", rows=5)
Image(f"{RUN}/sheet.png")

# %% [markdown]
# How far apart are the scores of pairs and of everything else? The less the two histograms overlap, the easier is retrieval.

# %%
paired, others = scores[own], np.random.default_rng(0).choice(scores[~own], 5000)
fig, ax = plt.subplots(figsize=(5.5, 2.8))
for values, label in ((paired, "a caption and its image"), (others, "a caption and another image")):
    ax.hist(values, bins=60, range=(-1, 1), density=True, alpha=0.6, label=label)
ax.set(xlabel="cosine", yticks=[])
ax.legend(frameon=False, fontsize=8)
ax.spines[["top", "right", "left"]].set_visible(False)

# %% [markdown]
# ## Classification without training
#
# The classes are words that we make up; the vector of a class is the mean over some prompts. `mmcl_jax/evals/zeroshot.py` does so for labels of the data.

# %%
some = np.random.default_rng(0).choice(len(image), 12, replace=False)
values = [source[int(found.owners["image"][i])]["image"] for i in some]
names, scores = model.zero_shot(values, CLASSES, PROMPTS)
fig, axes = plt.subplots(2, 6, figsize=(8, 3.3))
for ax, value, name, row in zip(axes.flat, values, names, scores):
    ax.imshow(decode(value))
    ax.set_title(f"{name} {row.max():.2f}", fontsize=8)
    ax.axis("off")

# %% [markdown]
# ## To take away
#
# `mmcl embed RUN --data tfds:name=openmoji/color,split=train --out DIR` writes the same vectors with the records' ids, as npz and parquet, for a search index or an analysis of one's own.

# %%
for path, count in embeddings.write(model, source, files.path(f"{RUN}/embeddings"), ["image", "text"]):
    print(path, count)
with np.load(f"{RUN}/embeddings/image.npz") as file:
    print({name: file[name].shape for name in file.files})

# %% [markdown]
# Pictures: all emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0.
