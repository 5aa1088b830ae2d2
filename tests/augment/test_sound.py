"""Spectrograms against Kaldi's own code, and what is hidden in them."""

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest

from mmcl_jax.augment import ops

RNG = np.random.default_rng(0)


def kaldi(wave, rate, mels, window_ms=25.0, hop_ms=10.0):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = rate, 0
    options.frame_opts.window_type, options.frame_opts.snip_edges = "hanning", True
    options.frame_opts.frame_length_ms, options.frame_opts.frame_shift_ms = window_ms, hop_ms
    options.mel_opts.num_bins = mels
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(rate, wave.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)], 1)  # [mels, frames]


@pytest.mark.parametrize(("rate", "mels", "length"), [(16_000, 80, 32_000), (8000, 40, 1717), (16_000, 23, 400)])
def test_spectrograms_are_kaldis(rate, mels, length):
    tone = np.sin(2 * np.pi * 440 * np.arange(length) / rate)
    waves = np.stack([RNG.normal(0, 0.1, length), 0.5 * tone + RNG.normal(0, 0.001, length)]).astype(np.float32)
    ours = np.asarray(ops.log_mel(waves, rate, mels))
    expected = np.stack([kaldi(w, rate, mels) for w in waves])
    assert ours.shape == (*expected.shape, 1)
    np.testing.assert_allclose(ours[..., 0], expected, atol=2e-3)


def test_frames_are_cut_or_filled_and_silence_is_finite():
    waves = jnp.zeros((1, 32_000))
    filled, cut = (ops.log_mel(waves, frames=n)[0, :, :, 0] for n in (204, 100))
    assert filled.shape == (128, 204) and cut.shape == (128, 100)
    assert np.all(filled[:, 198:] == 0) and np.isfinite(filled).all() and filled[0, 0] < -10
    with pytest.raises(ValueError, match="window of 400"):
        ops.log_mel(waves[:, :399])


def test_spec_augment_hides_stretches_of_each_example_alone():
    keys = jax.random.split(jax.random.key(0), 200)
    hidden = np.asarray(ops.spec_augment(jnp.ones((200, 20, 50, 1)), 5, 30, keys=keys))[..., 0] == 0
    bands, frames = hidden.all(2), hidden.all(1)
    np.testing.assert_array_equal(hidden, bands[:, :, None] | frames[:, None])
    for lines, longest in ((bands, 5), (frames, 30)):
        count = lines.sum(1)
        assert count.max() == longest and count.min() == 0
        assert (np.abs(np.diff(lines.astype(int), axis=1)).sum(1) <= 2).all()  # in one piece
        assert lines.any(0).all()  # anywhere
    twice = np.asarray(ops.spec_augment(jnp.ones((200, 20, 50, 1)), 0, 3, 2, keys=keys))[..., 0] == 0
    assert twice.all(1).sum(1).max() == 6


def test_gain_is_within_its_decibels():
    keys = jax.random.split(jax.random.key(1), 500)
    factors = np.asarray(ops.gain(jnp.ones((500, 3)), 6.0, keys=keys))
    assert np.ptp(factors, axis=1).max() == 0
    assert 0.5 < factors.min() < 0.52 and 1.9 < factors.max() < 2.0
