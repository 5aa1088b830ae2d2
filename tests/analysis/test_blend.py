"""Gradient blending: guards, and the way from a run's evaluations to weights."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmcl_jax import config as configs
from mmcl_jax import log, train
from mmcl_jax.analysis import blend
from mmcl_jax.named import ConfigError

DATA = dict(source="synthetic", modalities=("image", "audio", "tags"), size=130)


def test_what_does_not_generalise_weighs_nothing():
    found = blend.weights([[2.0, 2.0, 2.0], [1.0, 1.0, 1.5]], [[2.0, 2.0, 2.0], [1.5, 2.5, 1.5]])
    assert found[1] == 0 and 0.99 < found[2] <= 1 and np.isfinite(found).all()  # the third does not overfit at all
    np.testing.assert_array_equal(blend.weights([[1.0, 1.0]] * 2, [[1.0, 1.0], [2.0, 2.0]]), [0.5, 0.5])


def test_weights_of_a_run(tmp_path):
    folder = Path(__file__).parent.parent.parent
    config = configs.load(f"{folder}/configs/gmc.py:tiny", ["steps=8", "eval_every=4", "optim.warmup=1"])
    config.evals = {
        "held": dict(name="losses", data=DATA | dict(split="test")),
        "seen": dict(name="losses", data=DATA | dict(split="train")),
    }
    train.train(config, tmp_path, jax.devices()[:1])
    rows = {4: {}, 8: {}}
    for row in log.read_metrics(tmp_path / "metrics.jsonl"):
        if "loss" not in row:
            rows[row["step"]].update(row)
    for row in rows.values():
        assert row["held/n"] == 128, "two batches of 64"
        np.testing.assert_allclose(
            row["held/loss"], sum(row[f"held/{m}"] for m in ("image", "audio", "tags")), rtol=1e-5
        )
    assert rows[8]["held/loss"] < rows[4]["held/loss"]
    found = blend.weights_of_run(tmp_path, ("image", "audio", "tags"), 4, 8)
    wanted = blend.weights(*([[rows[s][f"{n}/{m}"] for m in found] for s in (4, 8)] for n in ("seen", "held")))
    assert list(found.values()) == wanted.tolist() and abs(sum(found.values()) - 1) < 1e-9
    with pytest.raises(ConfigError, match=r"at step 5 there is no seen/image; evaluated are the steps \[4, 8\]"):
        blend.weights_of_run(tmp_path, ("image",), 5, 8)
