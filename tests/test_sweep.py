"""Sweeps: which runs there are, what is skipped, what goes on, what a scheduler is given."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time

import pytest

from mmcl_jax import sweep, table
from mmcl_jax.named import ConfigError

CLIP, SIGLIP = "configs/clip_emoji.py:tiny", "configs/siglip_emoji.py:tiny"
SHORT = ["batch=16", "steps=6", "log.every=2", "checkpoint.every=3", "optim.warmup=2", "data.train.size=64",
         "evals.val.limit=32"]  # fmt: skip
GRID = ["seed=0,1"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, repository):
    monkeypatch.chdir(repository)


def names(runs):
    return [r.workdir.name for r in runs]


def test_a_run_is_known_by_what_it_computes():
    runs = sweep.plan([CLIP, SIGLIP], ["seed=0,1", "optim.lr=1e-3,3e-3"], SHORT, "out")
    assert len(set(names(runs))) == 8 and names(runs)[0].startswith("clip-") and names(runs)[4].startswith("siglip-")
    # said another way, logged and evaluated otherwise: the same run
    again = sweep.plan([CLIP], ["optim.lr=0.001"], [*SHORT, "log.every=1", "evals.val.limit=8", "mesh.fsdp=2"], "out")
    assert names(again) == names(runs)[:1]
    # on another disk: the same run; another table of one's own: another run
    tfds = [*SHORT, "data.train.source=tfds", "data.train.name=x"]
    assert names(sweep.plan([CLIP], [], [*tfds, "data.train.data_dir=gs://b"], "o")) == names(
        sweep.plan([CLIP], [], tfds, "o")
    )
    files = [*SHORT, "data.train.source=files"]
    assert names(sweep.plan([CLIP], [], [*files, "data.train.path=a"], "o")) != names(
        sweep.plan([CLIP], [], [*files, "data.train.path=b"], "o")
    )
    # what a grid asks for counts in any case
    assert len(set(names(sweep.plan([CLIP], ["chunks=1,2"], SHORT, "out")))) == 2
    assert names(sweep.plan([CLIP], [], [*SHORT, "steps=7"], "out")) != names(sweep.plan([CLIP], [], SHORT, "out"))


@pytest.mark.parametrize(
    "grid, message",
    [
        (["optim.lrr=1"], "did you mean 'optim.lr'"),
        (["seed=0,0"], "Two runs of the sweep are the same"),
        (["seed"], "write key=value"),
        (["seed=1,,2"], "none empty"),
        (["optim.rules=('text/: lr=0',"], "write key=value"),
        (["batch=many"], "expected int"),
        (["method.temperature=0.05,0.1"], "'clip' has no argument 'temperature'"),
        (["optim.lr=1e-3,-5"], "optim.lr=-5.0 must be positive"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(grid, message):
    with pytest.raises(ConfigError, match=message):
        sweep.plan([CLIP], grid, SHORT, "out")


def test_a_config_says_its_own_runs(tmp_path, repository):
    own = tmp_path / "own.py"
    own.write_text(
        f"import sys\nsys.path.insert(0, {str(repository)!r})\nfrom configs import clip_emoji\n"
        "def get_config(arg=''):\n    return clip_emoji.get_config('tiny')\n"
        "import numpy as np\n"
        "def sweep():\n    for lr in np.array([1e-3, 3e-3]):\n"
        "        yield {'optim.lr': lr, 'optim.rules': ('text/: lr=0',)}\n"
    )
    runs = sweep.plan([str(own)], ["seed=0,1"], [], "out")
    assert [r.overrides for r in runs][3] == ("optim.lr=0.003", "optim.rules=('text/: lr=0',)", "seed=1")
    assert [(r.config.optim.lr, r.config.seed) for r in runs] == [(1e-3, 0), (1e-3, 1), (3e-3, 0), (3e-3, 1)]
    own.write_text("def get_config():\n    pass\ndef sweep():\n    return ['optim.lr=1']\n")
    with pytest.raises(ConfigError, match="each of its runs is a dict"):
        sweep.plan([str(own)], [], [], "out")


def mmcl(*arguments, **kwargs):
    env = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", "import sys; from mmcl_jax.cli import main; sys.exit(main())", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **kwargs)


def test_two_seeds_of_two_methods(tmp_path):
    """Run; asked again, nothing runs; what broke goes on; the table has the mean and deviation of the seeds."""
    out = tmp_path / "sweep"
    command = ["sweep", "--config", CLIP, SIGLIP, "--grid", *GRID, "--out", str(out), *[f"--config.{o}" for o in SHORT]]
    runs = sweep.plan([CLIP, SIGLIP], GRID, SHORT, str(out))
    done = mmcl(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs" in done.stdout and "4 to go" in done.stdout and [r.state for r in runs] == ["finished"] * 4
    assert json.loads((out / "sweep.json").read_text())[runs[3].workdir.name]["overrides"] == [*SHORT, "seed=1"]

    def losses_of(run):
        return [line for line in (run.workdir / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]

    before = [losses_of(r) for r in runs]
    (runs[1].workdir / "summary.json").unlink()  # as if it had been killed at its end
    assert runs[1].state == "begun"
    again = mmcl(*command)
    assert again.returncode == 0 and "3 finished, 1 to go" in again.stdout, again.stdout + again.stderr
    assert "going on from step 6" in again.stdout and [losses_of(r) for r in runs] == before

    # evaluated otherwise: evaluated anew, nothing trained; killed meanwhile, it is asked for again
    narrower = [*SHORT, "evals.val.limit=16"]
    kill = "from mmcl_jax import train\ndef die(*a): raise SystemExit(9)\ntrain.evaluate = die\n"
    start = kill + "import sys; from mmcl_jax.cli import main; sys.exit(main())"
    arguments = sweep.plan([CLIP], ["seed=0"], narrower, str(out))[0].arguments
    broken = subprocess.run([sys.executable, "-c", start, "train", *arguments], env=os.environ | {"XLA_FLAGS": ""})
    assert broken.returncode == 9
    anew = mmcl("sweep", "--config", CLIP, f"--out={out}", "--grid=seed=0", *[f"--config.{o}" for o in narrower])
    assert anew.returncode == 0 and "0 finished, 1 to go" in anew.stdout, anew.stdout + anew.stderr
    assert losses_of(runs[0]) == before[0]
    assert json.loads((runs[0].workdir / "summary.json").read_text())["evals"]["val/n"] == 16
    back = mmcl(*command)
    assert back.returncode == 0 and "3 finished, 1 to go" in back.stdout, back.stdout + back.stderr

    summaries = [json.loads((r.workdir / "summary.json").read_text()) for r in runs]
    assert summaries[0]["loss"] != summaries[1]["loss"]
    clip = [s["evals"]["val/i2t/R@1"] for s in summaries[:2]]
    expected = f"{statistics.fmean(clip):.3f} ± {statistics.stdev(clip):.3f}"
    assert expected in again.stdout and expected in back.stdout  # the sweep ends with the table
    shown = mmcl("table", str(out), "--out", str(tmp_path / "t"), "--keep", str(tmp_path / "kept"))
    assert shown.returncode == 0 and expected in shown.stdout, shown.stderr
    assert (tmp_path / "t.md").read_text().strip() in shown.stdout and (tmp_path / "t.png").stat().st_size > 5000
    csv = (tmp_path / "t.csv").read_text().splitlines()
    assert len(csv) == 3 and f",{statistics.fmean(clip)}," in csv[1]
    # what is kept is enough for the same table
    kept, read = (table.group(table.read([str(p)])) for p in (tmp_path / "kept", out))
    assert table.rows(kept) == table.rows(read)
    assert sum(p.stat().st_size for p in (tmp_path / "kept").rglob("*.json")) < 4 * 10_000


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    out = tmp_path / "sweep"
    done = mmcl("sweep", "--config", CLIP, "--grid", "encoders.image.patch=5,4", "--out", str(out),
                *[f"--config.{o}" for o in SHORT])  # fmt: skip
    runs = sweep.plan([CLIP], ["encoders.image.patch=5,4"], SHORT, str(out))
    assert done.returncode == 1 and "multiples of patch=5" in done.stderr, done.stdout + done.stderr
    assert f"1 of 2 runs failed: {runs[0].workdir.name}" in done.stdout and runs[1].state == "finished"


STUB = """#!/bin/bash
printf '%s\\n' "$@" > "$(mktemp "$RECORD/XXXXXX")"
echo "Submitted batch job 7"
"""


def test_a_scheduler_gets_a_job_for_each(tmp_path, monkeypatch):
    stub = tmp_path / "my sbatch"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (tmp_path / "record").mkdir()
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    runs = sweep.plan([CLIP], GRID, ["data.tokenizer.fields=('captions',)"], str(tmp_path / "out dir"))
    assert sweep.run(runs, str(tmp_path / "out dir"), f"{shlex.quote(str(stub))} -J {{name}} train.sbatch") == 0
    argv = sorted(p.read_text().splitlines() for p in (tmp_path / "record").iterdir())
    assert argv == sorted(["-J", r.workdir.name, "train.sbatch", *r.arguments] for r in runs)
    assert "--config.data.tokenizer.fields=('captions',)" in argv[0] and f"{tmp_path}/out dir/" in argv[0][6]


def test_a_sweep_told_to_stop_stops_its_run(tmp_path):
    """SIGTERM goes on to the run, which saves; the sweep ends with 42, too, and starts no other."""
    out = tmp_path / "sweep"
    arguments = ["sweep", "--config", CLIP, "--grid", "seed=0,1", "--out", str(out), "--config.steps=100000",
                 "--config.batch=16", "--config.log.every=1", "--config.data.train.size=64"]  # fmt: skip
    start = f"import sys; from mmcl_jax.cli import main; sys.exit(main({arguments!r}))"
    process = subprocess.Popen([sys.executable, "-c", start], env=os.environ | {"XLA_FLAGS": ""}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    deadline = time.monotonic() + 200
    while not any(p.stat().st_size for p in out.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 42 and "stopped by a signal" in output and "[2/2]" not in output, output
    assert len(list(out.glob("*/checkpoints"))) == 1


def test_what_is_preempted_is_started_again(tmp_path):
    """A run that ends with 42 though nobody told the sweep to stop; three times at most."""
    script = tmp_path / "train"
    script.write_text(
        f'#!/bin/bash\necho start >> "{tmp_path}/starts"\n[ $(wc -l < "{tmp_path}/starts") -gt $1 ] || exit 42\n'
    )
    script.chmod(0o755)
    for needed, expected, starts in ((2, 0, 3), (9, 42, 4)):
        (tmp_path / "starts").unlink(missing_ok=True)
        with sweep.Child() as child:
            assert sweep.until_done(child, [str(script), str(needed)], relaunches=3) == expected
        assert len((tmp_path / "starts").read_text().splitlines()) == starts
