"""Losses against ten lines of numpy: masks, permutations, NaN in absent rows, bfloat16, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.losses import easy_nce, in_batch_accuracy, info_nce, nt_xent, sigmoid, spread, uniformity, unit


def numpy_info_nce(x, y, present, scale):
    x, y = x[present].astype(np.float64), y[present].astype(np.float64)
    if not len(x):
        return 0.0
    logits = scale * x @ y.T
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    return (rows.mean() + columns.mean()) / 2


def numpy_sigmoid(x, y, present, scale, bias=-10.0):
    x, y = x[present].astype(np.float64), y[present].astype(np.float64)
    z = 2 * np.eye(len(x)) - 1
    return np.log1p(np.exp(-z * (scale * x @ y.T + bias))).sum() / max(len(x), 1)


def numpy_nt_xent(x, y, present, scale):
    z = np.concatenate([x[present], y[present]]).astype(np.float64)
    n = len(z) // 2
    if not n:
        return 0.0
    logits = scale * z @ z.T
    np.fill_diagonal(logits, -np.inf)
    return (np.log(np.exp(logits).sum(1)) - logits[np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)]).mean()


def numpy_easy_nce(x, y, present, scale):
    x, y = x[present].astype(np.float64), y[present].astype(np.float64)
    found = []
    for logits in (scale * x @ y.T, scale * y @ x.T):
        right = logits.argmax(1) == np.arange(len(x)) if len(x) else np.zeros(0, bool)
        losses = np.log(np.exp(logits).sum(1)) - np.diag(logits)
        found.append(losses[right].mean() if right.any() else 0.0)
    return np.mean(found)


def uniformities(x, y, present=None, *, scale, axis=None):
    return scale * (uniformity(x, present, axis=axis) + uniformity(y, present, t=1.0, axis=axis))


def numpy_uniformities(x, y, present, scale):
    n, total = present.sum(), 0.0
    for z, t in ((x[present].astype(np.float64), 2.0), (y[present].astype(np.float64), 1.0)):
        distances = np.square(z[:, None] - z[None]).sum(-1)[~np.eye(n, dtype=bool)]
        total += np.log(np.exp(-t * distances).mean()) if n > 1 else 0.0
    return scale * total


LOSSES = {
    "easy_nce": (easy_nce, numpy_easy_nce, {}),
    "uniformity": (uniformities, numpy_uniformities, {}),
    "info_nce": (info_nce, numpy_info_nce, {}),
    "nt_xent": (nt_xent, numpy_nt_xent, {}),
    "sigmoid": (sigmoid, numpy_sigmoid, {"bias": jnp.float32(-10.0)}),
}
MASKS = {
    "all": np.ones(16, bool),
    "some": np.arange(16) % 3 != 1,
    "one": np.arange(16) == 5,
    "none": np.zeros(16, bool),
}


def pairs(seed=0, dtype=np.float32):
    x, y = np.random.default_rng(seed).normal(size=(2, 16, 8))
    return np.array(unit(x), dtype), np.array(unit(y), dtype)


@pytest.fixture(params=LOSSES)
def case(request):
    return LOSSES[request.param]


@pytest.mark.parametrize("mask", MASKS)
def test_value_and_gradient(case, mask, ctx):
    """The value is the oracle's; the gradient is its finite difference; absent rows get exactly none."""
    loss, oracle, shared = case
    present, (x, y) = MASKS[mask], pairs()
    x[~present] = np.nan  # whatever an encoder makes of a placeholder

    def ours(x, y, scale):
        return ctx.over_batch(loss)(x, y, present, scale=scale, **shared)

    value, (gx, gy, gs) = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(x, y, jnp.float32(5.0))
    np.testing.assert_allclose(value, oracle(x, y, present, 5.0), rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(gx)[~present] == 0) and np.all(np.asarray(gy)[~present] == 0)
    assert np.isfinite(gs)
    if not present.any():
        assert value == 0 and gs == 0
        return
    direction = np.random.default_rng(1).normal(size=x.shape)
    h = 1e-4
    difference = (oracle(x, y + h * direction, present, 5.0) - oracle(x, y - h * direction, present, 5.0)) / (2 * h)
    np.testing.assert_allclose((np.asarray(gy, np.float64) * direction).sum(), difference, rtol=1e-4, atol=1e-6)
    by_scale = (oracle(x, y, present, 5 + h) - oracle(x, y, present, 5 - h)) / (2 * h)
    np.testing.assert_allclose(gs, by_scale, rtol=1e-4, atol=1e-6)


def test_order_of_rows_does_not_matter(case):
    loss, _, shared = case
    x, y = pairs()
    order = np.random.default_rng(2).permutation(16)
    straight = loss(x, y, MASKS["some"], scale=5.0, **shared)
    np.testing.assert_allclose(loss(x[order], y[order], MASKS["some"][order], scale=5.0, **shared), straight, rtol=1e-6)


def test_bfloat16_inputs_have_float32_logits(case):
    loss, oracle, shared = case
    x, y = pairs(dtype=jnp.bfloat16)
    value = loss(x, y, scale=50.0, **shared)
    assert value.dtype == jnp.float32
    exact = oracle(x.astype(np.float64), y.astype(np.float64), MASKS["all"], 50.0)
    np.testing.assert_allclose(value, exact, rtol=1e-5)  # bfloat16 logits would be off by a percent


def test_sharp_logits_do_not_overflow():
    x = np.eye(16, dtype=np.float32)
    assert float(info_nce(x, x, scale=100.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(info_nce(x, -x, scale=100.0)) == pytest.approx(100 + np.log(15), rel=1e-4)


def test_accuracy(ctx):
    x = np.eye(16, dtype=np.float32)
    y = x.copy()
    y[[0, 1]] = y[[1, 0]]
    accuracy = jax.jit(lambda *a: ctx.over_batch(in_batch_accuracy)(*a))
    assert float(accuracy(x, y)) == pytest.approx(14 / 16)
    assert float(accuracy(x, y, np.arange(16) > 1)) == 1.0
    assert float(accuracy(x, np.ones_like(x))) == 0.0, "ties, as of a collapsed model, are misses"


def test_unit_of_zero_has_a_finite_gradient():
    gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 4)))
    assert np.isfinite(gradient).all()


def test_rows_that_do_not_divide_need_a_present_argument(ctx):
    if ctx.mesh is None or ctx.mesh.size == 1:
        return
    with pytest.raises(ValueError, match="present"):
        ctx.over_batch(lambda x, *, axis=None: x.sum())(jnp.ones((3, 2)))


def test_spread(ctx):
    z, present = pairs()[0], MASKS["some"]
    there = z[present].astype(np.float64)
    covariance = np.cov(there.T, bias=True)
    values = np.linalg.eigvalsh(covariance)
    z[~present] = np.nan
    found = jax.jit(lambda *a: ctx.over_batch(spread)(*a))(z, present)
    np.testing.assert_allclose(found["std"], np.sqrt(8) * there.std(0).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["rank"], values.sum() ** 2 / (values**2).sum(), rtol=1e-5)
    collapsed = jax.jit(lambda *a: ctx.over_batch(spread)(*a))(np.ones_like(z) / np.sqrt(np.float32(8)), present)
    assert collapsed["std"] < 1e-3


def test_spread_of_a_line():
    line = np.linspace(-1, 1, 16)[:, None] * np.eye(8)[2]
    assert float(spread(jnp.float32(line))["rank"]) == pytest.approx(1, rel=1e-5)
    assert float(spread(jnp.zeros((4, 8)))["rank"]) == 0
