"""The loss of sets of tokens: every form, on every mesh, with tokens and rows missing, is what loops compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import parallel
from mmcl_jax.bench.baselines import naive_tokenwise
from mmcl_jax.losses import info_nce, plan, similarities, tokenwise_accuracy, tokenwise_nce
from mmcl_jax.types import Ctx
from tests.conftest import make_mesh

SCALE = 10.0
B, N1, N2, D = 24, 4, 5, 8  # 3 rows a device: a chunk of 2 divides neither them nor, with what fills up, the columns
PRESENT = {
    "all": np.ones(B, bool),
    "30% absent": np.random.default_rng(5).permutation(B) >= 0.3 * B,
    "a device absent": np.arange(B) >= 3,
    "one": np.arange(B) == 17,
    "none": np.zeros(B, bool),
}
FORMS = [("shared_tile", 1024), ("chunked", 2), ("ring", 2)]
WITHOUT = 20, 11  # rows that are there, but have no real x, or no real y


def tokens(dtype):
    """x, y and their masks."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(B, 1, D))
    x, y = (common + rng.normal(size=(B, n, D)) for n in (N1, N2))
    x, y = ((v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(dtype) for v in (x, y))
    x_mask, y_mask = (np.arange(n) < rng.integers(1, n + 1, size=(B, 1)) for n in (N1, N2))
    x_mask[WITHOUT[0]], y_mask[WITHOUT[1]] = False, False
    return x, y, x_mask, y_mask


def best_for(x, y, x_mask, y_mask, top):
    """[b, n] bool: the tokens that can be found, from all products with those of the own pair."""
    scores = np.where(x_mask, (np.einsum("bpd,bqd->bpq", x, y) * y_mask[:, None]).sum(2), -np.inf)
    found = np.zeros(x_mask.shape, bool)
    np.put_along_axis(found, np.argsort(-scores, axis=1, kind="stable")[:, : top or None], True, axis=1)
    return found & x_mask


def loops(x, y, x_mask, y_mask, top=0):
    """s_x and s_y, pair by pair and token by token."""
    s_x, s_y = np.zeros((2, len(x), len(y)))
    x_found, y_found = best_for(x, y, x_mask, y_mask, top), best_for(y, x, y_mask, x_mask, top)
    for i in range(len(x)):
        for j in range(len(y)):
            if x_mask[i].any() and y_mask[j].any():
                s_x[i, j] = np.mean([max(a @ b for b in y[j][y_found[j]]) for a in x[i][x_mask[i]]])
                s_y[i, j] = np.mean([max(a @ b for a in x[i][x_found[i]]) for b in y[j][y_mask[j]]])
    return s_x, s_y


def plain(x, y, masks, present, scale):
    """The loss of one device as it is written in the paper: one array of all products, masked with infinity."""
    x_mask, y_mask, x_found, y_found = masks
    t = jnp.einsum("ipd,jqd->ijpq", x, y, precision="highest")

    def mean_of_best(t, looking, seen):  # [i, j, p, q], [i, 1, p], [1, j, q]
        possible = looking.any(2) & seen.any(2)
        best = jnp.where(seen[:, :, None] | ~possible[..., None, None], t, -jnp.inf).max(3)
        mean = jnp.where(looking, best, 0).sum(2) / jnp.maximum(looking.sum(2), 1)
        return jnp.where(possible, mean, 0)

    s_x = mean_of_best(t, x_mask[:, None], y_found[None])
    s_y = mean_of_best(t.swapaxes(2, 3), y_mask[None], x_found[:, None])
    loss = 0
    for logits in (scale * s_x, scale * s_y.T):
        lse = jax.nn.logsumexp(jnp.where(present[None], logits, -1e30), axis=1)
        loss = loss + jnp.where(present, lse - jnp.diag(logits), 0).sum() / jnp.maximum(present.sum(), 1)
    return loss / 2


@functools.cache
def reference(dtype):
    return jax.jit(jax.value_and_grad(plain, (0, 1, 4)))


def expected(x, y, x_mask, y_mask, present, top=0):
    masks = x_mask, y_mask, best_for(x, y, x_mask, y_mask, top), best_for(y, x, y_mask, x_mask, top)
    return reference(x.dtype)(x, y, masks, present, jnp.asarray(SCALE, x.dtype))


def on(mesh):
    return Ctx() if mesh == "none" else Ctx(make_mesh(mesh), parallel.BATCH_AXES)


def value_and_gradients(ctx, loss=tokenwise_nce, **how):
    """A compiled function of x, y, their masks and present: the value, and gradients by x, y and the scale."""

    def scalar(x, y, scale, *masks):
        return ctx.over_batch(loss)(x, y, *masks, scale=scale, **how)

    compiled = jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))
    return lambda x, y, *masks: compiled(x, y, jnp.asarray(SCALE, jnp.promote_types(x.dtype, np.float32)), *masks)


