"""The train step: what is not finite changes nothing, rules freeze and scale, averages average."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_jax import config as configs
from mmcl_jax import log, optim, predict, step, train
from mmcl_jax import method as methods
from mmcl_jax.types import Stream
from tests.conftest import make_mesh


@pytest.fixture
def setup(repository):
    """Builds (step function, state, batch) of a tiny CLIP with overrides."""

    def build(*overrides):
        config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
        method = methods.build(config)
        rng = np.random.default_rng(0)
        batch = {
            "image": Stream(jnp.asarray(rng.normal(size=(8, 16, 16, 3)), jnp.float32)),
            "text": Stream(jnp.asarray(rng.integers(3, 300, (8, 12)), jnp.int32), jnp.ones((8, 12), bool)),
        }
        shapes, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
        optimizer, schedule, by = optim.build(config.optim, config.steps, config.batch, shapes)
        state = jax.jit(lambda: step.init_state(method, optimizer, batch, jax.random.key(0)))()
        function = step.make_train_step(method, optimizer, by, schedule, lambda host: host, make_mesh("1"), config)
        return jax.jit(function), state, batch

    return build


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(setup):
    function, state, batch = setup("optim.average=0.9")
    state, _ = function(state, batch)
    bad = batch | {"image": Stream(batch["image"].data.at[0, 0, 0, 0].set(jnp.nan))}
    after, metrics = function(state, bad)
    assert metrics["bad"] and after.step == state.step + 1
    for name in ("params", "opt_state", "extra"):
        for a, b in zip(*(jax.tree.leaves(getattr(s, name)) for s in (after, state)), strict=True):
            np.testing.assert_array_equal(a, b)
    again, metrics = function(after, batch)
    assert not metrics["bad"] and np.isfinite(metrics["loss"])


def test_many_bad_steps_in_a_row_stop_the_run(tmp_path, repository):
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", ["optim.lr=1e30", "optim.clip=0.0", "steps=60"])
    config.evals = {}
    with pytest.raises(RuntimeError, match="10 steps in a row were not finite.*optim.lr"):
        train.train(config, tmp_path, jax.devices()[:1])
    rows = log.read_metrics(tmp_path / "metrics.jsonl")
    assert rows and rows[0]["loss"] is not None


def test_rules_freeze_and_scale(setup):
    plainly = ("optim.warmup=0", "optim.decay=0.0", "optim.clip=0.0")  # clipping would see other norms
    function, state, batch = setup("optim.rules=('text/: lr=0', 'image/: lr=0.5')", *plainly)
    plain, _, _ = setup(*plainly)
    after, _ = function(state, batch)
    unruled, _ = plain(state, batch)

    def moved(s, name):
        return [np.asarray(a - b) for a, b in zip(*(jax.tree.leaves(x.params[name]) for x in (s, state)), strict=True)]

    assert all((d == 0).all() for d in moved(after, "text"))
    for half, whole in zip(moved(after, "image"), moved(unruled, "image"), strict=True):
        # Adam makes steps of 3e-3 of gradients, and of rounding where the gradient is zero (the keys' biases).
        np.testing.assert_allclose(half, whole / 2, rtol=1e-3, atol=2e-5)


def test_decay_spares_biases_norms_and_scales():
    params = {"image": {"dense": {"kernel": 1.0, "bias": 1.0}, "norm1": {"scale": 1.0}}, "log_scale": 1.0}
    by = optim.multipliers(params, (), r"(bias|scale|class_token)$")
    assert by.decay == {"image": {"dense": {"kernel": 1.0, "bias": 0.0}, "norm1": {"scale": 0.0}}, "log_scale": 0.0}


@pytest.mark.parametrize("rule", ["txt/: lr=0", "text/ lr=0", "text/: rate=1", "text/: lr"])
def test_rules_that_cannot_work_are_refused(rule):
    with pytest.raises(ValueError, match="optim.rules"):
        optim.multipliers({"text": {"w": 1.0}}, (rule,), "")


def test_average_of_weights():
    optimizer = optim.with_average(optax.sgd(1.0), 0.5)
    params = {"w": jnp.float32(0)}
    state = optimizer.init(params)
    average = 0.0
    for n in range(1, 4):
        updates, state = optimizer.update({"w": jnp.float32(-1)}, state, params)
        params = optax.apply_updates(params, updates)
        d = min(0.5, (1 + n) / (10 + n))
        average = d * average + (1 - d) * n
    assert optim.to_evaluate(params, state)["w"] == pytest.approx(average)
    assert optim.to_evaluate(params, ()) is params


def test_a_finished_run_started_again_says_so_and_stays_as_it_is(repository, tmp_path, capsys):
    overrides = ["batch=16", "steps=2", "optim.warmup=1", "encoders.image.depth=1", "encoders.text.depth=1"]
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
    one = jax.devices()[:1]
    train.train(config, tmp_path, one)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert train.train(config, tmp_path, one) == 0
    assert "had its 2 steps already" in capsys.readouterr().out
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again == summary
    metrics = tmp_path / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)

    def rows():
        found = [{k: v for k, v in r.items() if k != "seconds" and "time/" not in k} for r in log.read_metrics(metrics)]
        return sorted(found, key=str)

    before = rows()
    metrics.write_text("".join(line for line in lines if "zeroshot" not in line))  # killed between two evaluations
    train.train(config, tmp_path, one)
    assert rows() == before, "the missing one is made up for"


@pytest.mark.slow
def test_sharded_bfloat16_runs_go_on_elsewhere(repository, tmp_path):
    """Weights over two devices each, averaged, rematerialised in a scan; then on eight; then opened on one."""
    overrides = ["batch=16", "steps=2", "optim.warmup=1", "mesh.fsdp=2", "dtype=bfloat16", "optim.average=0.9",
                 "encoders.image.remat=full", "encoders.image.scan=True", "log.every=1"]  # fmt: skip
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
    config.evals = {}
    train.train(config, tmp_path, jax.devices()[:4])
    config.mesh.fsdp, config.steps = 1, 4
    train.train(config, tmp_path, jax.devices()[:8])
    rows = log.read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3, 4] and all(np.isfinite(r["loss"]) for r in rows)
    seconds = [r["seconds"] for r in rows]
    assert seconds == sorted(seconds), "the clock goes on where it was"
    predictor = predict.load(tmp_path, mesh=make_mesh("1"))
    assert predictor.step == 4 and all(x.dtype == np.float32 for x in jax.tree.leaves(predictor.params))


def torch_sgd(p, grads, rates, momentum, decay):
    """PyTorch's SGD, from its documentation."""
    velocity = 0.0
    for g, lr in zip(grads, rates, strict=True):
        velocity = momentum * velocity + g + decay * p
        p = p - lr * velocity
    return p


