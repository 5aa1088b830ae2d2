"""Losses against a queue, compared with loops: masks, slots that are not valid, NaN in absent rows, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax.losses import queue_accuracy, queue_margin, queue_nce, queue_tag_nce, unit

B, K, D, T = 16, 12, 8, 6
SCALE, MARGIN, THRESHOLD = 5.0, 0.3, 1
VALID = {"all": np.ones(K, bool), "some": np.arange(K) % 4 != 2, "none": np.zeros(K, bool)}
PRESENT = {"all": np.ones(B, bool), "some": np.arange(B) % 3 != 1, "none": np.zeros(B, bool)}


def data():
    rng = np.random.default_rng(0)
    q, k, queue = (np.array(unit(rng.normal(size=(n, D)))) for n in (B, B, K))
    tags, queue_tags = ((rng.random((n, T)) < 0.5).astype(np.float32) for n in (B, K))
    return q, k, queue, tags, queue_tags


def loops(q, k, present, queue, valid, tags, queue_tags):
    """(nce, tag nce, margin) of numbers in float64, one at a time."""
    nce, tagged, margin = [], [], []
    for i in np.flatnonzero(present):
        own = float(q[i] @ k[i])
        others = {j: float(q[i] @ queue[j]) for j in np.flatnonzero(valid)}
        total = np.log(np.exp(SCALE * own) + sum(np.exp(SCALE * s) for s in others.values()))
        positives = [own] + [s for j, s in others.items() if tags[i] @ queue_tags[j] > THRESHOLD]
        nce.append(total - SCALE * own)
        tagged.append(np.mean([total - SCALE * s for s in positives]))
        margin.append(sum(max(0.0, s - own + MARGIN) for s in others.values()))
    return [np.mean(x) if x else 0.0 for x in (nce, tagged, margin)]


@pytest.mark.parametrize("which", PRESENT)
@pytest.mark.parametrize("slots", VALID)
def test_values_and_gradients(ctx, which, slots):
    q, k, queue, tags, queue_tags = data()
    present, valid = PRESENT[which], VALID[slots]
    doubles = [x.astype(np.float64) for x in (q, k)]
    expected = loops(*doubles, present, queue.astype(np.float64), valid, tags, queue_tags)
    q[~present] = k[~present] = tags[~present] = np.nan
    queue[~valid] = 7.0  # what is not valid may be anything

    def ours(q):
        return jnp.stack(
            [
                ctx.over_batch(queue_nce)(q, k, present, queue=queue, valid=valid, scale=SCALE),
                ctx.over_batch(queue_tag_nce)(
                    q,
                    k,
                    tags,
                    present,
                    queue=queue,
                    queue_tags=queue_tags,
                    valid=valid,
                    scale=SCALE,
                    threshold=THRESHOLD,
                ),
                ctx.over_batch(queue_margin)(q, k, present, queue=queue, valid=valid, margin=MARGIN),
            ]
        )

    values, grads = jax.jit(lambda q: (ours(q), jax.jacrev(ours)(q)))(q)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(grads)[:, ~present] == 0) and np.isfinite(grads).all()
    if not present.any():
        assert (np.asarray(values) == 0).all()
        return
    direction, h = np.random.default_rng(1).normal(size=q.shape), 1e-6
    ends = [
        loops(doubles[0] + s * h * direction, doubles[1], present, queue.astype(np.float64), valid, tags, queue_tags)
        for s in (1, -1)
    ]
    slopes = (np.array(ends[0]) - ends[1]) / (2 * h)
    along = (np.asarray(grads, np.float64) * direction).sum((1, 2))
    np.testing.assert_allclose(along, slopes, rtol=1e-4, atol=1e-6)


def test_order_of_rows_does_not_matter_and_bfloat16_has_float32_logits():
    q, k, queue, tags, queue_tags = data()
    order = np.random.default_rng(2).permutation(B)
    shared = dict(queue=queue, scale=SCALE)
    for loss, more in ((queue_nce, {}), (queue_tag_nce, dict(queue_tags=queue_tags, threshold=THRESHOLD))):
        rows = (q, k, tags) if more else (q, k)
        straight = loss(*rows, PRESENT["some"], **shared, **more)
        mixed = loss(*(r[order] for r in rows), PRESENT["some"][order], **shared, **more)
        np.testing.assert_allclose(mixed, straight, rtol=1e-6)
    coarse = [np.asarray(x, jnp.bfloat16) for x in (q, k, queue)]
    value = queue_nce(*coarse[:2], queue=coarse[2], scale=50.0)
    exact = queue_nce(*(x.astype(np.float32) for x in coarse[:2]), queue=coarse[2].astype(np.float32), scale=50.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_accuracy(ctx):
    e = np.eye(B, D, dtype=np.float32)[np.arange(B) % D]
    near = np.array(unit(e + 0.1))
    accuracy = jax.jit(lambda *a: ctx.over_batch(queue_accuracy)(*a, queue=e[:1], valid=np.ones(1, bool)))
    # The queue holds the query's own direction for every D-th row, which beats the key.
    assert float(accuracy(e, near)) == pytest.approx(1 - 1 / D)
    assert float(accuracy(e, e)) == pytest.approx(1 - 1 / D), "a tie is a miss"


def test_sharp_logits_do_not_overflow():
    e = np.eye(4, dtype=np.float32)
    assert float(queue_nce(e, -e, queue=e, scale=100.0)) == pytest.approx(200, rel=1e-5)
    assert float(queue_nce(e, e, queue=-e, scale=100.0)) == pytest.approx(0, abs=1e-6)
