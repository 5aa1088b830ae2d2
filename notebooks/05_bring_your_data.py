# %% [markdown]
# # Bring your own data
#
# A folder of images and a table: that is all the source `files` needs. This notebook writes such a folder (out of a data set, with a few faults put in, as real ones have them), looks at it, asks `mmcl doctor`, trains a small CLIP on it, and looks at what was left out.
#
# For your own, put its path into `TABLE` and set `DATA = {}`: then nothing is written, and the rest is the same. Columns with other names are told by `data.train.image=...` and `data.train.caption=...`.

# %% tags=["parameters"]
FOLDER = "runs/my_data"
TABLE = f"{FOLDER}/pairs.csv"
BUILD = "openmoji/color"  # where these images come from; "" if it needs no building
DATA = {split: dict(source="tfds", name="openmoji/color", split=split) for split in ("train", "test")}  # {}: the table is yours
CAPTION = "label"  # field of the caption there
COUNT = 2000  # at most, of each split
CONFIG = "configs/clip.py:S"
RUN = "runs/mine"
SHORT = ["steps=400", "optim.warmup=50", "batch=128"]

# %%
# %matplotlib inline
import csv
import json
import os
from pathlib import Path

import PIL.Image
from IPython.display import Image

import mmcl_jax
from mmcl_jax import config, doctor
from mmcl_jax.data import datasets, sources
from mmcl_jax.data.ops import decode
from mmcl_jax.evals import show
from mmcl_jax.train import train

os.chdir(Path(mmcl_jax.__file__).parent.parent)  # the root of the clone

# %% [markdown]
# ## A table and a folder
#
# A row is an image and a caption (several rows with the same image are several captions of it). The table may be csv, tsv, jsonl or parquet; paths are relative to it. With a column `split` its words say what is for training; without, a hash of the path does.

# %%
def write_table():
    """A table and its images, and three rows with faults."""
    images = Path(FOLDER, "images")
    images.mkdir(exist_ok=True)
    with open(TABLE, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for split, data in DATA.items():
            source = sources.make(data)
            for i in range(min(len(source), COUNT)):
                record, name = source[i], f"{split}_{i}.png"
                PIL.Image.fromarray(decode(record["image"])).save(images / name)
                caption = record[CAPTION] if isinstance(record[CAPTION], str) else record[CAPTION][0]
                writer.writerow([f"images/{name}", caption, split])
        whole = (images / "train_0.png").read_bytes()
        (images / "broken.png").write_bytes(whole[:200])
        (images / "nameless.png").write_bytes(whole)
        writer.writerow(["images/broken.png", "a file that ends too early", "train"])
        writer.writerow(["images/not_there.png", "a file that is missing", "train"])
        writer.writerow(["images/nameless.png", "", "train"])


Path(FOLDER).mkdir(parents=True, exist_ok=True)
if BUILD and DATA:
    datasets.build(BUILD)
if DATA:
    write_table()
print(*open(TABLE).read().splitlines()[:4], "...", sep="\n")

# %% [markdown]
# ## A config for it
#
# A recipe of a paper, and what is different: where the data lies, and everything that makes it small enough for a CPU. Leave out the latter on an accelerator. The same as on the command line, `mmcl train --config configs/clip.py:S --config.data.train.path=runs/my_data/pairs.csv ...`.

# %%
OVERRIDES = [
    f"data.train.path={TABLE}",
    "evals.val.data.split=test",
    # small towers and images
    "encoders.image.width=128", "encoders.image.heads=2", "encoders.image.depth=4", "encoders.image.patch=8",
    "encoders.text.width=128", "encoders.text.heads=2", "encoders.text.depth=1", "method.embed_dim=128",
    "data.streams.image=decode|crop(32, scale=(.7, 1)) || normalize('clip')", "data.streams.text=captions: pick|tokenize(16)",
    "data.eval_streams.image=decode|resize(32) || normalize('clip')", "data.eval_streams.text=captions: first|tokenize(16)",
    "data.tokenizer.vocab=2048", "encoders.text.vocab=2048",
    # a short run
    "optim.lr=1.2e-3", "dtype=float32", "data.workers=0", "data.threads=1", "data.cache_mib=256", "log.every=50", "checkpoint.every=200", "eval_every=0",
    *SHORT,
]
c = config.load(CONFIG, OVERRIDES)

# %% [markdown]
# ## Before it starts
#
# What is wrong is said before anything compiles: what was given, what is possible. A column that is not there, for example:

# %%
try:
    sources.make({**c.data.train, "caption": "captoin"})
except ValueError as error:
    print(error)

# %% [markdown]
# `mmcl doctor` looks at the machine and at the plan: sizes, memory, what a device would hold. With `--devices 256` it does so for 256 devices that are not here.

# %%
for state, about, text in doctor.examine(CONFIG, OVERRIDES, devices=0, workdir=RUN):
    print(f"{state:8}{about:13}{text[:160]}")

# %% [markdown]
# And a look at what the model will see, `mmcl data show`:

# %%
show.contact_sheet(c, Path(f"{FOLDER}/sheet.png"), count=16)
Image(f"{FOLDER}/sheet.png")

# %% [markdown]
# ## Training

# %%
train(c, RUN);

# %% [markdown]
# ## What was left out
#
# What can't be read is masked; `unreadable` counts how often it was drawn, and the log above says what it was and why. Over a share of `data.fault_budget` (5 %) the run stops. The row without a caption has an image all the same: its text is missing, and that is no fault.
#
# The test rows here are things that the training rows don't have: of 156, chance finds .006 at R@1 and .032 at R@5. Some 1,600 pictures and a few minutes are a demonstration, not a data set.

# %%
summary = json.loads(Path(RUN, "summary.json").read_text())
print({k: v for k, v in summary.items() if k in ("steps", "loss", "unreadable", "bad_steps", "seconds")})
print({k: round(v, 3) for k, v in summary["evals"].items() if k.startswith("val/") and k.endswith(("R@1", "R@5", "n"))})

# %%
Image(f"{RUN}/retrieval.png")

# %% [markdown]
# ## The trained model

# %%
model = mmcl_jax.load(RUN)
test = sources.make({**c.data.train, "split": "test"})
found = model.embed(image=[test[0]["image"]], text=["a flag", "a face", "a building"])
print(test[0]["captions"], model.score(found["image"], found["text"]).round(3))

# %% [markdown]
# Next: start from another run's weights (`--config.init_from.run=runs/other`), freeze a tower (`--config.optim.rules="('image/.*: lr=0',)"`), change the method (`configs/siglip.py`, `configs/filip.py`: the same data and streams).
#
# Pictures: all emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0.
