"""Log-mel spectrograms as Kaldi makes them, and so torchaudio's `compliance.kaldi.fbank` and ImageBind."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_jax.types import Array

PREEMPHASIS, LOWEST = 0.97, 20.0  # Kaldi's defaults; Hz
FLOOR = float(np.finfo(np.float32).eps)  # of energies


def log_mel(waves: Array, rate: int, mels: int, window_ms: float, hop_ms: float) -> Array:
    """Logarithms of the energies in `mels` bands; windows that don't fit whole are left out.

    Of each window its mean is taken off, it is preemphasised (x_t - .97 x_{t-1}), weighted by a Hann window and
    filled up with zeros to a power of two; triangular bands are evenly spaced in mel, 1127 ln(1 + f / 700), from
    20 Hz to half the rate.

    Args:
        waves: [B, T] float in [-1, 1].
        rate: Hz.
        mels: number of bands.
        window_ms: length of a window.
        hop_ms: from one window to the next.

    Returns:
        [B, mels, frames] float32, frames = 1 + (T - window) // hop.

    Raises:
        ValueError: if T is shorter than a window.
    """
    window, hop = int(rate * window_ms / 1000), int(rate * hop_ms / 1000)
    frames = 1 + (waves.shape[1] - window) // hop
    if waves.ndim != 2 or frames < 1:
        raise ValueError(
            f"log_mel takes sounds [B, T] with T at least a window of {window} samples; got {waves.shape}."
        )
    at = np.arange(frames)[:, None] * hop + np.arange(window)
    x = waves.astype(jnp.float32)[:, at]  # [B, frames, window]
    x = x - x.mean(-1, keepdims=True)
    x = x - PREEMPHASIS * jnp.concatenate([x[..., :1], x[..., :-1]], -1)
    size = 1 << (window - 1).bit_length()
    spectrum = jnp.fft.rfft(x * np.hanning(window).astype(np.float32), size)  # [B, frames, size / 2 + 1]
    energy = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    bands = jnp.einsum("bfk,mk->bmf", energy[..., :-1], filters(rate, size, mels), precision="highest")
    return jnp.log(jnp.maximum(bands, FLOOR))


@functools.lru_cache
def filters(rate: int, size: int, mels: int) -> np.ndarray:
    """Weights of the frequencies of a Fourier transform of `size` in each band, [mels, size / 2] float32."""

    def mel(hertz):
        return 1127 * np.log1p(hertz / 700)

    edges = np.linspace(mel(LOWEST), mel(rate / 2), mels + 2)[:, None]
    places = mel(np.arange(size // 2) * rate / size)
    up = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def masks(key: Array, length: int, longest: int) -> Array:
    """A random stretch of places, [length] bool: as long as uniform from 0 to `longest`, anywhere that it fits."""
    wide, start = jax.random.uniform(key, (2,))
    wide = jnp.floor(wide * (min(longest, length) + 1))
    first = jnp.floor(start * (length - wide + 1))
    at = jnp.arange(length)
    return (at >= first) & (at < first + wide)
