"""Queues against a deque, twins against the formula: sizes that don't divide, wraps, absent rows, any devices."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import momentum, parallel
from mmcl_jax.types import Ctx, Stream
from tests.conftest import make_mesh


@pytest.mark.parametrize("mesh", ["1", "8"])
@pytest.mark.parametrize("size, batch", [(16, 8), (20, 8), (8, 8), (5, 8), (3, 16)])
def test_a_queue_is_a_deque(size, batch, mesh):
    mesh = make_mesh(mesh)
    rng = np.random.default_rng(0)
    queue, oracle = momentum.empty_queue(size, {"a": 3, "b": 2}), collections.deque(maxlen=size)
    written = 0

    @jax.jit
    def push(queue, rows, present):
        return momentum.push(queue, rows, present)

    for _ in range(7):
        rows = {
            "a": rng.normal(size=(batch, 3)).astype(np.float32),
            "b": rng.normal(size=(batch, 2)).astype(np.float32),
        }
        present = {"a": rng.random(batch) < 0.7, "b": np.ones(batch, bool)}
        rows["a"][~present["a"]] = np.nan
        queue = push(queue, *jax.device_put((rows, present), parallel.by_rows(mesh)))
        for i in range(batch):
            oracle.append((np.nan_to_num(rows["a"][i]), rows["b"][i], present["a"][i], written % size))
            written += 1
        assert int(queue.pointer) == written % size
        for a, b, has_a, slot in oracle:
            np.testing.assert_array_equal(queue.rows["a"][slot], a)
            np.testing.assert_array_equal(queue.rows["b"][slot], b)
            assert bool(queue.valid["a"][slot]) == has_a and queue.valid["b"][slot]
        assert queue.valid["b"].sum() == len(oracle), "slots that were never written are not valid"


def test_a_queue_of_noise_is_full():
    queue = momentum.noise_queue(50, {"image": 8}, jax.random.key(0))
    np.testing.assert_allclose(np.linalg.norm(queue.rows["image"], axis=1), 1, rtol=1e-5)
    assert queue.valid["image"].all() and len(np.unique(queue.rows["image"][:, 0])) == 50


def test_the_twin_follows_without_gradient():
    params = {"image": {"w": jnp.float32([1.0, 2.0])}, "log_scale": jnp.float32(3.0)}
    key = momentum.twin({"image": params["image"]}, {"batch_stats": {"image": {"mean": jnp.float32([5.0])}}})
    moved = momentum.follow(key, {"image": {"w": jnp.float32([2.0, 4.0])}, "log_scale": 0.0}, 0.9)
    np.testing.assert_allclose(moved["params"]["image"]["w"], [1.1, 2.2], rtol=1e-6)
    assert moved["batch_stats"]["image"]["mean"] == 5.0, "statistics are those of its own passes"

    def loss(params):
        return momentum.follow(key, params, 0.9)["params"]["image"]["w"].sum()

    assert (jax.grad(loss)(params)["image"]["w"] == 0).all()


def test_shuffled_rows_come_back():
    ctx = Ctx(train=True, rng=jax.random.key(3))
    stream = Stream(jnp.arange(24).reshape(12, 2), present=jnp.arange(12) % 3 > 0)
    other, back = momentum.shuffled(stream, ctx)
    assert not np.array_equal(other.data, stream.data)
    np.testing.assert_array_equal(other.data[back], stream.data)
    np.testing.assert_array_equal(other.present[back], stream.present)
