# %% [markdown]
# # What the codes of a codebook stand for
#
# CLIP+FDT ([arXiv 2303.14865](https://arxiv.org/abs/2303.14865), `mmcl_jax/encoders/fdt.py`) describes an image and a caption by the same codes: each of the two becomes weights over one codebook, and sparsemax makes some of them exactly zero: the other codes are active.
# Do the codes mean anything? This notebook shows the words and the image patches that activate some of them most (the paper's Figure 4, on emoji), and how many codes an image and a caption use and share.
#
# To make it again, from the root of the clone:
#
# ```bash
# mmcl data build emoji_styles/all
# mmcl train --config configs/fdt_emoji.py --workdir runs/fdt_emoji
# bash launch/notebooks.sh codebook
# ```
#
# `MMCL_RUN` points it at another run with codes.

# %%
# %matplotlib inline
import logging
import os
from pathlib import Path

import numpy as np

import mmcl_jax
from mmcl_jax.analysis import codebook
from mmcl_jax.data import sources

if Path.cwd().name == "notebooks":  # run from the root of the clone
    os.chdir("..")
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of each checkpoint that it opens
RUN = os.environ.get("MMCL_RUN", "runs/fdt_emoji")
predictor = mmcl_jax.load(RUN)
readout = predictor.method.readouts["image"]
print(f"{predictor.step} steps; {readout.codes} codes of {readout.dim} numbers")
decay = f"times {readout.temperature_decay} every {readout.temperature_every} steps"
print(f"{readout.attention}; {readout.pool} over tokens; T = {readout.temperature}, {decay}")

# %% [markdown]
# The examples are drawings of one style that was trained on, each with its name as its caption. They are known examples: we want to see what was learnt, not how well it carries over.

# %%
source = sources.make(dict(source="tfds", name="emoji_styles/openmoji", split="train"))
found = codebook.activations(predictor, source)
used = {name: x.weights > x.threshold for name, x in found.items()}  # [M, K]
for name, active in used.items():
    print(f"{name}: {len(active)} examples; {active.any(0).sum()} codes are active for at least one of them,")
    often = active.mean(0)
    print(f"    {(often > 0.1).sum()} for more than a tenth, {(often > 0.5).sum()} for more than half")
print(f"active for an image and for a caption: {(used['image'].any(0) & used['text'].any(0)).sum()} codes")

# %% [markdown]
# ## Words and patches
#
# Which codes to show is left to a rule (`shared_codes`): those that do most to tell an image's own caption from others, which means that their weights in images and in the images' captions go together; a code that repeats one already shown is passed over. Nothing was picked by hand.
#
# A row is a code. On the left are the words with the highest mean logit, out of words that occur at least five times. On the right are the images with the highest logit at any patch, and below each image its patches' logits as a heat map. The towers mix what their tokens see: a patch also knows of its neighbours, and a word of the words before it.

# %%
codes = codebook.shared_codes(**found, count=6)
found = codebook.activations(predictor, source, codes)
codebook.figure_of_codes(predictor, source, **found, count=6, least=5)

# %% [markdown]
# What to look for: a code has a clear meaning if its images have something in common that its words name. A code can also have a meaning in images alone, a colour or a shape, that no word in the list names; and a word may stand high because of the words that go before it.
#
# In the run whose outputs are kept here (450 steps, seed 0), code 841 is people with hair, and “man”, “hair”, “adult”, “worker” stand high; 888 is flags, and 942 blue squares, keycaps and buttons. Codes 325, 730 and 777 are red, yellow and green things: a colour in images, for which captions have few words, so that the list beside them says little. The heat maps of 888 and 942 are red nearly everywhere, the ground included: those codes stand for the whole picture, not for a place in it.
#
# Largest logits are not all that makes a caption: the first and the last token, `<sot>` and `<eot>`, have logits too, and where they are largest no single word decides. How often that happens:

# %%
text = found["text"]
strongest = np.where(text.mask[..., None], text.logits, -np.inf).argmax(1)  # [M, C]
ids = np.take_along_axis(text.ids, strongest, axis=1)
tokenizer = predictor.streams.tokenizer
for code, column in zip(codes, ids.T, strict=True):
    shares = [(column == token).mean() for token in (tokenizer.sot, tokenizer.eot)]
    print("code {:4d}: largest at <sot> in {:4.0%} of the captions, at <eot> in {:4.0%}".format(code, *shares))

# %% [markdown]
# ## Granularity
#
# An image has its codes, and so has a caption. How many are they, and are those of a matched pair the same? Two measures of what an image and a caption have in common: the Jaccard index of their active codes (how many are active in both, over how many are active in either), and the sum over codes of the smaller of the two weights, which is 1 if both sides have the same weights. Mismatched pairs are the same images with captions of ten other records each: what is in common by chance, or because all examples use some codes.

# %%
numbers = codebook.granularity(**found)
means = [numbers[name].mean() for name in ("image", "text")]
print("of {} codes an image uses {:.1f} on average, a caption {:.1f}".format(readout.codes, *means))
for measure in ("jaccard", "weight"):
    matched, mismatched = (numbers[f"{measure}/{kind}"].mean() for kind in ("matched", "mismatched"))
    print(f"{measure:7s}: {matched:.3f} matched, {mismatched:.3f} mismatched, a ratio of {matched / mismatched:.2f}")
none = [(numbers[f"jaccard/{kind}"] == 0).mean() for kind in ("matched", "mismatched")]
print("pairs without a code in common: matched {:.0%}, mismatched {:.0%}".format(*none))
codebook.figure_of_granularity(numbers)

# %% [markdown]
# The curves say how many pairs have at least so much in common. The further the green ones lie above the grey ones, the more of what tells pairs apart lies in which codes are used. Where most green values are far from 1, an image and its caption differ in much of what they use, and a pair is known by what it shares beyond the mismatched ones, not by being described alike.
