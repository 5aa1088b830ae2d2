"""Runs as processes: killed at any step, stopped by a signal, started wrongly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcl_jax import config as configs
from mmcl_jax import inherit
from mmcl_jax.named import ConfigError
from tests.conftest import finish, losses

RUN = (
    "--config", "configs/clip_emoji.py:tiny", "--config.batch=16", "--config.steps=8", "--config.log.every=1",
    "--config.checkpoint.every=3", "--config.optim.warmup=2", "--config.data.train.size=64",
)  # fmt: skip


def mmcl(repository, *arguments, code=None, env=None, **kwargs):
    """Runs the command line in a process of its own, on one device; `code` is run before it."""
    start = f"{code or ''}\nimport sys; from mmcl_jax.cli import main; sys.exit(main({list(arguments)!r}))"
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(repository)} | (env or {})
    return subprocess.Popen([sys.executable, "-c", start], cwd=repository, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Losses of the run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("unbroken")
    code, output = finish(mmcl(Path(__file__).parent.parent, "train", *RUN, "--workdir", str(workdir)))
    assert code == 0, output
    return losses(workdir)


# The process kills itself when step n is under way; `finished` says whether saves are complete by then or still run.
KILL = """
import os, signal
from mmcl_jax import train
from mmcl_jax.checkpoint import Checkpoints
original, save = train.StepWatcher.add, Checkpoints.save
def add(self, now, metrics, faulty):
    if now == {n}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, now, metrics, faulty)
def save_and_wait(self, *arguments):
    save(self, *arguments)
    self.wait()
train.StepWatcher.add = add
if {finished}:
    Checkpoints.save = save_and_wait
