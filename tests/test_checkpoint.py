"""Checkpoints: what damage does, what another mesh does, what is never done silently."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import parallel
from mmcl_jax.checkpoint import Checkpoints, lock, rename_and_fit
from mmcl_jax.named import ConfigError
from mmcl_jax.types import TrainState
from tests.conftest import make_mesh


def state_at(step, width=64, mesh=None):
    w = jnp.asarray(np.random.default_rng(step).normal(size=(256, width)), jnp.float32)
    state = TrainState(jnp.int32(step), {"w": w}, ({"mu": w * 2},), {"queue": w[:3], "valid": jnp.ones(3, bool)})
    return jax.device_put(state, parallel.state_sharding(state, mesh or make_mesh("1")))


def abstract(state, mesh=None):
    sharding = parallel.state_sharding(state, mesh or make_mesh("1"))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, sharding)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, state_at(step), {"batch": 8})
    checkpoints.close()
    return tmp_path


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "one bit": flip_a_bit,
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "gone": lambda p: p.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_one_step_and_is_set_aside(saved, damage, caplog):
    DAMAGE[damage](largest_file(saved / "checkpoints/2"))
    with caplog.at_level(logging.WARNING):
        step, state = Checkpoints(saved).restore(abstract(state_at(0)))
    assert step == 1
    same(state, state_at(1))
    assert "step 2" in caplog.text and "damaged/2" in caplog.text
    assert (saved / "damaged/2").is_dir(), "renamed, not deleted"


def test_reading_leaves_a_run_that_is_under_way_alone(saved):
    (saved / "checkpoints/3.orbax-checkpoint-tmp").mkdir()
    flip_a_bit(largest_file(saved / "checkpoints/2"))
    step, _ = Checkpoints(saved, read_only=True).restore(abstract(state_at(0)))
    assert step == 1
    assert {p.name for p in (saved / "checkpoints").iterdir()} == {"1", "2", "3.orbax-checkpoint-tmp"}


def test_all_damaged_is_an_error_never_a_start_from_zero(saved):
    for step in (1, 2):
        flip_a_bit(largest_file(saved / f"checkpoints/{step}"))
    for _ in range(2):  # the second time they have been set aside already
        with pytest.raises(RuntimeError, match="can be used"):
            Checkpoints(saved).restore(abstract(state_at(0)))


def test_an_empty_folder_is_not_the_newest_checkpoint(saved):
    (saved / "checkpoints/7").mkdir()
    step, _ = Checkpoints(saved).restore(abstract(state_at(0)))
    assert step == 2


def test_a_save_that_was_cut_short_leaves_the_one_before(saved):
    (saved / "checkpoints/3.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(saved)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore(abstract(state_at(0)))[0] == 2


def test_without_a_manifest_it_is_tried(saved):
    (saved / "manifests/2.json").unlink()
    checkpoints = Checkpoints(saved)
    assert checkpoints.verify(2) == "unverified"
    assert checkpoints.restore(abstract(state_at(0)))[0] == 2


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path).restore(abstract(state_at(0))) is None


def test_another_model_is_refused_and_nothing_set_aside(saved):
    with pytest.raises(ConfigError, match="does not fit"):
        Checkpoints(saved).restore(abstract(state_at(0, width=32)))
    assert (saved / "checkpoints/2").is_dir()


@pytest.mark.parametrize("mesh", ["1", "8", "4x2"])
def test_restore_onto_another_mesh(saved, mesh):
    target = abstract(state_at(0), make_mesh(mesh))
    step, state = Checkpoints(saved).restore(target)
    same(state, state_at(2))
    assert state.params["w"].sharding == target.params["w"].sharding


def test_keep_and_manifests(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_at(step), {})
    checkpoints.close()
    assert checkpoints.steps() == [2, 3]
    assert sorted(p.name for p in (tmp_path / "manifests").iterdir()) == ["2.json", "3.json"]
    assert json.loads((tmp_path / "manifests/3.json").read_text())


def test_no_room_is_said_before_anything_is_written(saved, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    checkpoints = Checkpoints(saved)
    with pytest.raises(RuntimeError, match="No room for a checkpoint"):
        checkpoints.save(3, state_at(3), {})
    assert checkpoints.steps() == [1, 2]


def test_one_run_per_workdir(tmp_path):
    with lock(tmp_path), pytest.raises(ConfigError, match="Another run"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_rename_and_fit():
    ours = {"image/w": np.zeros(2), "image/positions": np.zeros((4, 2)), "head/w": np.ones(3)}
    theirs = {"visual/w": np.full(2, 5.0), "image/positions": np.ones((9, 2)), "head/w": np.zeros(7)}
    rules = ("visual/: image/", "head:")

    def resize(path, value, shape):
        return value[: shape[0]] if path == "image/positions" else None

    fitted, taken = rename_and_fit(ours, theirs, rules, resize)
    assert sorted(taken) == ["image/positions", "image/w"]
    assert fitted["image/w"][0] == 5 and fitted["head/w"][0] == 1 and fitted["image/positions"].shape == (4, 2)
    with pytest.raises(ConfigError, match="head/w has shape"):
        rename_and_fit(ours, theirs, (), resize)
    with pytest.raises(ConfigError, match="no parameter's path agrees"):
        rename_and_fit(ours, {"a": np.zeros(1)}, (), resize)
