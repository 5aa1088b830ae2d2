"""Every form of the losses, on every mesh, with rows absent: the value and the gradients of one device."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import parallel
from mmcl_jax.bench.baselines import local_rows, naive
from mmcl_jax.losses import in_batch_accuracy, info_nce, nt_xent, plan, sigmoid, unit
from mmcl_jax.types import Ctx
from tests.conftest import make_mesh

SCALE = 20.0
B, D = 48, 8  # 6 rows a device: a chunk of 4 divides neither them nor the batch of all
MASKS = {
    "all": np.ones(B, bool),
    "30% absent": np.random.default_rng(5).permutation(B) >= 0.3 * B,
    "a device absent": np.arange(B) >= 6,
    "one": np.arange(B) == 17,
    "none": np.zeros(B, bool),
}
FORMS = [*itertools.product(("shared_tile",), (1024,)), *itertools.product(("chunked", "ring"), (4, 12, 1024))]
LOSSES = {"info_nce": (info_nce, {}), "nt_xent": (nt_xent, {}), "sigmoid": (sigmoid, {"bias": -3.0})}


def pairs(dtype):
    x, y = np.random.default_rng(0).normal(size=(2, B, D))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, x + y))
    return x.astype(dtype), y.astype(dtype)


def value_and_gradients(loss, ctx, dtype, shared, **how):
    """A compiled function of x, y and present."""

    def scalar(x, y, shared, present):
        return ctx.over_batch(loss)(x, y, present, **shared, **how)

    shared = {k: jnp.asarray(v, dtype) for k, v in shared.items()}
    compiled = jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))
    return lambda x, y, present: compiled(x, y, shared, present)


@functools.cache
def reference(name, dtype):
    """On one device: the naive scheme, and the plain forms of the other losses, which have tests of their own."""
    loss, extra = LOSSES[name]
    loss = naive if name == "info_nce" else loss
    return value_and_gradients(loss, Ctx(), dtype, {"scale": SCALE} | extra)


def check(ours, reference, tolerance):
    for path, (a, b) in zip(
        jax.tree_util.tree_leaves_with_path(ours),
        zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True),
        strict=True,
    ):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 0.02), (path[0], a, b)


@pytest.mark.parametrize(
    "mesh, impl, chunk",  # one device is no ring
    [(m, *form) for m in ("none", "8", "4x2") for form in FORMS if (m, form[0]) != ("none", "ring")],
)
@pytest.mark.parametrize("name", LOSSES)
def test_float32(name, mesh, impl, chunk):
    loss, extra = LOSSES[name]
    ctx = Ctx() if mesh == "none" else Ctx(make_mesh(mesh), parallel.BATCH_AXES)
    x, y = pairs(np.float32)
    ours = value_and_gradients(loss, ctx, np.float32, {"scale": SCALE} | extra, impl=impl, chunk=chunk)
    for mask, present in MASKS.items():
        dirty = np.where(present[:, None], x, np.nan)  # whatever an encoder makes of a placeholder
        value, (dx, dy, dshared) = ours(dirty, y, present)
        # The gradient by NT-Xent's scale is a small difference of large sums; in float64 it is as exact as the rest.
        tolerance = 3e-5 if name == "nt_xent" else 1e-5
        check((value, (dx, dy, dshared)), reference(name, np.float32)(x, y, present), tolerance)
        assert np.all(np.asarray(dx)[~present] == 0) and np.all(np.asarray(dy)[~present] == 0), mask
        if not present.any():
            assert value == 0 and all(v == 0 for v in dshared.values())


@pytest.mark.parametrize("impl, chunk", [("shared_tile", 1024), ("chunked", 4), ("ring", 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_float64(name, impl, chunk):
    """To twelve digits: what is different is the order of sums and nothing else."""
    loss, extra = LOSSES[name]
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES)
    with jax.enable_x64(True):
        ours = value_and_gradients(loss, ctx, np.float64, {"scale": SCALE} | extra, impl=impl, chunk=chunk)
        rows = (*pairs(np.float64), MASKS["30% absent"])
        assert ours(*rows)[0].dtype == np.float64
        check(ours(*rows), reference(name, np.float64)(*rows), 1e-12)


@pytest.mark.parametrize("usual", [naive, local_rows])
def test_the_usual_schemes_agree(usual):
    """They are what ours is measured against, so they must solve the same problem."""
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES)
    with jax.enable_x64(True):
        found = value_and_gradients(usual, ctx, np.float64, {"scale": SCALE})
        for present in (MASKS["all"], MASKS["30% absent"]):
            rows = (*pairs(np.float64), present)
            check(found(*rows), reference("info_nce", np.float64)(*rows), 1e-12)


@pytest.mark.parametrize("impl", plan.IMPLS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_scale_of_each_pair_and_bfloat16(name, impl):
    """A scale of each example's own is a factor of x; bfloat16 vectors have float32 logits in every form."""
    loss, extra = LOSSES[name]
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES)
    x, y = (jnp.asarray(v, jnp.bfloat16) for v in pairs(np.float32))
    scales = jnp.asarray(np.random.default_rng(2).choice([1, 2, 4, 8], size=(B, 1)), jnp.bfloat16)

    def of_scales(form, ctx, dtype):
        def scalar(scales):
            return ctx.over_batch(loss)((x * scales).astype(dtype), y.astype(dtype), scale=3.0, **extra, **form)

        return jax.value_and_grad(scalar)(scales)

    value, gradient = of_scales({"impl": impl, "chunk": 4}, ctx, jnp.bfloat16)
    exact, reference = of_scales({"impl": "shared_tile"}, Ctx(), jnp.float32)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    check(gradient, reference, 2e-2)  # its rows are rounded to bfloat16 on their way


