# %% [markdown]
# # A first run
#
# A config, the data as the model sees it, training, what came out, and the trained model at work. Some ten minutes on two CPU cores, four or five of them training:
# the CLIP of `launch/quickstart.sh`, of 1.6 M parameters, on 1,582 of OpenMoji's emoji; 316 more are never trained on.
#
# To make it again: `bash launch/notebooks.sh 01_first_run`. On a GPU or TPU nothing changes.

# %% tags=["parameters"]
CONFIG = "configs/clip_emoji.py"
OVERRIDES = []  # ["optim.lr=3e-4", "steps=1600"]: what --config.optim.lr=3e-4 --config.steps=1600 are for `mmcl train`
RUN = "runs/first"
BUILD = "openmoji/color"  # the data set; "" if the config needs none
CLASSES = ["apple", "tiger", "umbrella", "violin"]
WORDS = ["red apple", "tiger", "umbrella with rain drops", "violin"]

# %%
# %matplotlib inline
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import mmcl_jax
from mmcl_jax import config
from mmcl_jax.data import datasets, sources
from mmcl_jax.data.ops import decode
from mmcl_jax.evals import show
from mmcl_jax.log import read_metrics
from mmcl_jax.train import train

os.chdir(Path(mmcl_jax.__file__).parent.parent)  # the root of the clone

# %% [markdown]
# ## The config
#
# A config is a Python file; the resolved one is plain data, and each of its keys can be changed. A key that does not exist is refused with the nearest one that does.

# %%
c = config.load(CONFIG, OVERRIDES)
print(c.method, c.encoders.image, c.encoders.text, sep="\n")
for name, ops in c.data.streams.items():
    print(f"{name}: {ops}")

# %%
try:
    config.load(CONFIG, ["optim.learning_rate=1e-3"])
except ValueError as error:
    print(error)

# %% [markdown]
# ## The data, as the model will see it
#
# Cropped, recoloured, tokenized: the training streams, decoded again for us. Look at this sheet before each long run.

# %%
if BUILD:
    datasets.build(BUILD)
Path(RUN).mkdir(parents=True, exist_ok=True)
show.contact_sheet(c, Path(f"{RUN}/data.png"), count=16)
Image(f"{RUN}/data.png")

# %% [markdown]
# ## Training
#
# The same as `mmcl train --config ... --workdir ...`. Interrupt the kernel whenever you like: the run is saved, and this cell goes on from there.

# %%
train(c, RUN);

# %% [markdown]
# ## What came out
#
# All of it lies in the run's folder: `metrics.jsonl` (a row for every log line and evaluation), `summary.json`, the pictures, the config, checkpoints.

# %%
Image(f"{RUN}/curves.png")

# %%
results = json.loads(Path(RUN, "summary.json").read_text())["evals"]
for name in (k for k in results if k.endswith(("R@1", "top1"))):
    print(f"{name:32} {results[name]:.3f}")
rows = [r for r in read_metrics(f"{RUN}/metrics.jsonl") if r.get("loss") is not None]
print(f"{len(rows)} rows of training; the last:", rows[-1])

# %% [markdown]
# Text to images, and an image to texts; what belongs together is marked green.

# %%
Image(f"{RUN}/retrieval.png")

# %% [markdown]
# ## The model at work
#
# `mmcl_jax.load` opens a run. It takes what a user has: paths, bytes or arrays of images, strings; and gives unit vectors.

# %%
model = mmcl_jax.load(RUN)
source = sources.make(c.data.train)
vectors = model.embed(image=[source[i]["image"] for i in range(4)], text=WORDS)
print({name: v.shape for name, v in vectors.items()}, model.score(vectors["text"], vectors["image"]).shape)

# %% [markdown]
# Which of the training images is nearest to some words, and which of a few classes does it say they are?

# %%
count = min(len(source), 2000)
images = model.embed_source(source, ["image"], limit=count)
found = model.score(vectors["text"], images.vectors["image"]).argmax(1)
fig, axes = plt.subplots(1, len(WORDS), figsize=(2.2 * len(WORDS), 2.4))
for ax, words, i in zip(axes, WORDS, found):
    ax.imshow(decode(source[int(images.owners["image"][i])]["image"]))
    ax.set_title(words, fontsize=9)
    ax.axis("off")

# %%
names, scores = model.zero_shot([source[int(images.owners["image"][i])]["image"] for i in found], CLASSES)
for words, name, row in zip(WORDS, names, scores):
    print(f"the image found for {words!r:27} {name:10} {np.round(row, 2)}")

# %% [markdown]
# It was trained on the names of 1,582 things: words that occur in them it knows, others it can't know. `unseen` above says how little it has learned of new ones.

# %% [markdown]
# Next: `02_embeddings_and_retrieval` (search by words), `03_modality_gap` (where the two modalities lie), `04_ablation_table` (several runs), `05_bring_your_data`.
#
# Pictures: all emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0.
