"""Metrics of tags, against scikit-learn's and SciPy's as the golden file has them."""

import numpy as np
import pytest

from mmcl_jax.evals.tagging import tagging_metrics
from tests.golden.reference import load


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_tagging(case):
    g = {k.removeprefix(f"{case}_"): v for k, v in load("audio_metrics").items() if k.startswith(case)}
    found = tagging_metrics(g["scores"], g["labels"])
    names = {"mAP": "mAP", "AUC": "AUC", "dprime": "dprime_mean_over_classes", "dprime_of_auc": "dprime_of_mean_auc"}
    for ours, theirs in names.items():
        np.testing.assert_allclose(found[ours], g[theirs], rtol=1e-12)
    for c in range(g["labels"].shape[1]):
        one = tagging_metrics(g["scores"][:, c : c + 1], g["labels"][:, c : c + 1])
        each = {"mAP": "ap", "AUC": "auc", "dprime": "dprime"}
        for ours, theirs in each.items():
            np.testing.assert_allclose(one[ours], g[f"{theirs}_per_class"][c], rtol=1e-12)
    skipped = tagging_metrics(g["scores_with_empty_class"], g["labels_with_empty_class"])
    np.testing.assert_allclose(skipped["mAP"], g["mAP_skipping_empty_class"], rtol=1e-12)
    assert skipped["tags"] == g["labels"].shape[1]
