# %% [markdown]
# # Bring your own data
#
# A folder of images and a table: that is all the source `files` needs. This notebook writes such a folder (out of a data set, with a few faults put in, as real ones have them), looks at it, asks `mmcl doctor`, trains a small CLIP on it, and looks at what was left out.
#
# Put your own table in `TABLE` and leave the cell that writes it out.

# %% tags=["parameters"]
FOLDER = "runs/my_data"
TABLE = f"{FOLDER}/pairs.csv"
BUILD = "openmoji/color"  # where these images come from; "" if it needs no building
DATA = {split: dict(source="tfds", name="openmoji/color", split=split) for split in ("train", "test")}
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
if BUILD:
    datasets.build(BUILD)
images = Path(FOLDER, "images")
images.mkdir(parents=True, exist_ok=True)
with open(TABLE, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption", "split"])
    for split, data in DATA.items():
        source = sources.make(data)
        for i in range(min(len(source), COUNT)):
            record = source[i]
            name = f"{split}_{i}.png"
            PIL.Image.fromarray(decode(record["image"])).save(images / name)
            caption = record[CAPTION] if isinstance(record[CAPTION], str) else record[CAPTION][0]
            writer.writerow([f"images/{name}", caption, split])
    writer.writerow(["images/not_there.png", "a file that is missing", "train"])
    writer.writerow(["images/broken.png", "a file that ends too early", "train"])
    writer.writerow(["images/train_0.png", "", "train"])
(images / "broken.png").write_bytes((images / "train_1.png").read_bytes()[:200])
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
# What can't be read is masked and counted, by reason; over `data.fault_budget` (5 %) the run stops and says why. A row without a caption has an image all the same, and is no fault.

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
found = model.embed(image=[str(images / "test_0.png")], text=["a flag", "a face", "a building"])
print(model.score(found["image"], found["text"]).round(3))

# %% [markdown]
# Next: start from another run's weights (`--config.init_from.run=runs/other`), freeze a tower (`--config.optim.rules="('image/.*: lr=0',)"`), change the method (`configs/siglip.py`, `configs/filip.py`: the same data and streams).
