"""Several processes on this machine, as a pod has them on several: they find each other, train as one, stop as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from mmcl_jax import named, processes
from tests.conftest import finish, losses

RUN = (
    "--config", "configs/clip_emoji.py:tiny", "--config.batch=32", "--config.log.every=1", "--config.optim.warmup=2",
    "--config.checkpoint.every=3", "--config.data.train.size=64", "--config.optim.average=0.9",
    "--config.optim.end_lr=3e-3",  # the peak: no step depends on how many there will be
)  # fmt: skip


def local(repository, *arguments, **kwargs):
    env = os.environ | {"XLA_FLAGS": "", "MMCL_VENV": sys.prefix, "MMCL_EXTRAS": "audio,demo,gcs,speech,test"}
    return subprocess.Popen(["bash", "launch/local.sh", *arguments], cwd=repository, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_evaluate_stop_and_go_on_as_one(repository, tmp_path):
    """2 x 4 devices have the losses of 1 x 8; SIGTERM to one process saves and stops both; the next start goes on."""
    one, two = tmp_path / "one", tmp_path / "two"
    code, output = finish(local(repository, "--devices", "8", *RUN, "--config.steps=8", "--workdir", str(one)))
    assert code == 0, output
    several = ("--processes", "2", "--devices", "4", "--relaunch", "0", *RUN, "--workdir", str(two))
    process = local(repository, *several, "--config.steps=100000", start_new_session=True)
    metrics = two / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        assert time.monotonic() < deadline and process.poll() is None, finish(process)[1]
        time.sleep(0.1)
    second = subprocess.run(["pgrep", "-s", str(process.pid), "-f", "process 1$"], capture_output=True, text=True)
    os.kill(int(second.stdout.split()[0]), signal.SIGTERM)
    code, output = finish(process)
    assert code == 42, output
    saved = max(int(p.name) for p in (two / "checkpoints").iterdir())
    assert f"stopped by a signal at step {saved}, saved" in output and output.count("mmcl_jax: clip") == 1
    steps = max(8, saved + 2)
    code, output = finish(local(repository, *several, f"--config.steps={steps}"))
    assert code == 0 and f"going on from step {saved}" in output, output
    found, expected = losses(two), losses(one)
    assert len(expected) == 8 and all(found[s] == pytest.approx(expected[s], rel=1e-5) for s in range(1, 9))
    assert json.loads((two / "summary.json").read_text())["devices"] == 8
    for name in ("curves.png", "retrieval.png", "config.json", f"manifests/{steps}.json"):
        assert (two / name).stat().st_size > 0


@pytest.mark.slow
def test_what_one_refuses_all_refuse(repository, tmp_path):
    """The tokenizer is made by the first process only: the others hear why it could not be."""
    wrong = ("--config.data.tokenizer.path=nothing.json", "--workdir", str(tmp_path))
    code, output = finish(local(repository, "--processes", "2", "--devices", "1", *RUN, *wrong))
    assert code == 2 and output.count("mmcl train: There is no tokenizer at nothing.json") == 2, output


JOIN = """
import jax
from mmcl_jax import processes
processes.join()
print(processes.from_first(lambda: f"{jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices"))
"""


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
XPK = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1", "NNODES": "2"}


@pytest.mark.parametrize("told, rank", [(SLURM, ("SLURM_PROCID", "SLURM_LOCALID")), (XPK, ("NODE_RANK",))])
def test_launchers_are_recognised(repository, told, rank):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | told | {"JAX_COORDINATOR_PORT": str(port), "XLA_FLAGS": "", "PYTHONPATH": str(repository)}
    children = [
        subprocess.Popen([sys.executable, "-c", JOIN], env=env | dict.fromkeys(rank, i), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in "01"
    ]  # fmt: skip
    for child in children:
        output, _ = child.communicate(timeout=120)
        assert child.returncode == 0 and "0 of 2, 2 devices" in output, output


@pytest.mark.parametrize(
    "tasks, visible, local, devices",
    [
        ("1(x4)", "0,1,2,3,4,5,6,7", "0", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("8(x4)", "0,1,2,3,4,5,6,7", "3", [3]),
        ("2(x4)", "0,1,2,3,4,5,6,7", "1", [4, 5, 6, 7]),
        ("8(x4)", "0", "3", [0]),  # --gpus-per-task with binding
    ],
)
def test_gpus_of_a_slurm_task(monkeypatch, tasks, visible, local, devices):
    for key, value in dict(SLURM_STEP_TASKS_PER_NODE=tasks, CUDA_VISIBLE_DEVICES=visible, SLURM_LOCALID=local).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert processes._slurm_devices() is None
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert processes._slurm_devices() == devices


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(coordinator="a:1"), "--processes, --process missing"),
        (dict(coordinator="a:1", processes=2, process=2), "count from 0"),
    ],
)
def test_half_a_description_is_refused(given, message):
    with pytest.raises(named.ConfigError, match=message):
        processes.join(**given)


def test_alone_the_first_is_all(monkeypatch):
    assert processes.is_first() and processes.from_first(lambda: [1, "a"]) == [1, "a"]


def test_the_launcher_shows_what_it_would_do(repository):
    code, output = finish(local(repository, "--processes", "2", "--devices", "4", "--dry-run", "--config", "a b.py"))
    lines = output.splitlines()
    assert code == 0 and len(lines) == 2 and "device_count=4" in lines[0]
    assert r"mmcl train --config a\ b.py --coordinator 127.0.0.1:0 --processes 2 --process 1" in lines[1]
    code, output = finish(local(repository, "--processes", "two", "--config", "x"))
    assert code == 1 and "--processes needs a number" in output
