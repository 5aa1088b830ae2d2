"""The gap as an evaluator: by hand, with missing modalities, and what is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

import mmcl_jax
from mmcl_jax import config as configs
from mmcl_jax import evals, train
from mmcl_jax.analysis import modality_gap
from mmcl_jax.data import sources
from mmcl_jax.log import read_metrics
from mmcl_jax.named import ConfigError

DATA = dict(source="synthetic", size=90, split="test", modalities=("image", "audio", "tags"), missing=0.3)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = Path(__file__).parent.parent.parent
    config = configs.load(f"{folder}/configs/gmc.py:tiny", ["steps=4", "batch=16", "optim.warmup=1", "eval_every=2"])
    config.evals = {"gap": dict(name="gap", data=dict(split="test"), limit=50)}
    workdir = tmp_path_factory.mktemp("run")
    train.train(config, workdir, jax.devices()[:1])
    return workdir


def test_it_is_logged_during_training_for_every_pair(workdir):
    rows = [r for r in read_metrics(workdir / "metrics.jsonl") if "gap/audio_image/size" in r]
    assert [r["step"] for r in rows] == [2, 4]
    pairs = {"audio_image", "audio_tags", "image_tags"}
    assert {k.split("/")[1] for k in rows[0] if k.startswith("gap/")} == pairs | {"audio", "image", "tags"}
    assert all(0 < rows[-1][f"gap/{p}/size"] <= 2 for p in pairs)


def test_records_that_lack_one_are_left_out_of_its_pairs(workdir):
    predictor = mmcl_jax.load(workdir, batch=32)
    found = evals.run(predictor, "gap", dict(name="gap", data=DATA))
    source = sources.make(DATA)
    records = [source[i] for i in range(len(source))]
    both = [r for r in records if "image" in r and "tags" in r]
    assert 0 < len(both) < len(records)
    z = predictor.embed(image=[r["image"] for r in both], tags=[r["tags"] for r in both])
    for key, value in modality_gap.gap(z["image"], z["tags"]).items():
        assert found[f"image_tags/{key}"] == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(found["image_tags/size"], np.linalg.norm(z["image"].mean(0) - z["tags"].mean(0)), 1e-5)
    two = evals.run(predictor, "gap", dict(name="gap", data=DATA, modalities=("image", "tags")))
    assert "audio/cone" not in two and two["image_tags/size"] == pytest.approx(found["image_tags/size"])


def test_what_is_refused(workdir):
    predictor = mmcl_jax.load(workdir, batch=32)
    with pytest.raises(ConfigError, match="two modalities or more; there is image"):
        evals.check(predictor, {"gap": dict(name="gap", data=DATA, modalities=("image",))})
    with pytest.raises(ConfigError, match="no stream 'imige'; did you mean 'image'"):
        evals.check(predictor, {"gap": dict(name="gap", data=DATA, modalities=("imige", "tags"))})
    apart = DATA | dict(missing=0.0, modalities=("image", "audio"))
    with pytest.raises(ConfigError, match="no record has a readable 'tags'"):
        evals.run(predictor, "gap", dict(name="gap", data=apart))
