# %% [markdown]
# # Missing modalities
#
# GMC ([arXiv 2202.03390](https://arxiv.org/abs/2202.03390)) trained on emoji that have a drawing, line art, a name and a spoken name. What is left when some of them are missing: from each of the subsets an emoji is represented, compared with the whole, classified, and found.
#
# The run takes some ten minutes of a CPU core. `configs/pairwise.py` and `configs/late_fusion.py` work as well, and any config that has an evaluation of the kind `missing`; the first of its modalities should be an image.

# %% tags=["parameters"]
CONFIG = "configs/gmc_emoji.py"
OVERRIDES = []
RUN = "runs/gmc"
BUILD = "emoji_modalities/speech"  # needs npm; "" if the config needs none
DATA = dict(source="tfds", name="emoji_modalities/speech", split="validation+test", in_memory=True)
MISSING = "missing_group"  # the config's evaluation of the kind `missing`
COUNT = 60  # examples that are looked at

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
from mmcl_jax.analysis import gap_figures, geometry, modality_gap
from mmcl_jax.data import datasets, sources
from mmcl_jax.data.ops import decode
from mmcl_jax.data.record import look_up
from mmcl_jax.evals import figures
from mmcl_jax.evals.missing import subsets
from mmcl_jax.train import train

os.chdir(Path(mmcl_jax.__file__).parent.parent)  # the root of the clone
c = config.load(CONFIG, OVERRIDES)
if BUILD:
    datasets.build(BUILD)
if not Path(RUN, "summary.json").exists():
    train(c, RUN)

# %% [markdown]
# ## Examples, some of which lack something
#
# `fuse` represents an example by whatever it has: a value of each stream, or None. A stream's field says what is expected of it, as in the data.

# %%
model, source = mmcl_jax.load(RUN), sources.make(DATA)
names = [*c.evals[MISSING].modalities]
records = [model.streams.record(source[i], i) for i in range(min(COUNT, len(source)))]
values = {name: [look_up(r, model.streams.chains[name].field) for r in records] for name in names}
for name in names:
    there = [v for v in values[name] if v is not None]
    print(f"{name:8} {len(there)} of {len(records)} have one, the first: {str(there[0])[:40] if isinstance(there[0], str) else np.shape(there[0]) or type(there[0]).__name__}")

# %%
only = model.fuse(**{name: [v if name == names[0] else None for v in values[name]] for name in names})
whole = model.fuse(**values)
print(f"from {names[0]} alone {only.shape}, from all {whole.shape}; mean cosine of the two {(geometry.unit(only) * geometry.unit(whole)).sum(1).mean():.3f}")

# %% [markdown]
# ## What is left of the whole
#
# From each subset, an example's vector against those of all complete examples: how often is its own the nearest? Only these few examples are candidates; the evaluator below takes all.

# %%
complete = [i for i in range(len(records)) if all(values[name][i] is not None for name in names)]
whole = geometry.unit(whole[complete])
own, cosine = {}, {}
for subset in subsets(names):
    z = geometry.unit(model.fuse(**{name: [values[name][i] if name in subset else None for i in complete] for name in names}))
    own["+".join(subset)] = modality_gap.recalls(z, whole)["x2y/R@1"]
    cosine["+".join(subset)] = (z * whole).sum(1).mean()
fig, axes = plt.subplots(1, 2, figsize=(8.5, 0.8 + 0.26 * len(own)), sharey=True, layout="constrained")
for ax, found, title in zip(axes, (own, cosine), ("the whole is the nearest of all, share", "cosine with the whole")):
    ax.barh([*found], [*found.values()], color="C0")
    ax.set_title(title, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].invert_yaxis();

# %% [markdown]
# ## Classification and retrieval from each subset
#
# What the evaluator `missing` found at the end of the run, on all complete test examples: a classifier fitted on whole training examples says the class, and the example's other modalities are looked for.

# %%
results = json.loads(Path(RUN, "summary.json").read_text())["evals"]
figures.subsets({k.removeprefix(f"{MISSING}/"): v for k, v in results.items() if k.startswith(f"{MISSING}/")}, names, f"{RUN}/subsets.png")
Image(f"{RUN}/subsets.png")

# %% [markdown]
# "drop" is what is lost against complete examples:

# %%
for n in range(1, len(names)):
    print(f"{n} left: top-1 {results[f'{MISSING}/{n}_left/top1']:.3f}, drop {results[f'{MISSING}/{n}_left/drop']:.3f}, R@1 of the others {results[f'{MISSING}/{n}_left/R@1']:.3f}")

# %% [markdown]
# ## From one modality to another
#
# Each modality has vectors of its own in the common space, so that any of them finds any other, whether or not they were ever compared.

# %%
both, vectors = model.embed_source(source, names).pairs(*names)  # of the records that have all
z = dict(zip(names, vectors))
for a in names:
    print(f"{a:8}", " ".join(f"-> {b} {modality_gap.recalls(z[a], z[b])['x2y/R@5']:.3f}" for b in names if b != a))
print(f"R@5 of {len(both)}; chance {5 / len(both):.3f}")

# %% [markdown]
# Where they lie: a colour is a modality, lines join what belongs to one example.

# %%
gap_figures.map_of_modalities(z, pairs=20)

# %% [markdown]
# Which images are nearest to the last modality of the list, here a spoken name?

# %%
last = names[-1]
queries = np.linspace(0, len(both) - 1, 5).astype(int)
fig, axes = plt.subplots(len(queries), 6, figsize=(7.2, 1.25 * len(queries)))
for line, q in zip(axes, queries):
    near = np.argsort(-(z[names[0]] @ z[last][q]))[:5]
    for ax, i in zip(line, [q, *near]):
        record = model.streams.record(source[int(both[i])], int(both[i]))
        ax.imshow(decode(look_up(record, model.streams.chains[names[0]].field)))
        ax.axis("off")
    line[0].set_title("its own image", fontsize=7)
    line[1].set_title(f"nearest to its {last}", fontsize=7)

# %% [markdown]
# Pictures: all emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0.
