"""Every config that is not a fragment, in its :tiny variant: learns, is the same on any devices, resumes bitwise."""

import ast
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from mmcl_jax import config as configs
from mmcl_jax import log, optim, parallel, predict, step, train
from mmcl_jax import method as methods
from mmcl_jax.build import build
from mmcl_jax.checkpoint import Checkpoints
from mmcl_jax.data import mix, pipeline
from mmcl_jax.evals import retrieval
from mmcl_jax.types import Ctx, Stream
from tests.conftest import make_mesh

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(p for p in FOLDER.glob("*.py") if "def get_config" in p.read_text())
ONE = jax.devices()[:1]  # several devices compile for a long time; what they compute is compared by gradients
pytestmark = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


def tiny(path, *overrides, shallow=False):
    """The `:tiny` variant; with a block less, where depth is not what is tested."""
    config = configs.load(f"{path}:tiny", overrides)
    for tower in config.encoders.values():
        if shallow and "depth" in tower:
            tower.depth = 1
    return config


def first_batch(config, tmp_path):
    """The method, one batch of rows on the host and the device half of its streams."""
    sources, weights = mix.open_sources(config.data.train)
    tokenizer = pipeline.make_tokenizer(config.data, sources, tmp_path)
    streams = pipeline.Streams(config.data.streams, config.seed, tokenizer, config.data.record)
    streams.find_spec(sources[0])
    data = pipeline.Pipeline(mix.Mixed(sources, weights, config.seed), streams, config.batch)
    host = pipeline.stack([data[i] for i in range(config.batch)])
    device = predict.device_streams(streams, config.seed)
    return methods.build(config), {k: host[k] for k in ("streams", "position")}, device


def started(method, batch):
    """Parameters, and `extra` as after a first step: queues hold something."""
    ctx = Ctx(make_mesh("1"), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(2))
    params, extra = method.init(jax.random.key(0), batch)
    return params, jax.jit(lambda p, e: method.loss(p, e, batch, ctx)[1][0])(params, extra) if extra else extra


def test_loss_and_gradients_are_those_of_one_device(path, tmp_path):
    config = tiny(path, "batch=24")  # 24 rows: 3 on each of 8 devices
    method, host, device = first_batch(config, tmp_path)
    params, extra = started(method, device(host))

    def value_and_grad(mesh):
        ctx = Ctx(mesh, parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1))
        placed, beside = (jax.device_put(x, parallel.state_sharding(x, mesh, (), params)) for x in (params, extra))

        def loss(params, extra, host):
            loss, (extra, _) = method.loss(params, extra, device(host), ctx)
            return loss, extra

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, beside, parallel.put_rows(host, mesh))

    (loss, kept), grads = value_and_grad(make_mesh("1"))
    peak = max(float(np.abs(g).max()) for g in jax.tree.leaves(grads))
    assert np.isfinite(loss) and loss > 0 and peak > 0
    for name in ("8", "4x2"):
        (other_loss, other_kept), other = value_and_grad(make_mesh(name))
        np.testing.assert_allclose(other_loss, loss, rtol=1e-4)
        # Against the largest gradient: that of the keys' biases is zero but for rounding.
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * peak)
        for a, b in zip(jax.tree.leaves(other_kept), jax.tree.leaves(kept), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # queue, twin and batch statistics


def test_empty_examples_give_finite_gradients(path, tmp_path):
    """All images are black and all captions empty: the vectors are the same, no token is real."""
    config = tiny(path, "batch=8", shallow=True)
    method, host, device = first_batch(config, tmp_path)
    params, extra = started(method, device(host))
    for stream in host["streams"].values():
        stream |= jax.tree.map(np.zeros_like, dict(stream)) | {"present": np.ones(8, bool)}
    ctx = Ctx(make_mesh("1"), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(1))
    loss, grads = jax.jit(jax.value_and_grad(lambda p: method.loss(p, extra, device(host), ctx)[0]))(params)
    assert np.isfinite(loss) and loss > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_it_learns_compiles_once_and_evaluates(path, tmp_path, monkeypatch):
    calls = []
    original = step.make_train_step
    monkeypatch.setattr(step, "make_train_step", lambda *a: _counted(original(*a), calls))
    config = tiny(path, "checkpoint.every=1000")
    assert train.train(config, tmp_path, ONE) == 0
    rows = log.read_metrics(tmp_path / "metrics.jsonl")
    losses = [r["loss"] for r in rows if "loss" in r]
    assert len(losses) >= 10 and np.isfinite(losses).all()
    if "queue" in config.method:  # it starts empty, or full of noise, which is easy to tell apart
        assert np.mean(losses[-3:]) < 0.7 * max(losses)
    else:
        assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert len(calls) == 1, "the step was traced more than once"
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["evals"]
    of = config.evals.val
    if of.name == "retrieval":
        found_first = retrieval.directions(of.get("a", "image"), of.get("b", "text"))["a2b"]
        assert found[f"val/{found_first}/R@5"] > 10 * 5 / 256, "ten times chance"
        pictures = () if "b" in of else ("retrieval.png",)
    else:
        assert found["val/top1"] > 10 / 256, "ten times chance"
        pictures = ("neighbours.png",)
    if "text" in config.encoders:
        pictures += ("tokenizer.json",)
    for name in ("curves.png", "config.json", *pictures):
        assert (tmp_path / name).stat().st_size > 0


def _counted(function, calls):
    def traced(*args):
        calls.append(1)
        return function(*args)

    return traced


def test_a_continued_run_is_bitwise_an_unbroken_one(path, tmp_path, capsys):
    def losses(workdir):
        return {r["step"]: r["loss"] for r in log.read_metrics(workdir / "metrics.jsonl") if "loss" in r}

    common = ("log.every=1", "batch=16", "steps=6", "checkpoint.every=3", "optim.average=0.9", "optim.warmup=2")
    whole = tiny(path, *common, shallow=True)
    whole.evals = {}
    train.train(whole, tmp_path / "whole", ONE)
    # A run of six steps that ends after three: what a kill leaves, without the killing.
    part = tmp_path / "part"
    train.train(whole, part, ONE)
    for folder in ("checkpoints", "manifests"):
        for entry in (part / folder).glob("6*"):
            entry.rename(tmp_path / f"{folder}_{entry.name}")
    capsys.readouterr()
    train.train(whole, part, ONE)
    assert "going on from step 3" in capsys.readouterr().out
    assert losses(part) == losses(tmp_path / "whole")
    assert list(losses(part)) == [1, 2, 3, 4, 5, 6], "each step is logged once"
    shapes = build(whole, part, parallel.make_mesh(whole.mesh, ONE), begun=True).shapes
    a, b = (Checkpoints(w, read_only=True).restore(shapes)[1] for w in (tmp_path / "whole", part))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)  # queues, twins and batch statistics, too
    predict.load(part)


