"""Configs: loading, overriding, comparing, refusing."""

import json

import pytest

from mmcl_jax import config as configs
from mmcl_jax.losses import plan
from mmcl_jax.named import ConfigError


@pytest.fixture
def tiny(repository):
    return lambda *overrides: configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)


def test_overrides(tiny):
    c = tiny("batch=8", "optim.lr=1", "dtype=bfloat16", "optim.rules=('text/: lr=0',)", "encoders.image.pool=class")
    assert c.batch == 8 and c.optim.lr == 1.0 and isinstance(c.optim.lr, float) and c.dtype == "bfloat16"
    assert c.optim.rules == ("text/: lr=0",)
    assert c.encoders.image.pool == "class"
    assert tiny("evals={}").evals.to_dict() == {}


@pytest.mark.parametrize(
    "override, message",
    [
        ("bach=8", "did you mean 'batch'"),
        ("optim.l=1", "optim"),
        ("nothing.at.all=1", "there is no 'nothing'"),
        ("batch=True", "expected int"),
        ("batch=1.5", "expected int"),
        ("optim.lr=fast", "expected float"),
        ("log.tensorboard=1", "expected bool"),
        ("optim=3", "has parts"),
        ("batch", "write --config.batch=value"),
    ],
)
def test_wrong_overrides(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        tiny(override)


@pytest.mark.parametrize(
    "override, message",
    [
        ("batch=-8", "must be positive"),
        ("batch=12", "does not divide among 8 devices. Set --config.batch=8 or 16"),
        ("optim.warmup=1000000", "optim.warmup"),
        ("optim.average=1.0", "optim.average"),
        ("data.fault_budget=7.0", "is a share"),
        ("dtype=float16", "possible: float32"),
    ],
)
def test_values_that_cannot_work(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        configs.validate(tiny(override), devices=8)


def test_what_is_named_anew_starts_without_the_old_arguments(tiny):
    c = tiny("data.train.source=files", "data.train.path=pairs.csv", "encoders.image.name=mine.vit")
    assert c.data.train.to_dict() == {"source": "files", "path": "pairs.csv"}
    assert c.encoders.image.to_dict() == {"name": "mine.vit"}
    c = tiny("data.train.source=synthetic", "evals.val.data.split=train")
    assert c.data.train.size == 1024 and c.evals.val.data.size == 256, "the same name changes nothing"


def test_missing_file_names_its_neighbours(repository):
    with pytest.raises(ConfigError, match=r"There is no config .*clip_emogi.py. There is: .*clip_emoji.py"):
        configs.load(f"{repository}/configs/clip_emogi.py")
    with pytest.raises(ValueError, match="possible"):
        configs.load(f"{repository}/configs/clip.py:XXL")


def test_json_is_the_whole_config(tiny, tmp_path):
    c = tiny("batch=8")
    (tmp_path / "config.json").write_text(configs.to_json(c))
    again = configs.load(str(tmp_path / "config.json"))
    assert configs.diff(c.to_dict(), again.to_dict()) == {}
    assert json.loads(configs.to_json(again)) == json.loads(configs.to_json(c))


def test_a_continuation_may_change_little(tiny):
    saved = json.loads(configs.to_json(tiny()))
    changed = configs.check_continuation(saved, tiny("steps=7", "log.every=3").to_dict())
    assert changed == {"steps": (120, 7), "log.every": (10, 3)}
    moved = tiny("data.train.source=files", "data.train.path=there/pairs.csv")
    saved_moved = tiny("data.train.source=files", "data.train.path=here/pairs.csv").to_dict()
    assert list(configs.check_continuation(saved_moved, moved.to_dict())) == ["data.train.path"]
    with pytest.raises(ConfigError, match="optim.lr: 0.003 -> 0.5"):
        configs.check_continuation(saved, tiny("optim.lr=0.5").to_dict())


def test_forms_of_losses_are_those_that_there_are():
    assert configs.IMPLS == ("auto", *plan.IMPLS)


def test_chunks_belong_to_a_run_with_dropout(repository):
    saved = configs.load(f"{repository}/configs/clip_emoji.py:tiny").to_dict()
    assert configs.check_continuation(saved, saved | {"chunks": 2})
    saved["encoders"]["text"]["dropout"] = 0.1
    with pytest.raises(ConfigError, match="chunks: 1 -> 2"):
        configs.check_continuation(saved, saved | {"chunks": 2})


@pytest.fixture
def moco(repository):
    return lambda *overrides: configs.load(f"{repository}/configs/moco.py", overrides)


def test_groups_of_batch_statistics_are_settled_when_the_run_begins(moco):
    config = moco()
    configs.resolve(config, 8)
    assert config.encoders.image.bn_groups == 8
    begun = config.to_dict()
    elsewhere = moco()
    configs.resolve(elsewhere, 4, begun)
    assert elsewhere.encoders.image.bn_groups == 8, "it goes on as it began"
    assert configs.check_continuation(begun, elsewhere.to_dict()) == {}
    given = moco("encoders.image.bn_groups=2")
    configs.resolve(given, 8)
    assert given.encoders.image.bn_groups == 2


@pytest.mark.parametrize("overrides", [("encoders.image.bn_groups=3",), ("batch=8",)])
def test_groups_that_the_batch_does_not_fill_are_refused(moco, overrides):
    with pytest.raises(ConfigError, match="encoders.image.bn_groups=.*groups of two rows or more.*bn_groups=1"):
        configs.resolve(moco(*overrides), 8)
