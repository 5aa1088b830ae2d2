"""Sounds: read, brought to one channel and one rate, and refused if there is nothing in them."""

from __future__ import annotations

import io
import os

import numpy as np

from mmcl_jax.named import ConfigError

SILENCE = 1e-4  # of full scale, peak: some -80 dB
CHANNELS = 64  # at most; more are samples that stand the wrong way round
CLIPPED = 0.1  # share of samples at full scale from which a recording is spoilt


def read(value: bytes | str | os.PathLike | np.ndarray, rate: int, of: int = 0) -> np.ndarray:
    """A recording as float32 [T] in [-1, 1], one channel (the mean of all), at `rate`.

    Args:
        value: an encoded file (WAV, FLAC, OGG, MP3), its path, or samples [T] or [T, channels], whole numbers of 8 to
            32 bits or floats in [-1, 1].
        rate: wanted, Hz.
        of: rate of samples that come as an array, which can't tell it, Hz; 0 = `rate`.

    Raises:
        ConfigError: if the packages that read or resample are not installed.
        ValueError: if it can't be read, is empty, not finite, silent, or clipped in more than a tenth of a channel's
            samples; if an array has more channels than samples.
    """
    if isinstance(value, np.ndarray):
        samples, found = _to_float(value), of or rate
    else:
        soundfile = _package("soundfile")
        try:
            with soundfile.SoundFile(io.BytesIO(value) if isinstance(value, bytes) else os.fspath(value)) as file:
                samples, found = file.read(dtype="float32", always_2d=True), file.samplerate
        except soundfile.LibsndfileError as e:
            raise ValueError(f"not a sound that can be read: {e.error_string}") from None
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not samples.size or samples.shape[1] > min(CHANNELS, len(samples)):
        raise ValueError(f"a sound of shape {samples.shape}; samples are [T] or [T, channels], T at least 1")
    if not np.isfinite(samples).all():
        raise ValueError(f"{(~np.isfinite(samples)).sum()} of {samples.size} samples are not finite")
    clipped = (np.abs(samples) >= 1 - 2**-15).mean(0).max()  # of the worst channel: the mean of all would hide it
    samples = samples.mean(1)
    if np.abs(samples).max() < SILENCE:
        raise ValueError("silence")
    if clipped > CLIPPED:
        raise ValueError(f"{clipped:.0%} of the samples are at full scale, it is clipped")
    if found != rate:
        samples = _package("soxr").resample(samples, found, rate)
        if not samples.size:
            raise ValueError(f"too short: nothing is left of it at {rate} Hz")
    return np.clip(samples, -1, 1).astype(np.float32)


def _to_float(samples: np.ndarray) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:  # WAV's 8 bits are unsigned
        return samples.astype(np.float32) / 128 - 1
    if samples.dtype not in (np.int8, np.int16, np.int32):
        raise ValueError(f"samples of {samples.dtype}; possible: floats in [-1, 1], uint8, int8, int16, int32")
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


def _package(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(f"Sounds need the package {name}: pip install 'mmcl-jax[audio]'.") from None