"""


@pytest.mark.parametrize("n, finished, going_on", [(2, True, None), (4, True, 3), (8, True, 6), (7, False, "3|6")])
def test_kill_9_then_the_same_losses(repository, tmp_path, unbroken, n, finished, going_on):
    """Before the first save, just after one, long after one, and while one is being written."""
    kill = KILL.format(n=n, finished=finished)
    code, output = finish(mmcl(repository, "train", *RUN, "--workdir", str(tmp_path), code=kill))
    assert code == -signal.SIGKILL, output
    code, output = finish(mmcl(repository, "train", *RUN, "--workdir", str(tmp_path)))
    assert code == 0, output
    assert losses(tmp_path) == unbroken
    assert re.search(f"going on from step ({going_on})\\b", output) or going_on is None, output


@pytest.mark.slow
def test_kill_9_with_all_optimizations(repository, tmp_path):
    """The tests compile with few of them; here everything is as users have it."""
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    code, output = finish(mmcl(repository, "train", *RUN, "--workdir", str(tmp_path / "whole"), env=env))
    assert code == 0, output
    kill = KILL.format(n=5, finished=True)
    run = (*RUN, "--workdir", str(tmp_path / "part"))
    assert finish(mmcl(repository, "train", *run, code=kill, env=env))[0] == -signal.SIGKILL
    code, output = finish(mmcl(repository, "train", *run, env=env))
    assert code == 0 and "going on from step 3" in output, output
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")


def test_the_command_finds_modules_of_the_folder_it_stands_in(tmp_path, repository):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/method.py").write_text("def make(encoders):\n    raise ValueError('reached mine')\n")
    mmcl_script, config = Path(sys.executable).parent / "mmcl", f"{repository}/configs/clip_emoji.py:tiny"
    command = [mmcl_script, "train", "--config", config, "--workdir", "run", "--config.method.name=mine.method"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "reached mine" in done.stderr, done.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_saves_and_exits_42(repository, tmp_path, workers):
    """The signal goes to the whole process group, as schedulers send it: to processes that make the data, too."""
    run = (*RUN, "--workdir", str(tmp_path), f"--config.data.workers={workers}")
    process = mmcl(repository, "train", *run, "--config.steps=100000", start_new_session=True)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    code, output = finish(process)
    assert code == 42, output
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert f"stopped by a signal at step {saved}, saved" in output
    assert saved == max(losses(tmp_path))
    code, output = finish(mmcl(repository, "train", *run, f"--config.steps={saved + 2}"))
    assert code == 0 and f"going on from step {saved}" in output


WRONG = {
    "unknown key": (["--config.optim.warm_up=1"], "did you mean 'optim.warmup'"),
    "mistyped method": (["--config.method.name=clipp"], "did you mean 'clip'"),
    "mistyped argument": (["--config.method.embed_dims=3"], "method.embed_dim"),
    "mistyped size": (["--config.encoders.image.size=Tii"], "possible"),
    "wrong type": (["--config.batch=many"], "expected int"),
    "bad value": (["--config.optim.lr=-1.0"], "optim.lr"),
    "unknown variant": (["--config", "configs/clip.py:XL"], "possible: S, B"),
    "unknown data set": (["--config", "configs/clip_emoji.py", "--config.data.train.name=coco7"], "data build coco7"),
    "no path": (["--config", "configs/clip.py"], "data.train.path is missing"),
    "missing file": (["--config", "configs/clip.py", "--config.data.train.path=no.csv"], "no table at no.csv"),
    "empty split": (["--config", "configs/clip.py", "--config.data.train.path=SPLIT"], "no rows of split 'train'"),
    "unknown source": (
        ["--config.data.train.source=imagenet"],
        "Possible: arrays, files, folds, joined, synthetic, tfds",
    ),
    "unknown op": (["--config.data.streams.image=decode|resise(16)"], "did you mean 'resize'"),
    "evaluator's argument": (["--config.evals.val.limt=3"], "did you mean 'evals.val.limit'"),
    "evaluator's stream": (["--config.evals.val.b=txt"], "evals.val: there is no stream 'txt'; did you mean 'text'"),
    "evaluator's data": (
        ["--config.evals.val.data.source=tfds", "--config.evals.val.data.name=coco7"],
        "data build coco7",
    ),
    "evaluator's classes": (["--config.evals.zeroshot.label=colour"], "names of the classes of 'colour'"),
    "evaluator's templates": (["--config.evals.zeroshot.templates=('a photo',)"], "has no place for the class"),
    "another source's arguments": (["--config.data.train.source=tfds"], "data.train.name is missing"),
    "width of SigLIP": (["--config", "configs/siglip.py:tiny", "--config.method.embed_dim=48"], "embed_dim=32"),
    "unknown statistics": (
        ["--config.data.streams.image=decode|crop(16) || normalize('clipp')"],
        "data.streams: normalize('clipp'); possible: clip",
    ),
    "unknown module": (["--config.data.streams.image=decode|mine.crop(16)"], "There is no op 'mine.crop'"),
    "no such run": (["--config.init_from.run=nowhere"], "nowhere holds no run"),
    "not a tokenizer": (["--config.data.tokenizer.path=README.md"], "README.md is not a tokenizer"),
    "bad patch": (["--config.encoders.image.patch=5"], "multiples of patch=5"),
}


def test_wrong_input_is_refused_before_compiling(tmp_path, capsys, monkeypatch, repository):
    """All in one process: each takes a second, and none may reach the compiler."""
    from mmcl_jax import step
    from mmcl_jax.cli import main

    monkeypatch.chdir(repository)
    monkeypatch.setattr(step, "compile_step", lambda *a, **k: pytest.fail("reached the compiler"))
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption,split\na.png,a,test\n")
    for name, (arguments, expected) in WRONG.items():
        arguments = [a.replace("SPLIT", str(table)) for a in arguments]
        workdir = tmp_path / name.replace(" ", "_")
        code = main(["train", "--config", "configs/clip_emoji.py:tiny", "--workdir", str(workdir), *arguments])
        error = capsys.readouterr().err
        assert code == 2, f"{name}: {error}"
        assert expected in error, f"{name}: {error}"
        assert "Traceback" not in error


def test_weights_of_another_fold_are_refused(tmp_path, capsys, repository, monkeypatch):
    from mmcl_jax.cli import main

    monkeypatch.chdir(repository)
    of = dict(source="folds", of=dict(source="synthetic"), by="label")
    config = configs.load("configs/clip_emoji.py:tiny", ())
    config.data.train = of | dict(fold=1)
    (tmp_path / "checkpoints").mkdir()
    start = ["train", "--config", "configs/clip_emoji.py:tiny", "--workdir", str(tmp_path / "run")]
    start += [f"--config.init_from.run={tmp_path}", "--config.data.train.source=folds", "--config.data.train.by=label"]
    start += ["--config.data.train.of={'source': 'synthetic'}", "--config.data.train.fold=2"]
    (tmp_path / "config.json").write_text(configs.to_json(config))
    assert main(start) == 2
    assert "was trained in other folds, fold=1 instead of 2: it has seen" in capsys.readouterr().err
    with config.unlocked():
        config.data.train.fold = 2
        config.data.train.k = 3
        config.init_from.run = str(tmp_path)
    (tmp_path / "config.json").write_text(configs.to_json(config))
    inherit.check_fold(config)
    config.data.train.k = 4
    with pytest.raises(ConfigError, match="k=3 instead of 4"):
        inherit.check_fold(config)


def test_a_batch_that_does_not_divide_is_refused(tmp_path, capsys, monkeypatch, repository):
    from mmcl_jax.cli import main

    monkeypatch.chdir(repository)
    arguments = ["train", "--config", "configs/clip_emoji.py:tiny", "--workdir", str(tmp_path), "--config.batch=20"]
    assert main(arguments) == 2
    assert "batch=20 does not divide among 8 devices" in capsys.readouterr().err


def test_eval_embed_and_show(repository, tmp_path, capsys, monkeypatch):
    import numpy as np
    import pyarrow.parquet

    from mmcl_jax.cli import main

    monkeypatch.chdir(repository)
    run = str(tmp_path / "run")
    assert main(["train", *RUN, "--workdir", run]) == 0
    assert main(["eval", run]) == 0
    assert "zeroshot" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/eval_8.json").read_text())["step"] == 8
    assert main(["eval", run, "--config.evals.val.data.split=train"]) == 0
    other = json.loads((tmp_path / "run/eval_8_evals.val.data.split=train.json").read_text())
    assert other["overrides"] == ["evals.val.data.split=train"] and (tmp_path / "run/eval_8.json").exists()
    assert main(["eval", run, "--config.dtype=bfloat16"]) == 2
    assert "evaluated as it was trained" in capsys.readouterr().err
    assert main(["embed", run, "--data", "synthetic:split=test", "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out/image.npz") as written:
        np.testing.assert_allclose(np.linalg.norm(written["embedding"], axis=1), 1, rtol=1e-5)
        rows = len(written["id"])
    assert pyarrow.parquet.read_table(tmp_path / "out/image.parquet").num_rows == rows
    assert pyarrow.parquet.read_table(tmp_path / "out/text.parquet").column_names == ["id", "embedding", "text"]
    only = ["--streams", "text", "--out", str(tmp_path / "texts")]
    assert main(["embed", run, "--data", "synthetic:split=test,size=16", *only]) == 0
    assert {p.name for p in (tmp_path / "texts").iterdir()} == {"text.npz", "text.parquet"}
    assert main(["embed", run, "--data", "synthetic", *only[:1], "txt", *only[2:]]) == 2
    assert "did you mean 'text'" in capsys.readouterr().err
    sheet = tmp_path / "streams.png"
    assert main(["data", "show", "--config", "configs/clip_emoji.py:tiny", "--out", str(sheet), "--count", "6"]) == 0
    assert sheet.stat().st_size > 1000


def test_ones_own_files_train_and_evaluate_by_the_readme_command(repository, tmp_path, monkeypatch):
    """Only the training table is given; the evaluator takes its validation split from it."""
    from PIL import Image

    from mmcl_jax.cli import main

    rows = [f"i{k}.jpg,colour number {k}" for k in range(120)]
    for k in range(120):
        Image.new("RGB", (40, 50), (2 * k, 255 - 2 * k, k)).save(tmp_path / f"i{k}.jpg")
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    small = [f"--config.encoders.{t}.{k}" for t in ("image", "text") for k in ("width=32", "depth=1", "heads=2")]
    small += ["--config.batch=8", "--config.steps=1", "--config.optim.warmup=0", "--config.dtype=float32"]
    monkeypatch.chdir(repository)
    arguments = ["train", "--config", "configs/clip.py", f"--config.data.train.path={tmp_path}/pairs.csv"]
    run = tmp_path / "run"
    assert main([*arguments, "--workdir", str(run), "--config.data.workers=0", *small]) == 0
    evaluated = json.loads((run / "summary.json").read_text())["evals"]
    assert 0 < evaluated["val/n"] < 40, "the validation split, not all"


def test_import_needs_neither_tensorflow_nor_torch(repository):
    code = (
        "import sys, mmcl_jax, mmcl_jax.train, mmcl_jax.evals.retrieval, mmcl_jax.data.datasets.openmoji; "
        "assert not {'tensorflow', 'torch', 'transformers', 'wandb', 'tensorboardX'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