def check(ours, reference, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 0.1), (a, b)


@pytest.mark.parametrize("top", [0, 2])
def test_similarities_are_those_of_loops(top):
    """Of ours, and of what the gradients are compared with."""
    x, y, x_mask, y_mask = tokens(np.float64)
    s_x, s_y = loops(x, y, x_mask, y_mask, top)
    present = PRESENT["30% absent"]
    there = np.ix_(present, present)
    value = 0
    for logits in (SCALE * s_x[there], SCALE * s_y[there].T):
        value += (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean() / 2
    with jax.enable_x64(True):
        np.testing.assert_allclose(expected(x, y, x_mask, y_mask, present, top)[0], value, rtol=1e-12)
        np.testing.assert_allclose(
            value_and_gradients(Ctx(), top=top)(x, y, x_mask, y_mask, present)[0], value, rtol=1e-12
        )
        if not top:
            for ours, theirs in zip(similarities(x, y, x_mask, y_mask), (s_x, s_y), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
            some = similarities(x[:2], y[:3], None, y_mask[:3])
            assert [s.shape for s in some] == [(2, 3)] * 2, "not only of as many x as y"


@pytest.mark.parametrize(
    "mesh, impl, chunk, top",
    [("none", *form, 0) for form in FORMS[:2]]  # one device is no ring
    + [(mesh, *form, 0) for mesh in ("8", "4x2") for form in FORMS]
    + [("8", "chunked", 1024, 0), ("8", "ring", 1024, 0)]
    + [("8", *form, 2) for form in FORMS],
)
def test_float32(mesh, impl, chunk, top):
    ours = value_and_gradients(on(mesh), impl=impl, chunk=chunk, top=top)
    x, y, x_mask, y_mask = tokens(np.float32)
    for name, present in PRESENT.items():
        # Whatever an encoder makes of a placeholder, and of padding.
        dirty = np.where((x_mask & present[:, None])[..., None], x, np.nan)
        value, (dx, dy, d_scale) = ours(dirty, np.where(y_mask[..., None], y, np.nan), x_mask, y_mask, present)
        check((value, (dx, dy, d_scale)), expected(x, y, x_mask, y_mask, present, top), 1e-5)
        assert np.all(np.asarray(dx)[~(x_mask & present[:, None])] == 0), name
        assert np.all(np.asarray(dy)[~(y_mask & present[:, None])] == 0), name
        if not present.any():
            assert value == 0 and d_scale == 0


@pytest.mark.parametrize("top", [0, 2])
@pytest.mark.parametrize("impl, chunk", FORMS)
def test_float64(impl, chunk, top):
    """To twelve digits: what is different is the order of sums and nothing else."""
    with jax.enable_x64(True):
        rows = (*tokens(np.float64), PRESENT["30% absent"])
        found = value_and_gradients(on("8"), impl=impl, chunk=chunk, top=top)(*rows)
        assert found[0].dtype == np.float64
        check(found, expected(*rows, top), 1e-12)


def test_the_usual_scheme_agrees():
    """It is what ours is measured against, so it must solve the same problem."""
    with jax.enable_x64(True):
        rows = (*tokens(np.float64), PRESENT["30% absent"])
        check(value_and_gradients(on("8"), naive_tokenwise)(*rows), expected(*rows), 1e-12)


@pytest.mark.parametrize("impl, chunk", FORMS)
def test_bfloat16_and_no_masks(impl, chunk):
    """Logits are float32 in every form; without masks all tokens are real, and rows that don't divide are filled up."""
    x, y = (jnp.asarray(v[: B - 3], jnp.bfloat16) for v in tokens(np.float32)[:2])
    value, gradients = value_and_gradients(on("8"), impl=impl, chunk=chunk)(x, y)
    real = [np.ones(v.shape[:2], bool) for v in (x, y)]
    exact = expected(np.float32(x), np.float32(y), *real, np.ones(len(x), bool))
    assert value.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)
    check(gradients, exact[1], 2e-2)  # they are rounded to bfloat16


@pytest.mark.parametrize("impl, chunk", FORMS)
def test_one_token_each_is_info_nce(impl, chunk):
    x, y = (v[:, 0] for v in tokens(np.float32)[:2])
    present = PRESENT["30% absent"]
    usual = value_and_gradients(Ctx(), info_nce)(x, y, present)
    value, (dx, dy, d_scale) = value_and_gradients(on("8"), impl=impl, chunk=chunk)(
        x[:, None], y[:, None], None, None, present
    )
    check((value, (dx[:, 0], dy[:, 0], d_scale)), usual, 1e-5)


def test_padding_is_not_preferred_to_real_tokens():
    """Not even where all real ones point away from their pair; as many as all are all."""
    x, y, _, y_mask = tokens(np.float32)
    x[:, 0] = -y[:, 0]
    alone = np.arange(N1) < np.ones((B, 1))
    present = PRESENT["all"]
    rows = (x, y, alone, y_mask, present)
    check(value_and_gradients(Ctx(), top=1)(*rows), expected(*rows, top=1), 1e-5)
    check(value_and_gradients(Ctx(), top=100)(*rows), value_and_gradients(Ctx())(*rows), 1e-5)


@pytest.mark.parametrize("impl, chunk", FORMS)
def test_accuracy(impl, chunk):
    x, y, x_mask, y_mask = tokens(np.float32)
    accuracy = jax.jit(lambda *rows: on("4x2").over_batch(tokenwise_accuracy)(*rows, impl=impl, chunk=chunk))
    for present in PRESENT.values():
        scores = np.where(present[None], loops(x, y, x_mask, y_mask)[0], -np.inf)
        others = np.where(np.eye(B, dtype=bool), -np.inf, scores).max(1)
        hits = (np.diag(scores) > others)[present]  # a row without tokens ties with all, which is a miss
        if present.sum() != 1:
            assert float(accuracy(x, y, x_mask, y_mask, present)) == pytest.approx(hits.mean() if len(hits) else 0.0)
    same = np.ones((B, 2, D), np.float32) / np.sqrt(D)
    assert float(accuracy(same, same, None, None, PRESENT["all"])) == 0.0, "ties are misses"


def compiled_and_plan(impl, rows, chunk, **how):
    """Temporary MiB a device of the loss with its gradients on 8 devices, and what it says of itself."""
    ctx, n1, n2, dim = on("8"), 49, 32, 64
    x, y = (jax.ShapeDtypeStruct((rows, n, dim), jnp.float32, sharding=parallel.by_rows(ctx.mesh)) for n in (n1, n2))

    def scalar(x, y, scale):
        return ctx.over_batch(tokenwise_nce)(x, y, scale=scale, impl=impl, chunk=chunk, **how)

    with plan.listen() as plans:
        lowered = jax.jit(jax.grad(scalar, (0, 1, 2))).lower(x, y, jnp.float32(1))
    return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20, plans[0]


@pytest.mark.parametrize("impl", plan.IMPLS)
@pytest.mark.parametrize("top", [0, 8])
def test_the_estimate_is_near_what_the_compiler_takes(impl, top):
    """Within a third, at a size where tiles matter."""
    temp, said = compiled_and_plan(impl, 1024, 64, top=top)
    assert said.chunk == 64
    assert temp == pytest.approx(said.temp_mib, rel=1 / 3)


def test_chunks_never_hold_all_products_and_keep_to_the_budget():
    whole = 128 * 1024 * 49 * 32 * 4 / 2**20  # of a device, once
    for impl in ("chunked", "ring"):
        temp, said = compiled_and_plan(impl, 1024, 1024, budget_mib=100)
        assert 1 < said.chunk < 128 and said.temp_mib <= 100, "fewer columns than it may take"
        assert temp < 133 < 0.2 * whole


def test_auto_counts_the_tokens():
    def chosen(rows, n1, n2, dim=256, **how):
        x, y = (jax.ShapeDtypeStruct((rows, n, dim), jnp.float32) for n in (n1, n2))
        with plan.listen() as plans:
            jax.eval_shape(lambda x, y: on("8").over_batch(tokenwise_nce)(x, y, scale=1.0, **how), x, y)
        return plans[0]

    assert chosen(128, 49, 32).impl == "shared_tile"
    assert chosen(1024, 1, 1).impl == "shared_tile" and chosen(1024, 49, 32).impl == "chunked"
    assert chosen(16384, 49, 77).impl == "ring", "the gathered tokens alone are more than the budget"
    assert chosen(16384, 49, 77, budget_mib=1).chunk == 1
    assert "tokenwise_nce of 49 x 32 tokens: chunked by" in str(chosen(1024, 49, 32))
    assert chosen(1024, 49, 32, top=4).chunk > chosen(1024, 49, 32).chunk


def test_what_cannot_be_selected_is_refused():
    with pytest.raises(ValueError, match="top=-1"):
        tokenwise_nce(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)), scale=1.0, top=-1)
