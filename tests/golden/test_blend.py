"""Weights of gradient blending, against an independent computation."""

import numpy as np

from mmcl_jax.analysis.blend import weights
from tests.golden.reference import load


def test_weights():
    g = {k.removeprefix("gblend_"): v for k, v in load("misc_metrics").items() if k.startswith("gblend_")}
    losses = {part: [g[f"{part}_loss_start"], g[f"{part}_loss_end"]] for part in ("train", "val")}
    np.testing.assert_allclose(weights(losses["train"], losses["val"]), g["weights_sum_to_one"], rtol=1e-6)
