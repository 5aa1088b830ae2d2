"""What the doctor says of machines and configs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mmcl_jax import config as configs
from mmcl_jax import doctor
from mmcl_jax.build import build
from tests.conftest import make_mesh

TINY = "configs/clip_emoji.py:tiny"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, repository):
    monkeypatch.chdir(repository)


def findings(spec, *overrides, devices=8, **kwargs):
    return list(doctor.examine(spec, list(overrides), devices, "runs/x", **kwargs))


def texts(found, about):
    return " ".join(f.text for f in found if f.about == about)


def test_256_devices_without_data(tmp_path):
    """As a command, from elsewhere: the config's shapes, what a device holds, the form of the loss; exit code 0."""
    config = Path("configs/clip.py").resolve()
    told = {}
    for fsdp in (1, 16):
        command = ["doctor", "--devices", "256", "--config", f"{config}:L", f"--config.mesh.fsdp={fsdp}"]
        start = f"import sys; from mmcl_jax.cli import main; sys.exit(main({command!r}))"
        env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(config.parent.parent)}
        done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning data         data.train.path is missing" in done.stdout and "stand-ins" in done.stdout
        assert "uint8[128, 224, 224, 3] a device" in done.stdout and "logits 128 x 32768 a device" in done.stdout
        told[fsdp] = float(re.search(r"opt_state ([\d.]+) GiB", done.stdout)[1])
    assert not list(tmp_path.iterdir())
    assert told == {1: pytest.approx(3.19, abs=0.01), 16: pytest.approx(3.19 / 16, abs=0.01)}


@pytest.mark.parametrize("mesh", ["8", "4x2"])
def test_what_a_device_holds_is_what_it_will_hold(tmp_path, mesh):
    config = configs.load(TINY, ["optim.average=0.9"] + (["mesh.fsdp=2"] if mesh == "4x2" else []))
    parts = build(config, tmp_path, make_mesh(mesh))
    state = jax.jit(parts.init, out_shardings=parts.sharding)(jax.random.key(0))
    device = jax.devices()[3]
    held = sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device == device)
    assert doctor.nbytes(parts.shapes, parts.sharding) == held
    assert doctor.nbytes(parts.shapes, None) == sum(x.nbytes for x in jax.tree.leaves(state))
    assert (held < doctor.nbytes(parts.shapes, None)) == (mesh == "4x2")


def test_a_config_with_its_data():
    found = findings(TINY, compiles=True)
    assert not [f for f in found if f.state in ("warning", "error")], found
    assert "1,024 records; fields caption" in texts(found, "data") and "8 rows a device" in texts(found, "config")
    assert "temporary a device" in texts(found, "compiled")


@pytest.mark.parametrize(
    "spec, overrides, about, message",
    [
        (TINY, ["batch=12"], "config", "batch=12 does not divide among 8 devices"),
        (TINY, ["optim.lrr=1"], "config", "did you mean 'optim.lr'"),
        ("configs/nothing.py", [], "config", "There is no config"),
        (TINY, ["mesh.fsdp=3"], "config", "does not fit 8 device"),
        (TINY, ["data.train.source=imagenet"], "data", "Possible: arrays, files"),
        (TINY, ["encoders.image.patch=5"], "shapes", "multiples of patch=5"),
    ],
)
def test_what_cannot_run_is_an_error(spec, overrides, about, message):
    last = findings(spec, *overrides)[-1]
    assert (last.state, last.about) == ("error", about) and message in last.text


def test_the_machine():
    found = list(doctor.machine("."))
    assert {f.state for f in found} <= {"ok", "note"} and jax.__version__ in texts(found, "packages")
    assert "8 x cpu" in texts(found, "devices") and "--xla_force_host_platform_device_count=8" in texts(found, "flags")