def simclr_lars(p, grads, rates, momentum, decay, trust):
    """LARS as SimCLR's code has it: the rate goes into the velocity; trust None = not adapted, and not decayed."""
    velocity = 0.0
    for g, lr in zip(grads, rates, strict=True):
        g = g if trust is None else g + decay * p
        ratio = 1.0 if trust is None else trust * np.linalg.norm(p) / np.linalg.norm(g)
        velocity = momentum * velocity + lr * ratio * g
        p = p - velocity
    return p


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_optimizers_are_those_of_the_papers(repository, name):
    overrides = [f"optim.name={name}", "optim.lr=0.2", "optim.scaling=linear", "batch=512", "optim.warmup=2",
                 "optim.decay=0.01", "optim.clip=0.0", "optim.momentum=0.8", "optim.trust=0.05", "steps=6"]  # fmt: skip
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    grads = [{k: rng.normal(size=v.shape) for k, v in start.items()} for _ in range(4)]
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        optimizer, schedule, _ = optim.build(config.optim, config.steps, config.batch, params)
        rates = [float(schedule(np.float64(s))) for s in range(4)]
        assert max(rates) == pytest.approx(0.4)
        state = optimizer.init(params)
        for g in grads:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, g), state, params)
            params = optax.apply_updates(params, updates)
    for key, p in start.items():
        decay = 0.0 if key == "bias" else 0.01
        if name == "sgd":
            expected = torch_sgd(p, [g[key] for g in grads], rates, 0.8, decay)
        else:
            expected = simclr_lars(p, [g[key] for g in grads], rates, 0.8, 0.01, None if key == "bias" else 0.05)
        np.testing.assert_allclose(params[key], expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", ["name=adam", "scaling=cubic"])
def test_optimizers_that_do_not_exist_are_refused(repository, wrong):
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", [f"optim.{wrong}"])
    with pytest.raises(ValueError, match=f"optim.{wrong.split('=')[0]}=.*possible: "):
        optim.build(config.optim, config.steps, config.batch, {"w": jnp.ones(2)})


class Lines:
    """Takes the place of a log."""

    def before(self, key):
        return 0

    def train(self, step, metrics):
        pass


def test_collapse_is_told_once(capsys):
    watcher = step.StepWatcher(Lines(), 1, 10, 0)
    for now, (std, rank) in enumerate([(0.9, 20.0), (0.01, 20.0), (0.01, 20.0), (0.9, 20.0), (0.9, 1.1)], 1):
        metrics = {"loss": 1.0, "bad": False, "std": std, "rank": rank}
        watcher.add(now, {k: np.asarray(v) for k, v in metrics.items()}, 0)
        watcher.flush()
    told = [line for line in capsys.readouterr().out.replace("\n", " ").split("warning") if "collapse" in line]
    assert len(told) == 2 and "at step 2" in told[0] and "at step 5" in told[1]
