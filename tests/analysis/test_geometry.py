"""Geometry of embeddings where the answer is known, and what is refused."""

import numpy as np
import pytest

from mmcl_jax.analysis import geometry, modality_gap

RNG = np.random.default_rng(0)
SPREAD = RNG.normal(size=(3000, 16))


def test_vectors_all_over_the_sphere_and_in_a_point():
    point = np.ones((50, 4)) + 1e-9 * RNG.normal(size=(50, 4))
    assert abs(geometry.cone(SPREAD)["cosine"]) < 0.01 and geometry.cone(SPREAD)["min_cosine"] < -0.7
    assert geometry.cone(point)["cosine"] == pytest.approx(1) == geometry.cone(point)["mean_norm"]
    assert geometry.uniformity(SPREAD) < -3 and geometry.uniformity(point) == pytest.approx(0, abs=1e-6)
    spread, collapsed = geometry.collapse(SPREAD), geometry.collapse(point)
    assert spread["std"] == pytest.approx(1, abs=0.02) and spread["rank"] > 15.9 and spread["dead"] == 0
    assert collapsed["std"] < 1e-6 and collapsed["dead"] == 1


def test_blocks_of_rows_are_all_rows(monkeypatch):
    whole = geometry.cone(SPREAD), geometry.uniformity(SPREAD)
    monkeypatch.setattr(geometry, "ROWS", 7)
    np.testing.assert_allclose([*geometry.cone(SPREAD[:100]).values()], direct(SPREAD[:100]), rtol=1e-12)
    monkeypatch.setattr(geometry, "ROWS", 1000)
    assert geometry.cone(SPREAD) == pytest.approx(whole[0]) and geometry.uniformity(SPREAD) == pytest.approx(whole[1])


def direct(x):
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (z @ z.T)[~np.eye(len(z), dtype=bool)]
    return cosines.mean(), cosines.min(), np.linalg.norm(z.mean(0))


def test_effective_rank_counts_directions_of_the_same_size():
    for k in (1, 3, 8):
        x = np.linalg.qr(RNG.normal(size=(40, 8)))[0][:, :k] @ np.linalg.qr(RNG.normal(size=(8, 8)))[0][:k]
        assert geometry.effective_rank(5 * x) == pytest.approx(k, rel=1e-4)


def test_kernel_alignment_does_not_see_rotations_and_scale():
    turn = np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    assert geometry.cka(SPREAD, 3 * SPREAD @ turn + 1) == pytest.approx(1)
    assert geometry.cka(SPREAD, RNG.normal(size=(3000, 5))) < 0.01
    assert geometry.cka(SPREAD, SPREAD[:, :8]) == pytest.approx(0.5**0.5, abs=0.02), "half of the directions"


def test_modalities_that_lie_apart_can_be_told_apart():
    apart = SPREAD[:200] + 5, SPREAD[200:400] - 5
    assert geometry.separability(*apart) == 1
    assert abs(geometry.separability(SPREAD[:1000], SPREAD[1000:]) - 0.5) < 0.06


def test_untrained_networks_make_cones_and_straight_ones_do_not():
    weights, biases = geometry.random_network(np.random.default_rng(1), width=128, depth=12)
    x = RNG.normal(size=(200, 128))
    relu, linear = (geometry.cones_by_depth(x, weights, biases, a) for a in ("relu", "linear"))
    assert relu[-1] > 0.8 and relu[1] > relu[0] + 0.2
    assert max(linear) < 0.5 < min(relu[3:])
    with pytest.raises(ValueError, match="activation='rellu'; did you mean 'relu'"):
        geometry.cones_by_depth(x, weights, biases, "rellu")


