"""Notebooks: each is what its script says, shows what came out, and runs from the start on synthetic data."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
HELD_OUT = dict(source="synthetic", size=64, split="test")
THREE = ("image", "audio", "tags")
TINY = {  # notebook -> its parameters; TMP is the test's folder
    "01_first_run": dict(
        CONFIG="configs/clip_emoji.py:tiny", OVERRIDES=["steps=30", "batch=16"], RUN="TMP/run", BUILD="",
        CLASSES=["square", "disc"], WORDS=["red square", "blue disc"],
    ),
    "02_embeddings_and_retrieval": dict(
        CONFIG="configs/clip_emoji.py:tiny", OVERRIDES=["steps=30", "batch=16"], RUN="TMP/run", BUILD="", DATA=HELD_OUT,
        QUERIES=["a red square", "a blue disc", "a ring", "pink"], CLASSES=["square", "disc"],
    ),
    "03_modality_gap": dict(
        CONFIG="configs/clip_gap.py:tiny", OVERRIDES=["steps=30", "batch=16", "eval_every=15"], RUN="TMP/run",
        BUILD="", CLASS="label", DATA=HELD_OUT, EVALUATION="val_gap", SEEDS=3, WIDTH=32, DEPTH=6, REPEATS=2,
    ),
    "04_ablation_table": dict(
        CONFIGS=["configs/clip_gap.py:tiny"], GRID=["method.negatives=across,all", "seed=0,1"], BUILD="",
        OUT="TMP/runs",
        OVERRIDES=["steps=20", "batch=16"], METRICS=["val_gap/image_text/size", "val/i2t/R@1"], OVER_STEPS=["loss"],
    ),
    "05_bring_your_data": dict(
        FOLDER="TMP/data", TABLE="TMP/data/pairs.csv", BUILD="", CAPTION="captions", RUN="TMP/run",
        DATA={s: dict(source="synthetic", size=48, split=s) for s in ("train", "test")},
        SHORT=["steps=20", "batch=16", "optim.warmup=5"],
    ),
    "06_missing_modalities": dict(
        CONFIG="configs/gmc_emoji.py:tiny", OVERRIDES=["steps=20", "batch=32"], RUN="TMP/run", BUILD="",
        DATA=HELD_OUT | dict(modalities=THREE, missing=0.2), MISSING="missing", COUNT=16,
    ),
}  # fmt: skip


def test_every_notebook_is_run_here():
    """But codebook, whose cells tests/analysis/test_codebook.py runs."""
    assert {*TINY, "codebook"} == {*NAMES} == {p.stem for p in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script_and_was_executed(name):
    file = FOLDER / f"{name}.ipynb"
    script, notebook = jupytext.read(FOLDER / f"{name}.py"), nbformat.read(file, as_version=4)
    hint = f"bash launch/notebooks.sh {name} makes the notebook anew"
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells], hint
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [*range(1, len(code) + 1)], hint
    outputs = [output for c in code for output in c.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
    text = re.sub(r'"image/png": ".*"', "", file.read_text())
    assert not re.search(r"[\s'\"(](/root|/home|/tmp|/work|/Users)/", text), "a path of the machine"
    assert file.stat().st_size < 3e6


@pytest.mark.parametrize("name", TINY)
def test_a_notebook_runs(name, tmp_path, repository):
    values = {k: ast.literal_eval(repr(v).replace("TMP", str(tmp_path)))
              for k, v in TINY[name].items()}  # fmt: skip
    first = next(c for c in jupytext.read(FOLDER / f"{name}.py").cells if "parameters" in c.metadata.get("tags", ()))
    assert {*values} <= {t.id for node in ast.parse(first.source).body for t in node.targets}, "no such parameter"
    out, parameters = tmp_path / "executed.ipynb", "\n".join(f"{k} = {v!r}" for k, v in values.items())
    argv = [sys.executable, "launch/execute.py", f"notebooks/{name}.py", str(out), parameters]
    done = subprocess.run(argv, cwd=repository, capture_output=True, text=True, timeout=900,
                          env=os.environ | {"MPLBACKEND": ""})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cells = nbformat.read(out, as_version=4).cells
    drawn = [c for c in cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", ()))]
    assert len(drawn) >= 2
