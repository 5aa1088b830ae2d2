"""Synthetic speech by eSpeak NG, through the shared library that the package `espeakng-loader` brings (GPL 3).

It is heard once, when a data set is built, and stored: twice the same text need not be bit for bit the same sound.
"""

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from mmcl_jax.data import sound
from mmcl_jax.named import ConfigError, RunError

SYNCHRONOUS, UTF8 = 2, 1  # of espeak-ng's speak_lib.h
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """Speaks texts.

    Raises:
        ConfigError: if the package is not installed.
        RunError: if the library does not start.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ModuleNotFoundError:
            raise ConfigError("Speech needs the package espeakng-loader: pip install 'mmcl-jax[speech]'.") from None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._heard: list[np.ndarray] = []

        def hear(samples, count, events):
            if samples and count:
                self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self._callback = _CALLBACK(hear)  # kept, for the library only knows its address
        folder = str(espeakng_loader.get_data_path()).encode()
        self.rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, folder, 0)
        if self.rate <= 0:
            raise RunError(f"eSpeak NG did not start (it says {self.rate}); its data is expected in {folder.decode()}.")
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, rate: int) -> np.ndarray:
        """A text as int16 samples at `rate` Hz; empty if there is nothing to be heard.

        Raises:
            ConfigError: if there is no such voice.
            RunError: if the library refuses the text.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ConfigError(f"eSpeak NG has no voice {voice!r}.")
        self._heard.clear()
        spoken = text.encode() + b"\0"
        said = self._library.espeak_Synth(spoken, ctypes.c_size_t(len(spoken)), 0, 0, 0, UTF8, None, None)
        if said:
            raise RunError(f"eSpeak NG refuses to say {text!r} (it says {said}).")
        samples = np.concatenate(self._heard) if self._heard else np.zeros(0, np.int16)
        if not samples.any():
            return np.zeros(0, np.int16)
        return np.round(32767 * sound.read(samples, rate, self.rate)).astype(np.int16)


@functools.cache
def speaker() -> Speaker:
    """The one speaker of this process: the library has one state."""
    return Speaker()


def speak(texts: dict[str, str], voices: dict[str, str], rate: int) -> dict[str, np.ndarray]:
    """Language -> its text spoken by its voice, for the languages that have one."""
    say: Callable = speaker().say
    return {lang: say(texts[lang], voice, rate) for lang, voice in voices.items()}
