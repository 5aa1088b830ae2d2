"""ResNets and batch normalisation: against numpy, published numbers of parameters, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_jax import parallel
from mmcl_jax.encoders import resnet
from mmcl_jax.encoders.batch_norm import BatchNorm
from mmcl_jax.optim import count
from mmcl_jax.types import Stream
from tests.conftest import make_mesh

RNG = np.random.default_rng(0)


def numpy_norm(x, present, groups, eps=1e-5):
    """Each group by its own mean and variance, in float64; (result, mean of the means, mean of unbiased variances)."""
    out, means, variances = np.zeros(x.shape), [], []
    for rows in np.split(np.arange(len(x)), groups):
        there = x[rows][present[rows]].reshape(-1, x.shape[-1]).astype(np.float64)
        if len(there):
            out[rows] = (x[rows] - there.mean(0)) / np.sqrt(there.var(0) + eps)
            means.append(there.mean(0))
            variances.append(there.var(0, ddof=1))
    return out, np.mean(means, 0), np.mean(variances, 0)


@pytest.mark.parametrize("mesh", ["1", "8"])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("absent", [False, True])
def test_batch_norm(groups, mesh, absent):
    mesh = make_mesh(mesh)
    x = RNG.normal(2.0, 3.0, (16, 3, 5)).astype(np.float32)
    present = RNG.random(16) < 0.7 if absent else np.ones(16, bool)
    if absent:
        present[:4] = [True, True, False, False] if groups == 8 else [False] * 4  # at 4 groups one has nothing
    module = BatchNorm(groups)
    variables = module.init(jax.random.key(0), x, train=False)
    dirty = np.where(present[:, None, None], x, np.nan if absent else x)

    @jax.jit
    def apply(x, present):
        return module.apply(variables, x, train=True, present=present if absent else None, mutable=["batch_stats"])

    out, new = apply(*jax.device_put((dirty, present), parallel.by_rows(mesh)))
    expected, mean, var = numpy_norm(x, present, groups)
    np.testing.assert_allclose(np.asarray(out)[present], expected[present], atol=2e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-4)


def test_batch_norm_gives_running_statistics_in_evaluation():
    x = RNG.normal(size=(4, 5)).astype(np.float32)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    stats = {"mean": jnp.arange(5.0), "var": jnp.full(5, 4.0)}
    out = module.apply(variables | {"batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(out, (x - np.arange(5)) / np.sqrt(4 + 1e-5), rtol=1e-5, atol=1e-6)


def test_a_batch_of_nothing_leaves_running_statistics_alone():
    x, module = np.ones((4, 3), np.float32), BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    variables |= {"batch_stats": {"mean": jnp.full(3, 5.0), "var": jnp.full(3, 2.0)}}
    _, new = module.apply(variables, x, train=True, present=np.zeros(4, bool), mutable=["batch_stats"])
    assert (new["batch_stats"]["mean"] == 5).all() and (new["batch_stats"]["var"] == 2).all()


def test_gradients_of_batch_norm_pass_absent_rows():
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    present = np.array([True] * 5 + [False] * 3)
    module = BatchNorm(2)
    variables = module.init(jax.random.key(0), x, train=False)

    def loss(x):
        out, _ = module.apply(variables, x, train=True, present=present, mutable=["batch_stats"])
        return (jnp.where(present[:, None], out, 0) ** 3).sum()

    gradient = np.asarray(jax.grad(loss)(np.where(present[:, None], x, np.nan)))
    assert np.isfinite(gradient).all() and np.abs(gradient[present]).max() > 0
    np.testing.assert_array_equal(gradient[~present], 0)


@pytest.mark.parametrize("groups", [3, 8, 0])
def test_groups_that_do_not_fit_are_refused(groups):
    module = BatchNorm(groups)
    variables = BatchNorm(1).init(jax.random.key(0), np.ones((8, 2)), train=False)
    with pytest.raises(ValueError, match=f"bn_groups={groups} of 8 rows.*divisor"):
        module.apply(variables, np.ones((8, 2), np.float32), train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    # torchvision's, without the classifier
    "size, parameters",
    [("18", 11_176_512), ("34", 21_284_672), ("50", 23_508_032), ("101", 42_500_160)],
)
def test_parameters_are_as_many_as_published(size, parameters):
    module = resnet.make(size)
    shapes = jax.eval_shape(module.init, jax.random.key(0), Stream(jnp.zeros((1, 224, 224, 3))))
    assert count(shapes["params"]) == parameters
    encoded = jax.eval_shape(lambda v: module.apply(v, Stream(jnp.zeros((2, 224, 224, 3)))), shapes)
    assert encoded.pooled.shape == (2, 512 if size in ("18", "34") else 2048)
    assert encoded.tokens.shape[1] == 49


def numpy_conv(x, kernel, stride):
    """[B, H, W, C] * [k, k, C, D], zero padding of (k - 1) / 2, as PyTorch has it."""
    k = kernel.shape[0]
    pad = (k - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]  # [B, h, w, C, k, k]
    return np.einsum("bhwcij,ijcd->bhwd", windows, kernel)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_block_is_that_of_version_one_and_a_half(bottleneck):
    """With running statistics of 0 and 1, norms do nothing; the stride is in the 3 x 3 convolution."""
    x = RNG.normal(size=(2, 7, 8, 6)).astype(np.float32)
    block = resnet.Block(5, 2, bottleneck, 1, False, "float32")
    variables = block.init(jax.random.key(1), x, train=False, present=None)
    ours = block.apply(variables, x, train=False, present=None)
    w = {k: np.asarray(v["kernel"], np.float64) for k, v in variables["params"].items() if "kernel" in v}
    norm = 1 / np.sqrt(1 + 1e-5)
    y = x.astype(np.float64)
    strides = (1, 2, 1) if bottleneck else (2, 1)
    for i, stride in enumerate(strides, 1):
        y = numpy_conv(y, w[f"conv{i}"], stride) * norm
        y = y if i == len(strides) else np.maximum(y, 0)
    y = np.maximum(y + numpy_conv(x.astype(np.float64), w["project"], 2) * norm, 0)
    np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-5)


def test_stems():
    images = Stream(jnp.asarray(RNG.normal(size=(2, 32, 32, 3)), jnp.float32))
    small = resnet.make("mu", width=4, stem="small")
    variables = small.init(jax.random.key(0), images)
    assert small.apply(variables, images).tokens.shape == (2, 256, 8)  # 16 x 16 after one stride
    large = resnet.make("mu", width=4)
    assert large.apply(large.init(jax.random.key(0), images), images).tokens.shape == (2, 16, 8)
    with pytest.raises(ValueError, match="stem='tiny'; possible: imagenet, small"):
        resnet.make("18", stem="tiny")


def test_zero_init_starts_blocks_as_the_identity():
    x = np.abs(RNG.normal(size=(2, 4, 4, 8))).astype(np.float32)
    block = resnet.Block(8, 1, False, 1, True, "float32")
    variables = block.init(jax.random.key(0), x, train=False, present=None)
    np.testing.assert_allclose(block.apply(variables, x, train=False, present=None), x)