def test_a_rotation_closes_what_a_rotation_opened():
    x = RNG.normal(size=(100, 6)) + 1
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    y = x @ turn
    r = modality_gap.aligned(x, y)
    np.testing.assert_allclose(r @ r.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(y @ r, x, atol=1e-9)
    assert modality_gap.gap(x, y @ r)["size"] < 1e-9 < modality_gap.gap(x, y)["size"]


def test_shifts_to_the_middle_and_beyond():
    x, y = RNG.normal(size=(200, 8)) + [3, *[0] * 7], RNG.normal(size=(200, 8)) - [3, *[0] * 7]
    curve = modality_gap.shift_curve(x, y, np.linspace(-1, 2, 13))
    middle = int(np.abs(curve["shift"] - 0.5).argmin())
    assert curve["size"].argmin() in (middle - 1, middle, middle + 1)
    assert curve["signed"][0] > curve["signed"][4] > 0 > curve["signed"][-1]
    assert curve["loss"].shape == (13, 5)
    alone, _ = modality_gap.shifted(x, y, 1.0, sides="x")
    assert modality_gap.signed_size(alone, y, modality_gap.vector(x, y)) < modality_gap.gap(x, y)["size"]


def test_embeddings_from_files_are_paired_by_id(tmp_path):
    x, y = RNG.normal(size=(5, 3)), RNG.normal(size=(4, 3))
    np.savez(tmp_path / "image.npz", id=np.array(["a", "b", "c", "c", "d"]), embedding=x)
    np.savez(tmp_path / "text.npz", id=np.array(["d", "c", "e", "a"]), embedding=y)
    found = modality_gap.read_pairs(tmp_path / "image.npz", tmp_path / "text.npz")
    for rows, expected in zip(found, (x[[0, 2, 4]], y[[3, 1, 0]]), strict=True):
        np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    np.save(tmp_path / "x.npy", x[:4])
    np.save(tmp_path / "y.npy", y)
    again = modality_gap.gap(*modality_gap.read_pairs(tmp_path / "x.npy", tmp_path / "y.npy"))
    assert again == pytest.approx(modality_gap.gap(x[:4], y))
    np.savez(tmp_path / "other.npz", vectors=x)
    with pytest.raises(ValueError, match="needed are the arrays id and embedding"):
        modality_gap.read_pairs(tmp_path / "image.npz", tmp_path / "other.npz")
    np.savez(tmp_path / "none.npz", id=np.array(["z"]), embedding=x[:1])
    with pytest.raises(ValueError, match="no id in common; the first are 'a' and 'z'"):
        modality_gap.read_pairs(tmp_path / "image.npz", tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modality_gap.gap(SPREAD, SPREAD[1:]), "row i of x and of y are a pair"),
        (lambda: modality_gap.gap(SPREAD[:0], SPREAD[:0]), "0 rows; at least 1"),
        (lambda: geometry.cone(SPREAD[:1]), "1 rows; at least 2"),
        (lambda: geometry.cone(np.where(np.arange(3000)[:, None] == 5, np.nan, SPREAD)), "1 of 3000 rows"),
        (lambda: geometry.cone(SPREAD[0]), r"embeddings are \[N, D\]; got shape"),
        (lambda: geometry.cka(SPREAD, SPREAD[1:]), "are the same examples; there are 3000 and 2999"),
        (lambda: modality_gap.shifted(SPREAD, SPREAD, 1, along="gab"), "along='gab'; did you mean 'gap'"),
        (lambda: modality_gap.shifted(SPREAD, SPREAD, 1, sides="y"), "sides='y'"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_cones_of_networks_that_differ_in_their_seed():
    x = RNG.normal(size=(60, 32))
    found = []
    for seed in range(3):
        z, (weights, biases) = x, geometry.random_network(np.random.default_rng(seed), width=32, depth=6)
        for w, b in zip(weights, biases, strict=True):
            z = np.maximum(z @ w.T + b, 0)
        found.append(z)
    told = geometry.cones_apart(found)
    every = [a @ b for i, p in enumerate(found) for j, q in enumerate(found) if i < j
             for a in geometry.unit(p) for b in geometry.unit(q)]  # fmt: skip
    assert told["across"] == pytest.approx(np.mean(every)) and told["within"] > told["across"] + 0.1
    assert told["least_gap"] == pytest.approx(min(modality_gap.gap(found[i], found[j])["size"]
                                                  for i, j in ((0, 1), (0, 2), (1, 2))))  # fmt: skip
    assert geometry.cones_apart([x, x])["least_gap"] == 0
    with pytest.raises(ValueError, match="two are compared"):
        geometry.cones_apart([x])
