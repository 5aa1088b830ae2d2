"""Ranks and recalls against independent loops, ties included: ours are the pessimistic ones."""

import numpy as np

from mmcl_jax.evals.retrieval import KS, ranks_of_scores, summary
from tests.golden.reference import load


def test_retrieval_metrics():
    g = load("retrieval_metrics")
    cases = sorted({k.split("_")[0] for k in g if k.startswith("case")})
    assert cases
    for case in cases:
        scores = g[f"{case}_similarity_image_by_text"]
        positive = g[f"{case}_text_owner_image_index"][None] == np.arange(len(scores))[:, None]
        rsum = 0.0
        for way, found in (("i2t", ranks_of_scores(scores, positive)), ("t2i", ranks_of_scores(scores.T, positive.T))):
            prefix = f"{case}_pessimistic_{way}"
            np.testing.assert_array_equal(found, g[f"{prefix}_ranks"])
            metrics = summary(found)
            for k in KS:
                np.testing.assert_allclose(100 * metrics[f"R@{k}"], g[f"{prefix}_R{k}"], rtol=1e-6)
                rsum += 100 * metrics[f"R@{k}"]
            assert metrics["MedR"] == g[f"{prefix}_MedR"]
            np.testing.assert_allclose(metrics["MeanR"], g[f"{prefix}_MeanR"], rtol=1e-6)
        np.testing.assert_allclose(rsum, g[f"{case}_pessimistic_rsum"], rtol=1e-6)
