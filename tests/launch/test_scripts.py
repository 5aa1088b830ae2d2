"""The launch scripts without a cloud: what they would call, how they meet failure, what they say of themselves."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import losses

ROOT = Path(__file__).parent.parent.parent
ALL = sorted(p for p in (ROOT / "launch").rglob("*") if p.suffix in (".sh", ".sbatch"))
SOURCED = [p for p in ALL if p.read_text().startswith("# shellcheck shell=bash")]
SCRIPTS = [p for p in ALL if p not in SOURCED]
# One argument of each kind that shells like to take apart.
NASTY = ["--config", "configs/clip.py:B16", '--config.data.train.path=a b\'s "c".csv', "--config.x=$HOME;*"]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Puts the stubs first on PATH; has `folder` and calls(name), the arguments of each call."""
    folder = tmp_path / "stub"
    (folder / "bin").mkdir(parents=True)
    for name in ("gcloud", "sbatch", "srun", "scontrol", "xpk", "docker"):
        shutil.copy(Path(__file__).parent / "stub.py", folder / "bin" / name)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("STUB", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("MMCL_POLL", "0")
    for key in ("MMCL_EXTRAS", "MMCL_COMMIT", "TFDS_DATA_DIR", "WANDB_MODE", "LIBTPU_INIT_ARGS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("MMCL_VENV", str(ready(folder)))
    for key in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(key)

    class Stub:
        pass

    def calls(name=""):
        path = folder / "calls.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [c["argv"] for c in lines if name in ("", c["name"])]

    Stub.calls, Stub.folder = staticmethod(calls), folder
    return Stub


def ready(folder, extras="demo", root=ROOT):
    """A virtual environment that is this one, with everything installed as far as the scripts can tell."""
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    never = 'case "$*" in *"pip install"*) echo "nothing is installed in tests" >&2; exit 1 ;; esac'
    for name, command in (("python", ""), ("mmcl", " -m mmcl_jax.cli")):
        (venv / "bin" / name).write_text(f'#!/bin/sh\n{never}\nexec {shlex.quote(sys.executable)}{command} "$@"\n')
        (venv / "bin" / name).chmod(0o755)
    files = b"".join(p.read_bytes() for p in [ROOT / "setup.cfg", *sorted((ROOT / "requirements").glob("*.txt"))])
    cksum = subprocess.run("cksum", input=files, capture_output=True).stdout.decode().strip()
    (venv / ".mmcl_installed").write_text(f"{extras} {cksum} {root}\n")
    return venv


def bash(script, *arguments, **kwargs):
    done = subprocess.run(["bash", f"launch/{script}", *arguments], cwd=ROOT, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, **({"timeout": 120} | kwargs))  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_shellcheck():
    done = subprocess.run(["shellcheck", "--external-sources", *ALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_strict_and_explain_themselves(path, stub):
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ") and "\nset -euo pipefail\n" in text and os.access(path, os.X_OK)
    relative = str(path.relative_to(ROOT / "launch"))
    code, output = bash(relative, "--help")
    elsewhere = subprocess.run(
        ["bash", f"../launch/{relative}", "--help"], cwd=ROOT / "docs", capture_output=True, text=True
    )
    assert (elsewhere.returncode, elsewhere.stdout) == (code, output), elsewhere.stderr
    assert code == 0 and output.startswith(text.splitlines()[1][2:]), output
    assert not stub.calls()
    if path.name not in ("local.sh", "train.sbatch", "test.sh"):  # which hand on what they don't know
        code, output = bash(relative, "--nonsense")
        assert code == 1 and output.strip(), output


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("tpu/create.sh", ["mine", "--zone=z", "--type=v4-8"]),
        ("tpu/run.sh", ["mine", "--zone", "z", "--", *NASTY]),
        ("tpu/spot.sh", ["mine", "--zone", "z", "--type", "v4-8", "--", *NASTY]),
        ("tpu/run.sh", ["mine", "--zone", "z", "--xla=tpu-v6e", "--", *NASTY]),
        ("tpu/logs.sh", ["mine", "--zone", "z"]),
        ("tpu/stop.sh", ["mine", "--zone", "z"]),
        ("tpu/delete.sh", ["mine", "--zone", "z"]),
        ("gke/xpk.sh", ["mine", "--cluster", "c", "--image", "i", "--tpu-type", "v4-8", "--", *NASTY]),
        ("docker/build.sh", ["gpu", "--push"]),
        ("slurm/train.sbatch", NASTY),
        ("local.sh", NASTY),
        ("quickstart.sh", []),
        ("test.sh", []),
        ("bench.sh", []),
        ("notebooks.sh", ["01_first_run"]),
        ("sweep", ["--config", "configs/clip_emoji.py:tiny", "--submit", "sbatch {name}"]),
    ],
)
def test_dry_runs_call_nothing_and_print_what_can_be_typed(stub, script, arguments):
    where = (
        arguments.index("--") if "--" in arguments else len(arguments) if "tpu" in script or "docker" in script else 0
    )
    if script == "sweep":
        done = subprocess.run([sys.executable, "-m", "mmcl_jax.cli", "sweep", *arguments, "--dry-run"], cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
        code, output = done.returncode, done.stdout.removeprefix("new     ") + done.stderr
    else:
        code, output = bash(script, *arguments[:where], "--dry-run", *arguments[where:])
    assert code == 0 and not stub.calls(), output
    said = ("warning", "losses", "the ", "encoding", "input", "written")  # beside the commands
    commands = [shlex.split(line) for line in output.splitlines() if not line.startswith(said)]
    if "--xla=tpu-v6e" in arguments:
        flag = commands.pop(0)
        assert flag == ["LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=98304"]
        start = next(a for a in commands[-1] if a.startswith("--command="))
        assert flag[0] in shlex.split(start)
    known = ("gcloud", "xpk", "docker", "srun", "mmcl", "python", "sbatch")
    assert commands and all(c[0] in known for c in commands), output
    if NASTY[-1] in arguments:  # it arrives whole, through all the shells on its way
        last = next(c for c in commands if any("mmcl train" in a or "worker.sh start" in a for a in [" ".join(c), *c]))
        inner = next((a.split("=", 1)[1] for a in last if a.startswith("--command=")), None)
        assert (shlex.split(inner) if inner else last)[-len(NASTY) :] == NASTY


# ---- Cloud TPU -------------------------------------------------------------------------------------------------------

Q, DESCRIBE, NODE = (f"gcloud compute tpus {verb}" for verb in (
    "queued-resources", "queued-resources describe", "tpu-vm describe"))  # fmt: skip


def tell(stub, **answers):
    """Writes the stub's script; `queue` and `node` are the states that gcloud will tell, the rest as it stands."""
    failures = {"NONE": [1, "NOT_FOUND"], "NOT_FOUND": [1, "NOT_FOUND"], "unreachable": [1, "no network"]}
    queue, node = answers.pop("queue", ["ACTIVE"]), answers.pop("node", ["READY"])
    told = {DESCRIBE: [failures.get(s, [0, s]) for s in queue], NODE: [failures.get(s, [0, s]) for s in node]}
    (stub.folder / "script.json").write_text(json.dumps(told | answers.pop("also", {})))


def verbs(stub):
    """What was done, without the looks: create, delete, ssh, scp."""
    return [argv[3] for argv in stub.calls("gcloud") if argv[3] != "describe"]


def test_a_tpu_is_asked_for_and_waited_for(stub):
    tell(stub, queue=["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], node=["CREATING", "READY"])
    where = ["--zone=us-central2-b", "--project=my project"]
    code, output = bash("tpu/create.sh", "mine", *where, "--type", "v5litepod-16", "--spot")
    assert code == 0, output
    queued = ["compute", "tpus", "queued-resources"]
    kind = ["--node-id=mine", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert stub.calls()[0] == [*queued, "create", "mine", *where, *kind]
    assert stub.calls()[1] == [*queued, "describe", "mine", *where, "--format=value(state.state)"]
    told = [line.split(": ")[1] for line in output.splitlines() if " mine: " in line]
    assert told == ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "ACTIVE"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_tpu_that_can_not_be_had_ends_with_42(stub, state):
    tell(stub, queue=["WAITING_FOR_RESOURCES", state])
    assert bash("tpu/create.sh", "mine", "--zone", "z", "--type", "v4-8")[0] == 42


def test_failures_are_retried_a_few_times_and_passed_on(stub, tmp_path):
    quick = tmp_path / "sleep"  # the pauses between tries
    quick.write_text("#!/bin/sh\n")
    quick.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    tell(stub, also={f"{Q} create": [[1, "quota exceeded"]]})
    code, output = bash("tpu/create.sh", "mine", "--zone", "z", "--type", "v4-8", env=env)
    assert code == 1 and output.count("quota exceeded") == 3 and verbs(stub) == ["create"] * 3
    tell(stub, also={f"{Q} create": [[1, "try again"], [0, ""]]})
    assert bash("tpu/create.sh", "mine", "--zone", "z", "--type", "v4-8", env=env)[0] == 0
    tell(stub, also={f"{Q} delete": [[3, "not allowed"]]})
    code, output = bash("tpu/delete.sh", "mine", "--zone", "z", env=env)
    assert code == 3 and output.count("not allowed") == 5
    tell(stub, also={"docker push": [[1, "denied"]]})
    assert bash("docker/build.sh", "tpu", "--push", env=env)[0] == 1 and len(stub.calls("docker")) == 4


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("tpu/create.sh", ["--zone", "z"], "Give it a name"),
        ("tpu/create.sh", ["mine", "--type", "v4-8"], "--zone is missing"),
        ("tpu/create.sh", ["mine", "--zone", "z"], "--type is missing"),
        ("tpu/create.sh", ["mine", "--zone", "z", "--wait", "long"], "--wait needs a number"),
        ("tpu/run.sh", ["mine", "--zone", "z"], "nothing to train"),
        ("tpu/run.sh", ["mine", "--zone", "z", "--config", "x"], "comes behind --"),
        ("tpu/spot.sh", ["mine", "other", "--zone", "z"], "one name, please"),
        ("gke/xpk.sh", ["My_Run"], "small letters"),
        ("gke/xpk.sh", ["mine", "--cluster", "c", "--", "x"], "--tpu-type or --device-type is missing"),
        ("docker/build.sh", ["cpu"], "unknown argument cpu"),
        ("slurm/train.sbatch", [], "nothing to train"),
        ("xla_flags.sh", ["fast"], "which list"),
        ("local.sh", ["--xla", "fast", "--config", "x"], "which list"),
        ("local.sh", ["--config", "x", "--xla"], "--xla needs a value"),
        ("slurm/train.sbatch", ["--config", "x", "--xla"], "--xla needs a value"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_called(stub, script, arguments, message):
    code, output = bash(script, *arguments)
    assert code == 1 and message in output and not stub.calls(), output


# ---- A spot TPU, with real training on a machine that is a folder ----------------------------------------------------


@pytest.fixture
def vm(stub, monkeypatch):
    """A worker whose environment is made already: this one, with the code that is copied to the worker."""
    ready(stub.folder / "vm", "tpu,gcs", stub.folder / "vm/mmcl_jax")
    monkeypatch.setenv("VM_PATH", os.environ["PATH"])
    monkeypatch.setenv("XLA_FLAGS", "")
    return stub.folder / "vm"


def test_spot_loop_creates_is_preempted_recreates_and_resumes(stub, vm, tmp_path, monkeypatch):
    """The TPU is taken away in mid-training, with all that is on it; on the next one the run goes on, and ends."""
    monkeypatch.setenv("MMCL_POLL", "1")
    workdir = tmp_path / "bucket/run 1"
    train = ["--config", "configs/clip_emoji.py:tiny", "--workdir", str(workdir), "--config.batch=16",
             "--config.steps=600", "--config.log.every=1", "--config.checkpoint.every=20",
             "--config.data.train.size=64", "--config.evals={}"]  # fmt: skip
    gone = [[255, "PREEMPTED", str(workdir / "manifests/20.json")]]
    tell(stub, queue=["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", *["SUSPENDED"] * 3, "NONE", "ACTIVE", "NONE"],
         also={"gcloud compute tpus tpu-vm ssh mine --worker=0": gone})  # fmt: skip
    where = ["mine", "--zone", "us-central2-b", "--type", "v4-8", "--xla", "tpu-v6e"]
    code, output = bash("tpu/spot.sh", *where, "--", *train, timeout=400)
    log = (vm / "mmcl/log").read_text()
    assert code == 0, output + log

    zone = "--zone=us-central2-b"

    def on(worker, *command):
        return ["compute", "tpus", "tpu-vm", "ssh", "mine", f"--worker={worker}",
                f"--command={''.join(shlex.quote(c) + ' ' for c in command)}", zone]  # fmt: skip

    def same(a, b):  # bash and Python quote differently what means the same
        return [shlex.split(x) if x.startswith("--command=") else x for x in a] == [
            shlex.split(x) if x.startswith("--command=") else x for x in b
        ]

    worker = ("bash", "mmcl_jax/launch/tpu/worker.sh")
    status = on(0, *worker, "status")
    told = json.loads((workdir / "environment.json").read_text())
    there = ("env", f"MMCL_COMMIT={told['commit']}", f"LIBTPU_INIT_ARGS={told['flags']['LIBTPU_INIT_ARGS']}", *worker)
    assert told["flags"]["LIBTPU_INIT_ARGS"] == "--xla_tpu_scoped_vmem_limit_kib=98304"
    done = [argv for argv in stub.calls("gcloud") if argv[3] != "describe" and not same(argv, status)]
    archive = done[1][4]
    assert archive.endswith("/mmcl_jax.tar.gz")
    queued = ["compute", "tpus", "queued-resources"]
    a_round = [
        [*queued, "create", "mine", zone, "--node-id=mine", "--accelerator-type=v4-8",
         "--runtime-version=tpu-ubuntu2204-base", "--spot"],
        ["compute", "tpus", "tpu-vm", "scp", archive, "mine:mmcl_jax.tar.gz", "--worker=all", zone],
        on("all", "bash", "-c", "mkdir -p mmcl_jax && tar -xzf mmcl_jax.tar.gz -C mmcl_jax"),
        on("all", *there, "install"),
        on("all", *there, "start", *train),
        [*queued, "delete", "mine", zone, "--force", "--quiet"],
    ]  # fmt: skip
    for got, expected in zip(done, a_round + a_round, strict=True):
        got = [archive if a.endswith("/mmcl_jax.tar.gz") else a for a in got]
        assert same(got, expected), (got, expected)
    assert "attempt 2 of 20" in output and "training ended with 0" in output, output
    assert "going on from step " in log and sorted(losses(workdir)) == list(range(1, 601)), log


def test_spot_loop_gives_up(stub, vm):
    """Training that fails by itself is not started again; its exit code is passed on, the TPU not left behind."""
    tell(stub, queue=["ACTIVE", "ACTIVE", "NONE"])
    train = ["--config", "configs/clip_emoji.py:tiny", "--config.optim.lrr=1", "--workdir", "runs/never"]
    code, output = bash("tpu/spot.sh", "mine", "--zone", "z", "--type", "v4-8", "--", *train)
    assert code == 2 and "did you mean 'optim.lr'" in output and verbs(stub)[-1] == "delete", output
    assert verbs(stub).count("create") == 0  # it was there already
    tell(stub, queue=["SUSPENDED", "NONE"] * 9)
    code, output = bash(
        "tpu/spot.sh", "mine", "--zone", "z", "--type", "v4-8", "--attempts", "2", "--keep", "--", *train
    )
    assert code == 42 and "attempt 2 of 2" in output and "mine stays" in output, output


@pytest.mark.parametrize(
    "status, queue, node, code",
    [
        # Worker 0 is left alone by one that went before it, and ends by itself; the TPU is seen to go a little later.
        ([[0, "mmcl: exited 134 Fatal"]], ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE"], ["READY"], 42),
        # The same exit code on a TPU that stays: a failure of the run.
        ([[0, "mmcl: exited 134 Fatal"]], ["ACTIVE", "ACTIVE", "ACTIVE", "NONE"], ["READY"], 134),
        # The connection is lost a few times, and gcloud can't be reached either; training goes on, and is found done.
        ([[255, "lost"], [255, "lost"], [0, "mmcl: running x"], [0, "mmcl: exited 0 done"]],
         ["ACTIVE", "ACTIVE", "unreachable", "unreachable", "unreachable", "ACTIVE", "NONE"], ["READY"], 0),
        # The machines were deleted by hand.
        ([[255, "lost"]], [*["ACTIVE"] * 5, "NONE"], ["READY", "NOT_FOUND"], 42),
    ],
)  # fmt: skip
def test_how_the_end_of_training_is_read(stub, tmp_path, status, queue, node, code):
    quick = tmp_path / "sleep"
    quick.write_text("#!/bin/sh\n")
    quick.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    tell(stub, queue=queue, node=node, also={"gcloud compute tpus tpu-vm ssh mine --worker=0": status})
    once = ["mine", "--zone", "z", "--type", "v4-8", "--attempts", "1"]
    found, output = bash("tpu/spot.sh", *once, "--", "--config", "x", "--workdir", "gs://b/x", env=env)
    assert found == code and "create" not in verbs(stub), output


def test_workers_get_a_python_that_is_new_enough(stub, tmp_path):
    """The images of TPU machines have 3.10: a newer one is installed first, and asked for again where that fails."""
    shutil.copytree(ROOT / "launch", tmp_path / "mmcl_jax/launch")
    for name in ("requirements", "setup.cfg"):
        os.symlink(ROOT / name, tmp_path / "mmcl_jax" / name)
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (bin / name).write_text("#!/bin/sh\nexit 1\n")  # not there, or too old
    (bin / "sudo").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/sudo\n[ $(wc -l < {tmp_path}/sudo) -gt 1 ]\n')
    (bin / "sleep").write_text("#!/bin/sh\n")
    for path in bin.iterdir():
        path.chmod(0o755)
    env = os.environ | {"PATH": f"{bin}:/usr/bin:/bin", "MMCL_VENV": str(tmp_path / "venv"), "HOME": str(tmp_path)}
    done = subprocess.run(["bash", tmp_path / "mmcl_jax/launch/tpu/worker.sh", "install"], env=env, cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    asked = [line.split("=300 ")[1] for line in (tmp_path / "sudo").read_text().splitlines()]
    assert asked == ["update", "update", "install -y python3.11 python3.11-venv"], done.stderr
    assert done.returncode == 1 and "Python 3.11 or newer is needed" in done.stderr  # still none: said, not hidden


def test_a_worker_is_told_to_stop_and_goes_on(vm, tmp_path):
    """worker.sh on the machine itself: a second start joins the first, stop saves, start goes on."""
    shutil.copytree(ROOT / "launch", vm / "mmcl_jax/launch")
    for name in ("configs", "mmcl_jax", "requirements", "setup.cfg"):
        os.symlink(ROOT / name, vm / "mmcl_jax" / name)
    env = os.environ | {"HOME": str(vm), "MMCL_VENV": str(vm / "venv")}

    def worker(*arguments):
        done = subprocess.run(["bash", str(vm / "mmcl_jax/launch/tpu/worker.sh"), *arguments], env=env, cwd=vm,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)  # fmt: skip
        return done.stdout + done.stderr

    train = ["--config", "configs/clip_emoji.py:tiny", "--workdir", str(tmp_path / "run"), "--config.batch=16",
             "--config.log.every=1", "--config.data.train.size=64", "--config.evals={}"]  # fmt: skip
    assert "nothing was started" in worker("status")
    assert "mmcl: running" in worker("start", *train, "--config.steps=100000")
    pid = (vm / "mmcl/pid").read_text()
    metrics = tmp_path / "run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(losses(tmp_path / "run")) > 4)
    assert "mmcl: running" in worker("start", *train, "--config.steps=100000")  # joins it
    assert "another run is under way" in worker("start", *train) and (vm / "mmcl/pid").read_text() == pid
    worker("stop")
    wait_for(lambda: "exited" in worker("status"))
    assert "mmcl: exited 42 stopped by a signal" in worker("status")
    steps = max(losses(tmp_path / "run")) + 2
    worker("start", *train, f"--config.steps={steps}")
    wait_for(lambda: "exited" in worker("status"))
    assert "mmcl: exited 0" in worker("status") and "going on from step" in worker("log", "100")


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


# ---- SLURM -----------------------------------------------------------------------------------------------------------

SRUN = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path
# As srun does: every task is the command, with the variables that say which of them it is.
job = os.environ | {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
                    "SLURM_STEP_TASKS_PER_NODE": "2", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
tasks = [subprocess.Popen(sys.argv[1:], env=job | {"SLURM_PROCID": i, "SLURM_LOCALID": i}) for i in "01"]
metrics = Path(os.environ["METRICS"])
if os.environ.get("SLURM_RESTART_COUNT") is None:  # at the time limit, SLURM's signal to all tasks
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 8) and tasks[0].poll() is None:
        time.sleep(0.1)
    for task in tasks:
        task.send_signal(signal.SIGTERM)
sys.exit(max(task.wait() for task in tasks))
"""


def test_a_slurm_job_is_stopped_requeued_and_goes_on(stub, tmp_path, monkeypatch):
    """Two real processes that know each other from SLURM's variables only."""
    srun = stub.folder / "bin/srun"
    srun.write_text(f"#!{sys.executable}\n{SRUN}")
    spool = tmp_path / "spool/slurm_script"  # SLURM runs a copy
    spool.parent.mkdir()
    shutil.copy(ROOT / "launch/slurm/train.sbatch", spool)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    workdir = tmp_path / "run"
    env = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "JAX_COORDINATOR_PORT": str(port), "MMCL_EXTRAS": "demo",
           "METRICS": str(workdir / "metrics.jsonl")}  # fmt: skip
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    train = ["--config", "configs/clip_emoji.py:tiny", "--workdir", str(workdir), "--config.batch=16",
             "--config.log.every=1", "--config.data.train.size=64", "--config.evals={}",
             "--config.data.workers=1"]  # fmt: skip

    def job(*arguments):
        done = subprocess.run(
            ["bash", spool, *train, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr

    code, output = job("--config.steps=100000")
    assert code == 42 and "stopped by a signal" in output, output
    assert stub.calls("scontrol") == [["requeue", "7"]]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    steps = max(losses(workdir)) + 2
    code, output = job(f"--config.steps={steps}")
    assert code == 0 and "going on from step" in output and len(stub.calls("scontrol")) == 1, output
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["devices"] == 4 and sorted(losses(workdir)) == list(range(1, steps + 1))
    assert json.loads((workdir / "environment.json").read_text())["processes"] == 2


@pytest.mark.parametrize("code, restarts, requeued", [(42, "0", 1), (42, "100", 0), (1, "0", 0), (0, "0", 0)])
def test_only_preempted_jobs_are_requeued(stub, monkeypatch, code, restarts, requeued):
    (stub.folder / "script.json").write_text(json.dumps({"srun": [[code, "said"]], "scontrol": [[1, "disabled"]]}))
    for key, value in dict(SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT), SLURM_RESTART_COUNT=restarts,
                           MMCL_EXTRAS="demo").items():  # fmt: skip
        monkeypatch.setenv(key, value)
    assert bash("slurm/train.sbatch", *NASTY)[0] == code
    assert stub.calls("srun") == [["mmcl", "train", *NASTY]] and len(stub.calls("scontrol")) == requeued


# ---- Here, GKE, Docker, flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaunch, expected, starts", [("3", 0, 3), ("1", 42, 2), ("0", 42, 1)])
def test_a_preempted_run_is_started_again_here(stub, tmp_path, relaunch, expected, starts):
    """`mmcl` here ends with 42 twice, as if a machine's shutdown had told it to stop, then with 0."""
    venv = ready(tmp_path)
    (venv / "bin/mmcl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/starts\n'
                                   f"[ $(wc -l < {tmp_path}/starts) -gt 2 ] || exit 42\n")  # fmt: skip
    env = os.environ | {"MMCL_VENV": str(venv)}
    code, output = bash("local.sh", "--relaunch", relaunch, "--config", "a b.py", env=env)
    assert code == expected and (tmp_path / "starts").read_text() == "train --config a b.py\n" * starts, output


def test_gke(stub):
    where = ["--cluster=my-cluster", "--tpu-type=v5litepod-16", "--zone=z"]
    code, output = bash("gke/xpk.sh", "mine-1", *where, "--image", "r/mmcl:tpu", "--slices", "2", "--", *NASTY)
    assert code == 0, output
    (argv,) = stub.calls("xpk")
    again = ["--max-restarts=20", "--restart-on-exit-codes=42", "--termination-grace-period-seconds=120"]
    what = ["--num-slices=2", "--docker-image=r/mmcl:tpu"]
    assert argv[:-1] == ["workload", "create", "--workload=mine-1", *where, *what, *again]
    assert shlex.split(argv[-1].removeprefix("--command=")) == ["mmcl", "train", *NASTY]
    (stub.folder / "script.json").write_text(json.dumps({"xpk": [[5, "no such cluster"]]}))
    assert bash("gke/xpk.sh", "mine-1", *where, "--image", "i", "--", *NASTY)[0] == 5


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_docker(stub, kind):
    """The calls, and the file itself: pinned, not as root, and it copies only what is there."""
    code, output = bash("docker/build.sh", kind, "--image", "r/my:1", "--push")
    assert code == 0, output
    build, push = stub.calls("docker")
    extras = {"gpu": "cuda12,gcs", "tpu": "tpu,gcs"}[kind]
    what = ["--build-arg", f"KIND={kind}", "--build-arg", f"EXTRAS={extras}", "--build-arg"]
    assert build[:8] == ["build", "--file", "launch/docker/Dockerfile", *what] and build[-1] == "."
    assert build[-3:-1] == ["--tag", "r/my:1"] and push == ["push", "r/my:1"]

    file = ROOT / "launch/docker/Dockerfile"
    done = subprocess.run(["hadolint", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in file.read_text().splitlines()]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", next(line[1] for line in lines if line[:1] == ["FROM"]))
    assert [line[1] for line in lines if line[:1] == ["USER"]] == ["1000"]
    for line in lines:
        if line[:1] == ["COPY"]:
            assert all((ROOT / source).exists() for source in line[1:-1]), line
    lock = (ROOT / f"requirements/lock-{kind}.txt").read_text()
    shared = {p.lower() for p in (ROOT / "requirements/lock.txt").read_text().split("\n") if p.startswith("jax")}
    assert shared and all(p in lock.split("\n") for p in shared)  # the versions that the tests ran with
    pins = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert len(pins) > 50 and all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", p) for p in pins)


def flags(name):
    code, output = bash("xla_flags.sh", name)
    assert code == 0
    variable, _, value = output.strip().partition("=")
    return variable, value.split()


def test_flags_are_known_to_the_compiler(monkeypatch):
    """An unknown one would end every run at its start. The compiler here has those of GPUs, too; libtpu is not here."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    found = [f for name in ("gpu", "gpu-pipelined", "gpu-deterministic") for f in flags(name)[1]]
    assert len(set(found)) == 4
    for given, code in ((found, 0), (["--xla_gpu_no_such_flag=true"], 1)):
        done = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=os.environ | {
            "XLA_FLAGS": " ".join(given), "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)  # fmt: skip
        assert (done.returncode != 0) == code and ("Unknown flag" in done.stderr) == code, done.stderr


@pytest.mark.parametrize("name", ["tpu-v4", "tpu-v6e", "tpu-slices"])
def test_flags_are_known_to_libtpu(name):
    """Where it is installed (pip install libtpu): compiles for a TPU that is not there."""
    pytest.importorskip("libtpu")
    variable, value = flags(name)
    code = (
        "import jax; from jax.experimental import topologies as t; d = t.get_topology_desc('v5e:2x2', 'tpu').devices; "
        "where = jax.sharding.SingleDeviceSharding(d[0]); "
        "x = jax.ShapeDtypeStruct((8, 8), 'float32', sharding=where); jax.jit(lambda x: x @ x).lower(x).compile()"
    )
    for given, fine in ((value, True), ([*value, "--xla_tpu_no_such_flag=true"], False)):
        env = os.environ | {variable: " ".join(given), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == fine, done.stderr


def test_flags_are_added_to_those_that_are_there(monkeypatch, stub):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/a b")
    variable, value = flags("gpu-deterministic")
    assert variable == "XLA_FLAGS" and value == ["--xla_dump_to=/tmp/a", "b", "--xla_gpu_deterministic_ops=true"]
    code, output = bash("local.sh", "--xla", "gpu-deterministic", "--dry-run", "--config", "x")
    assert output.splitlines()[0] == "XLA_FLAGS='--xla_dump_to=/tmp/a b --xla_gpu_deterministic_ops=true'"
