"""What the pictures of the gap show is what was computed."""

import json

import numpy as np
import pytest

from mmcl_jax.analysis import gap_figures, modality_gap

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)) + 1, RNG.normal(size=(40, 6)) - 1


def test_a_map_has_a_colour_for_each_modality_and_lines_for_pairs():
    (ax,) = gap_figures.map_of_modalities({"image": X, "text": Y}, pairs=7).axes
    assert [len(c.get_offsets()) for c in ax.collections] == [40, 40] and len(ax.lines) == 7
    image, text = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(ax.lines[2].get_xydata(), [image[2], text[2]])
    assert image.mean(0)[0] * text.mean(0)[0] < 0, "apart in the first direction"
    with pytest.raises(ValueError, match="row i of each modality is one example"):
        gap_figures.map_of_modalities({"image": X, "text": Y[1:]}, pairs=7)
    assert not gap_figures.map_of_modalities({"image": X, "text": Y[1:]}).axes[0].lines


def test_the_landscape_marks_where_we_are_and_the_least_loss():
    curve = modality_gap.shift_curve(X, Y, np.linspace(-0.5, 1.5, 9), (1.0, 20.0))
    left, right = gap_figures.curve_of_shift(curve, (1.0, 20.0)).axes
    least = [line.get_xydata()[0] for line in left.lines if len(line.get_xydata()) == 1]
    np.testing.assert_allclose(least, [(curve["signed"][i], curve["loss"][i, s])
                                       for s, i in enumerate(curve["loss"].argmin(0))])  # fmt: skip
    assert left.lines[-1].get_xdata()[0] == pytest.approx(modality_gap.gap(X, Y)["size"])
    assert len(right.lines) == 5


def test_the_gap_over_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "gap/image_text/size": 0.8}, {"step": 4, "gap/image_text/size": 0.6}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (ax,) = gap_figures.curves_of_training({"clip": path}).axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[2, 0.8], [4, 0.6]])
    with pytest.raises(ValueError, match="has no gap/audio_text/size"):
        gap_figures.curves_of_training({"clip": path}, pair="audio_text")
