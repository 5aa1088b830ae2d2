"""The modality gap, shifts, cones and the sphere, against the official code and independent computations."""

import re

import jax
import numpy as np
import pytest

from mmcl_jax.analysis import geometry, modality_gap
from mmcl_jax.losses import easy_nce, info_nce, nt_xent, uniformity, unit
from tests.golden.reference import load

G = load("modality_gap")
X, Y = G["image_raw"], G["text_raw"]
ORDER = [f"{which}/R@{k}" for which in ("x2y", "y2x") for k in (1, 5, 10)]


def test_gap_and_cones():
    np.testing.assert_allclose(modality_gap.vector(X, Y), G["gap_vector"], atol=1e-6)
    found = modality_gap.gap(X, Y)
    np.testing.assert_allclose(found["size"], G["gap_norm"], rtol=1e-6)
    np.testing.assert_allclose(found["paired"], G["paired_mean_cosine"], rtol=1e-6)
    np.testing.assert_allclose(found["unpaired"], G["unpaired_cross_modal_mean_cosine"], rtol=1e-5)
    for name, rows in (("image", X), ("text", Y)):
        cone = geometry.cone(rows)
        np.testing.assert_allclose(cone["cosine"], G[f"cone_{name}_mean_cosine_offdiag"], rtol=1e-6)
        np.testing.assert_allclose(cone["min_cosine"], G[f"cone_{name}_min_cosine"], rtol=1e-5)
        np.testing.assert_allclose(cone["mean_norm"], G[f"{name}_mean_norm"], rtol=1e-6)


@pytest.mark.parametrize(("grid", "along"), [("full_gap_vector", "gap"), ("unit_direction_half_delta", "unit")])
def test_shifts(grid, along):
    at, scales = G[f"{grid}_grid"], G["logit_scales"]
    found = modality_gap.shift_curve(X, Y, at, scales, along)
    np.testing.assert_allclose(found["loss"], G[f"{grid}_loss_full_batch"], rtol=2e-6)
    np.testing.assert_allclose(found["size"], G[f"{grid}_gap_distance"], rtol=1e-6)
    np.testing.assert_allclose(found["signed"], G[f"{grid}_signed_gap_distance"], rtol=1e-6)
    recalls = np.stack([found[name] for name in ORDER], 1)
    np.testing.assert_allclose(recalls, G[f"{grid}_recall_textR1_5_10_imageR1_5_10"], atol=1e-9)
    notebook = G[f"{grid}_loss_official_notebook_image_to_text_only_batches_of_50"]
    for by, losses in zip(at, notebook, strict=True):
        rows = modality_gap.shifted(X, Y, by, along)
        ours = [modality_gap.contrastive_loss(*rows, s, batch=50, directions=("x2y",)) for s in scales]
        np.testing.assert_allclose(ours, losses, rtol=2e-6)


def test_images_alone_are_shifted():
    found = modality_gap.shift_curve(X, Y, G["image_only_unit_shift_grid"], (1.0,), "unit", sides="x")
    np.testing.assert_allclose(found["signed"], G["image_only_unit_shift_signed_gap"], rtol=1e-6)


def test_zero_shot_along_the_gap():
    rows = G["zeroshot_image_raw"], G["zeroshot_class_text_raw"], G["zeroshot_labels"]
    np.testing.assert_allclose(modality_gap.zero_shot_curve(*rows, G["zeroshot_delta_grid"]), G["zeroshot_top1"])


def first_pairs():
    """How many of the pairs the ablations' losses are of."""
    return next(int(found[1]) for found in map(re.compile(r"ablation_first(\d+)_").match, G) if found)


def test_losses_of_the_ablations(ctx):
    n = first_pairs()
    scale = float(next(re.search(r"_scale(\d+)$", k)[1] for k in G if k.startswith("ablation_")))
    expected = {
        re.sub(r"ablation_first\d+_|_loss_scale\d+", "", k): v for k, v in G.items() if k.startswith("ablation_")
    }
    found = {
        "ce": jax.jit(lambda x, y: ctx.over_batch(info_nce)(unit(x), unit(y), scale=scale))(X[:n], Y[:n]),
        "dual_ce": jax.jit(lambda x, y: ctx.over_batch(nt_xent)(unit(x), unit(y), scale=scale))(X[:n], Y[:n]),
        "remove_hard_ce": jax.jit(lambda x, y: ctx.over_batch(easy_nce)(unit(x), unit(y), scale=scale))(X[:n], Y[:n]),
    }
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, err_msg=name)
    value = jax.jit(lambda x: ctx.over_batch(uniformity)(unit(x)))(X[:n])
    np.testing.assert_allclose(value, G["uniformity_t2_image"], rtol=1e-6)


def test_alignment_and_uniformity():
    n = first_pairs()
    np.testing.assert_allclose(geometry.alignment(X[:n], Y[:n]), G["alignment_alpha2"], rtol=1e-6)
    np.testing.assert_allclose(geometry.uniformity(X[:n]), G["uniformity_t2_image"], rtol=1e-6)


def test_sphere():
    x, y = modality_gap.sphere(0.5)
    np.testing.assert_allclose(x, G["sphere_points_image_z0.5"], atol=1e-6)
    np.testing.assert_allclose(y, G["sphere_points_text_z0.5"], atol=1e-6)
    right, swapped = (
        np.array([[modality_gap.contrastive_loss(*modality_gap.sphere(z, which), scale) for z in G["sphere_z_grid"]]
                  for scale in G["sphere_logit_scales"]])
        for which in (False, True)
    )  # fmt: skip
    golden = G["sphere_loss_swap_scale_z"]
    ours = right, (right + swapped) / 2  # theirs has one of the two mislabelled pairs
    for found, expected in zip(ours, golden, strict=True):
        tolerance = 4e-7 + 3e-8 * G["sphere_logit_scales"][:, None]  # theirs has float32 logits
        assert (np.abs(found - expected) <= tolerance).all()


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_cones_of_untrained_networks(activation):
    weights, biases = G["cone_mlp_weights_out_in"], G["cone_mlp_biases"]
    found = geometry.cones_by_depth(G["cone_mlp_input"], weights, biases, activation)
    np.testing.assert_allclose(found, G[f"cone_mlp_{activation}_mean_cosine_per_depth"], atol=1e-6)