def test_accuracy_shares_the_tile_of_the_loss():
    """One product makes the logits for both, two more the gradients; y is gathered once."""
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES)

    def both(x, y):
        return ctx.over_batch(info_nce)(x, y, scale=3.0), ctx.over_batch(in_batch_accuracy)(x, y)

    z = jax.ShapeDtypeStruct((1024, 64), jnp.float32, sharding=parallel.by_rows(ctx.mesh))
    text = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True)).lower(z, z).compile().as_text()
    assert len(re.findall(r" dot\(", text)) == 3
    assert len(re.findall(r"f32\[1024,64\]\S* all-gather\(", text)) == 1


@pytest.mark.parametrize("impl", ["shared_tile", "chunked", "ring"])
def test_accuracy(impl):
    ctx = Ctx(make_mesh("4x2"), parallel.BATCH_AXES)
    accuracy = jax.jit(lambda x, y, present: ctx.over_batch(in_batch_accuracy)(x, y, present, impl=impl, chunk=4))
    x, y = pairs(np.float32)
    for present in MASKS.values():
        scores = np.where(present[None], x @ y.T, -np.inf)[present]
        expected = (scores.argmax(1) == np.arange(B)[present]).mean() if present.any() else 0.0
        assert float(accuracy(x, y, present)) == pytest.approx(expected)
    same = np.asarray(unit(np.ones((B, D))))
    assert float(accuracy(same, same, MASKS["all"])) == 0.0, "ties are misses"


def choices(ctx, rows, dim, loss=info_nce, **how):
    with plan.listen() as plans:
        z = jax.ShapeDtypeStruct((rows, dim), jnp.float32)
        jax.eval_shape(lambda x, y: ctx.over_batch(loss)(x, y, scale=1.0, **how), z, z)
    return plans


def test_auto_takes_the_fastest_form_that_fits_the_budget():
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES)
    assert [p.impl for p in choices(ctx, 2048, 512)] == ["shared_tile"]
    assert [p.impl for p in choices(ctx, 65536, 512)] == ["chunked"]
    assert [p.impl for p in choices(ctx, 65536, 4096)] == ["ring"], "the gathered tower alone is more than the budget"
    assert [p.impl for p in choices(ctx, 2048, 512, budget_mib=1)] == ["ring"]
    ours = Ctx(ctx.mesh, ctx.batch_axes, loss={"impl": "auto", "budget_mib": 1e6, "chunk": 64})
    assert [p.impl for p in choices(ours, 65536, 512)] == ["shared_tile"], "the config reaches the loss"
    assert [p.impl for p in choices(Ctx(), 2048, 512, budget_mib=1)] == ["chunked"], "one device is no ring"
    assert "logits 8192 x 65536" in str(choices(ours, 65536, 512)[0])


def test_what_is_not_a_form_is_refused():
    with pytest.raises(ValueError, match="possible: auto, shared_tile"):
        info_nce(jnp.eye(2), jnp.eye(2), scale=1.0, impl="chunks")
    with pytest.raises(ValueError, match="must be positive"):
        info_nce(jnp.eye(2), jnp.eye(2), scale=1.0, chunk=0)


@pytest.mark.parametrize(
    # NT-Xent's ring keeps what passes by for its gradient, which the estimate leaves out.
    "name, impl",
    [(n, i) for n in LOSSES for i in plan.IMPLS if (n, i) != ("nt_xent", "ring")],
)
def test_the_estimate_is_near_what_the_compiler_takes(name, impl):
    """Within a third, at a size where tiles matter: it decides which form is taken, and it is told to the user."""
    loss, extra = LOSSES[name]
    rows, dim, chunk = 8192, 256, 512
    ctx = Ctx(make_mesh("8"), parallel.BATCH_AXES)
    z = jax.ShapeDtypeStruct((rows, dim), jnp.float32, sharding=parallel.by_rows(ctx.mesh))

    def scalar(x, y, scale):
        return ctx.over_batch(loss)(x, y, scale=scale, **extra, impl=impl, chunk=chunk)

    compiled = jax.jit(jax.grad(scalar, (0, 1, 2))).lower(z, z, jnp.float32(1)).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes / 2**20
    rows *= 2 if name == "nt_xent" else 1  # of views
    assert temp == pytest.approx(plan.estimate(impl, rows // 8, 8, dim, chunk), rel=1 / 3), temp
