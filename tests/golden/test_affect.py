"""Metrics of MOSEI and MOSI, against scikit-learn's as the golden file has them."""

import numpy as np

from mmcl_jax.evals.affect import affect_metrics
from tests.golden.reference import load


def test_affect():
    g = {k.removeprefix("affect_"): v for k, v in load("misc_metrics").items() if k.startswith("affect_")}
    found = affect_metrics(g["pred"], g["truth"])
    names = {"MAE": "mae", "corr": "corr"}
    for ours, theirs in (("", "include_zero"), ("_nonzero", "exclude_zero")):
        names[f"acc2{ours}"] = f"accuracy_{theirs}"
        names[f"F1{ours}"] = f"weighted_f1_standard_argument_order_{theirs}"
        names[f"F1{ours}_official"] = f"weighted_f1_official_argument_order_{theirs}"
    assert set(found) == set(names)
    for ours, theirs in names.items():
        np.testing.assert_allclose(found[ours], g[theirs], rtol=1e-6, err_msg=ours)
