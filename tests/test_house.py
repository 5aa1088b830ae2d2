"""The rules of the house: who may import whom, how long a file may be, what must be documented."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmcl_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CEILING = 250
TABLES = {"data/datasets/emoji_tables.py"}  # names and numbers only

# Room -> what it may import of ours. `named` (errors and things that a config names) and the room itself always.
SHARED = {"named", "files", "machine"}
ALL_BELOW_TRAIN = {"types", "parallel", "losses", "encoders", "augment", "method", "data", "optim"}
ALL_BELOW_TRAIN |= {"checkpoint", "clock", "config", "log", "processes"}
MAY_IMPORT = {
    "__init__": {"predict"},
    "named": set(),
    "files": set(),
    "machine": set(),
    "processes": set(),
    "types": set(),
    "items": set(),
    "parallel": {"types"},
    "losses": {"types", "parallel"},
    "encoders": {"types", "parallel"},
    "augment": {"types"},
    "method": {"types", "parallel", "losses", "encoders"},
    "momentum": {"types", "parallel", "losses"},
    "methods": {"types", "parallel", "losses", "encoders", "augment", "method", "momentum"},
    "data": set(),
    "optim": {"types", "parallel"},
    "checkpoint": {"types", "parallel", "processes"},
    "config": set(),
    "log": {"clock"},
    "clock": set(),
    "profile": {"log", "types"},
    "step": ALL_BELOW_TRAIN,
    "predict": ALL_BELOW_TRAIN - {"config"} | {"items"},
    "evals": {"analysis", "data", "items", "log", "predict", "types"},
    "inherit": ALL_BELOW_TRAIN - {"config"} | {"predict"},
    "analysis": {"data", "evals", "items", "log", "predict", "method", "encoders", "types"},
    "build": ALL_BELOW_TRAIN | {"step", "predict", "inherit", "evals"},
    "bench": ALL_BELOW_TRAIN | {"step", "predict", "evals", "build"},
    "train": ALL_BELOW_TRAIN
    | {
        "step",
        "predict",
        "inherit",
        "evals",
        "build",
        "profile",
        "cli",
    },  # cli: `python -m mmcl_jax.train` is `mmcl train`
    "doctor": ALL_BELOW_TRAIN | {"build"},
    "sweep": {"config", "log", "method"},
    "table": {"config", "log"},
    "cli": ALL_BELOW_TRAIN | {"step", "predict", "evals", "train", "bench", "sweep", "table", "doctor"},
}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Rooms of ours that a file imports, at its top or inside functions, and all other packages."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "mmcl_jax" else [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "mmcl_jax":
                ours.add(parts[1])
            else:
                others.add(parts[0])
    return ours, others


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    ours, others = imports(path)
    name = room(path)
    allowed = MAY_IMPORT[name] | SHARED | {name}
    assert ours <= allowed, f"{path.name} imports {sorted(ours - allowed)}; {name} may import {sorted(allowed)}"
    if name == "data":
        assert not others & {"jax", "flax", "optax"}, "data is numpy only"
    if name not in ("data", "log"):
        assert not others & {"tensorflow", "tensorflow_datasets", "torch", "transformers", "wandb"}


def test_nobody_asks_which_method_runs():
    names = {p.stem for p in (PACKAGE / "methods").glob("*.py")} - {"__init__"}
    for path in FILES:
        if room(path) != "methods":
            modules = {f"mmcl_jax.methods.{n}" for n in names}
            assert not any(m in path.read_text() for m in modules), path
            assert "method.name ==" not in path.read_text(), path


def test_lax_collectives_have_one_home():
    for path in FILES:
        if path.name != "parallel.py":
            names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
            names |= {
                a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) for a in n.names
            }
            found = names & {
                "psum",
                "pmean",
                "all_gather",
                "ppermute",
                "pmax",
                "axis_index",
                "all_to_all",
                "psum_scatter",
            }
            assert not found, f"{found} in {path}"


def lines_of_code(path):
    """Lines that are neither blank nor comment nor docstring."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
            tokenize.ENDMARKER}  # fmt: skip
    lines, last = set(), tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        docstring = token.type == tokenize.STRING and last in (
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.NL,
            tokenize.DEDENT,
        )
        if token.type not in skip and not docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
        if token.type != tokenize.COMMENT:
            last = token.type
    return len(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
    if str(path.relative_to(PACKAGE)) not in TABLES:
        assert lines_of_code(path) <= CEILING


def test_every_config_is_documented(repository):
    readme = (repository / "configs/README.md").read_text()
    for path in (repository / "configs").glob("*.py"):
        if "def get_config" in path.read_text():
            assert f"`{path.name}`" in readme, f"configs/README.md does not mention {path.name}"


def test_every_method_has_a_config(repository):
    for path in (PACKAGE / "methods").glob("*.py"):
        if path.stem != "__init__":
            assert (repository / f"configs/{path.stem}.py").is_file(), path.stem