def test_the_docstring_says_how_to_run_it(path):
    text = path.read_text()
    assert re.search(rf"--config configs/{path.stem}\.py", text), "no command"
    assert re.search(r"arXiv \d{4}\.\d{4,5}", text), "no paper"


def variants(path):
    """The VARIANTS of the file, or of a fragment that it imports; without, it has but one."""
    body = ast.parse(path.read_text()).body
    fragments = [a.name for node in body if isinstance(node, ast.ImportFrom) and node.level for a in node.names]
    for node in [n for p in (path.stem, *fragments) for n in ast.parse((FOLDER / f"{p}.py").read_text()).body]:
        if isinstance(node, ast.Assign) and node.targets[0].id == "VARIANTS":
            return list(ast.literal_eval(node.value))
    return [""]


ARRAYS = {"image": (28, 28, 1), "sound": (32, 128, 1), "trajectory": (200,), "imu": (6, 2000), "label": ()}  # in files


def row_of(name, ops):
    """A row of the shape that a stream will have, from what its ops say."""
    mel = re.search(r"log_mel\(\d+, mels=(\d+), frames=(\d+)\)", ops)
    if mel:
        return Stream(np.zeros((1, *map(int, mel.groups()), 1), np.float32))
    found = re.search(r"(resize|crop|tokenize|multi_hot)\((\d+)", ops)
    if not found:
        return Stream(np.zeros((1, *ARRAYS[name]), np.float32))
    row = (1, int(found[2]))
    return {
        "tokenize": Stream(np.zeros(row, np.int32), np.ones(row, bool)),
        "multi_hot": Stream(np.zeros(row, np.uint8)),
    }.get(found[1], Stream(np.zeros((*row, row[1], 1 if "one_channel" in ops else 3), np.float32)))


def test_full_size_configs_are_valid_without_their_data(path):
    """Everything but the data is built, as shapes, in each variant: the recipes make models."""
    for variant in variants(path):
        config = configs.load(f"{path}:{variant}")
        configs.validate(config, devices=8)
        method = methods.build(config)
        batch = {}
        for name, ops in config.data.streams.items():
            batch[name] = row_of(name, ops)
        params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)
        assert optim.count(params) > 3e5, variant
    optim.build(config.optim, config.steps, config.batch, params)
