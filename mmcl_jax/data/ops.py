"""Host ops: what streams are made of before `||`. Every public function here is an op by its name.

Images are uint8 [H, W, 3] arrays; resampling is Pillow's, antialiased. An op that asks for `rng` is random, one
that asks for `tokenizer` gets the run's. An op that raises marks its stream absent for that example, and is counted.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_PIXELS = 89_478_485  # Pillow's own threshold of suspicion; it only warns there


def decode(value: bytes | str | os.PathLike | np.ndarray, background: int = 255) -> np.ndarray:
    """Encoded image, path or array -> RGB, uint8 [H, W, 3]; transparent parts show the background.

    Raises:
        ValueError: if the header promises more than MAX_PIXELS, before anything is decoded.
        OSError: if it is not a whole image.
    """
    if isinstance(value, np.ndarray):
        image = Image.fromarray(value)
    else:
        image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"image of {image.width} x {image.height} is over {MAX_PIXELS} pixels")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        flat = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        image = Image.alpha_composite(flat, image)
    return np.asarray(image.convert("RGB"))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """To a square of `size`, whatever the shape was (SigLIP's evaluation)."""
    return _resample(image, (0, 0, image.shape[1], image.shape[0]), size, size)


def resize_short(image: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, keeping the shape (CLIP's evaluation, before center_crop)."""
    h, w = image.shape[:2]
    short = min(h, w)
    return _resample(image, (0, 0, w, h), max(size, round(h * size / short)), max(size, round(w * size / short)))


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of `size`.

    Raises:
        ValueError: if the image is smaller.
    """
    h, w = image.shape[:2]
    if min(h, w) < size:
        raise ValueError(f"center_crop({size}) of a {h} x {w} image; put resize_short({size}) before it")
    y, x = round((h - size) / 2), round((w - size) / 2)
    return image[y : y + size, x : x + size]


def crop(
    image: np.ndarray,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random resized crop to a square (Szegedy et al. 2015): share of the area uniform, aspect log-uniform."""
    h, w = image.shape[:2]
    for _ in range(10):  # as torchvision: ten tries, then the middle
        area = h * w * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        cw, ch = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < cw <= w and 0 < ch <= h:
            y, x = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
            return _resample(image, (x, y, x + cw, y + ch), size, size)
    cw, ch = min(w, round(h * ratio[1])), min(h, round(w / ratio[0]))
    y, x = (h - ch) // 2, (w - cw) // 2
    return _resample(image, (x, y, x + cw, y + ch), size, size)


def flip(image: np.ndarray, p: float = 0.5, *, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right with probability p."""
    return image[:, ::-1] if rng.random() < p else image


def pick(values: str | Sequence[str], main: float = 0.0, *, rng: np.random.Generator) -> str:
    """One of several captions, at random; with probability `main` the first, whatever the others are."""
    if isinstance(values, str) or rng.random() < main:
        return first(values)
    return values[rng.integers(len(values))]


def first(values: str | Sequence[str]) -> str:
    """The first of several captions."""
    return values if isinstance(values, str) else values[0]


def tokenize(text: str | bytes, length: int, sot: bool = True, *, tokenizer) -> dict[str, np.ndarray]:
    """Text -> token ids [length] int32 and mask [length] of the real ones; see `tokenizers.encode`."""
    text = text.decode() if isinstance(text, bytes) else text
    ids, mask = tokenizer.encode(text, length, sot)
    return {"data": ids, "mask": mask}


def _resample(image: np.ndarray, box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
