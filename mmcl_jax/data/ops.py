"""Host ops: what streams are made of before `||`. Every public function here is an op by its name.

Images are uint8 [H, W, 3] arrays; resampling is Pillow's, antialiased. Sounds are float32 [T] in [-1, 1]. An op that
asks for `rng` is random, one that asks for `tokenizer` gets the run's. An op that raises marks its stream absent for
that example, and is counted.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from mmcl_jax.data import sound as sounds

MAX_PIXELS = 89_478_485  # Pillow's own threshold of suspicion; it only warns there


def decode(value: bytes | str | os.PathLike | np.ndarray, background: int = 255) -> np.ndarray:
    """Encoded image, path or array -> RGB, uint8 [H, W, 3]; transparent parts show the background, grey becomes RGB.

    Raises:
        ValueError: if the header promises more than MAX_PIXELS, before anything is decoded; if an array holds neither
            bytes nor 16 bits, whose range is known.
        OSError: if it is not a whole image.
    """
    if isinstance(value, np.ndarray):
        if value.dtype not in (np.uint8, np.uint16, np.bool_):
            raise ValueError(f"image of {value.dtype}; arrays must be uint8, uint16 or bool")
        value = (value >> 8).astype(np.uint8) if value.dtype == np.uint16 else value
        image = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value)
    else:
        image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"image of {image.width} x {image.height} is over {MAX_PIXELS} pixels")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        flat = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        image = Image.alpha_composite(flat, image)
    if image.mode.startswith("I"):  # 16 bits, which Pillow's `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8))
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
    """Random resized crop to a square (Szegedy et al. 2015): share of the area uniform, aspect log-uniform.

    At the edges of the box, Pillow's antialiasing looks at pixels beyond it; torchvision, as the device op of this
    name, cuts the box out first. Some levels at the border differ.
    """
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


def jitter(
    image: np.ndarray,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    shuffled: bool = True,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Changes colours as torchvision's ColorJitter does on Pillow images.

    This and the other changes of colour are for full-size photos and for comparison: small images are changed faster
    on the device, by the ops of the same names, which don't round to whole numbers in between.

    Args:
        image: uint8 [H, W, 3].
        brightness: b; the image is multiplied by a factor from [max(0, 1 - b), 1 + b].
        contrast: the same of the difference to the image's mean grey.
        saturation: the same of the difference to each pixel's grey.
        hue: h up to 0.5; hues turn by a share of the circle from [-h, h].
        shuffled: whether every image has an order of these four of its own; else it is the one above.
        rng: random numbers.
    """
    picture = _picture(image)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    strengths = (brightness, contrast, saturation)
    factors = [rng.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    turn = rng.uniform(-hue, hue)
    for i in rng.permutation(4) if shuffled else range(4):
        if i < 3 and strengths[i]:
            picture = enhancers[i](picture).enhance(factors[i])
        elif i == 3 and hue:  # by way of HSV, which isn't quite the same image even if nothing turns
            hsv = np.array(picture.convert("HSV"))
            hsv[..., 0] += np.uint8(int(255 * turn) % 256)  # towards 0 as in torchvision; hues are modulo 256
            picture = Image.fromarray(hsv, "HSV").convert("RGB")
    return np.asarray(picture)


def gray(image: np.ndarray, p: float = 0.2, *, rng: np.random.Generator) -> np.ndarray:
    """Turns an image grey with probability p, keeping three channels."""
    return np.asarray(_picture(image).convert("L").convert("RGB")) if rng.random() < p else image


def blur(
    image: np.ndarray, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0), *, rng: np.random.Generator
) -> np.ndarray:
    """Blurs an image with probability p by Pillow's approximate Gaussian; sigma uniform between these, pixels."""
    if rng.random() >= p:
        return image
    return np.asarray(_picture(image).filter(ImageFilter.GaussianBlur(rng.uniform(*sigma))))


def solarize(image: np.ndarray, p: float = 0.2, threshold: float = 0.5, *, rng: np.random.Generator) -> np.ndarray:
    """With probability p, turns values from the threshold (a share of 255) on into their negative."""
    return np.where(image >= 255 * threshold, 255 - image, image) if rng.random() < p else image


def sound(value: bytes | str | os.PathLike | np.ndarray, rate: int = 16_000, of: int = 0) -> np.ndarray:
    """Encoded sound, path or samples -> one channel at `rate` Hz, float32 [T] in [-1, 1].

    Args:
        value: see `sound.read`, which this is; needs the extra `audio` for files, and for another rate.
        rate: wanted, Hz.
        of: rate of samples that come as an array, Hz; 0 = `rate`.

    Raises:
        ValueError: if it can't be read, is empty, not finite, silent or badly clipped.
    """
    return sounds.read(value, rate, of)


def array(value: str | os.PathLike | np.ndarray) -> np.ndarray:
    """Path of a .npy file, or an array -> float32 array: inertial sensors, features.

    Raises:
        ValueError: if a number is not finite.
    """
    found = np.asarray(value if isinstance(value, np.ndarray) else np.load(value), np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{(~np.isfinite(found)).sum()} of {found.size} numbers are not finite")
    return found


def excerpt(samples: np.ndarray, length: int, *, rng: np.random.Generator) -> np.ndarray:
    """A stretch of `length` samples at random; a shorter sound stands somewhere in it at random, in silence."""
    return _stretch(samples, length, rng.random())


def center_excerpt(samples: np.ndarray, length: int) -> np.ndarray:
    """The middle `length` samples; a shorter sound stands in the middle, in silence."""
    return _stretch(samples, length, 0.5)


def excerpts(samples: np.ndarray, length: int, n: int) -> dict[str, np.ndarray]:
    """`n` stretches [n, length], evenly from the first to the last; their embeddings are averaged in evaluation."""
    if n < 1:
        raise ValueError(f"excerpts({length}, {n}): there must be one, at least")
    if len(samples) <= length or n == 1:  # there is but one
        clips = np.stack([center_excerpt(samples, length)] * n)
        return {"data": clips, "present": np.arange(n) < 1}
    starts = np.linspace(0, len(samples) - length, n).round().astype(int)
    return {"data": np.stack([samples[i : i + length] for i in starts]), "present": np.ones(n, bool)}


def _stretch(samples: np.ndarray, length: int, where: float) -> np.ndarray:
    spare = len(samples) - length
    start = int(where * (abs(spare) + 1)) if where != 0.5 else abs(spare) // 2
    if spare >= 0:
        return samples[start : start + length]
    return np.pad(samples, (start, -spare - start))


def pick(values: str | Sequence[str], main: float = 0.0, *, rng: np.random.Generator) -> str:
    """One of several captions, at random; with probability `main` the first, whatever the others are."""
    if not _several(values) or rng.random() < main:
        return first(values)
    return values[rng.integers(len(values))]


def first(values: str | Sequence[str]) -> str:
    """The first of several captions."""
    return values[0] if _several(values) else values


def _several(values: object) -> bool:
    return isinstance(values, list | tuple) or isinstance(values, np.ndarray) and values.dtype.kind in "OSU"


def tokenize(text: str | bytes, length: int, sot: bool = True, *, tokenizer) -> dict[str, np.ndarray]:
    """Text -> token ids [length] int32 and mask [length] of the real ones; see `tokenizers.encode`."""
    text = text.decode() if isinstance(text, bytes) else text
    ids, mask = tokenizer.encode(text, length, sot)
    return {"data": ids, "mask": mask}


def mlm(
    tokens: dict[str, np.ndarray], p: float = 0.15, *, tokenizer, rng: np.random.Generator
) -> dict[str, dict[str, np.ndarray] | np.ndarray]:
    """Masks tokens to be guessed from the others (Devlin et al. 2018, arXiv 1810.04805); put it after `tokenize`.

    Each real token that is not special is chosen with probability p. Of these, 80 % become `<mask>`, 10 % any token
    that is not special (the original, too) and 10 % stay. In a text of few tokens there often is none that is chosen.

    Args:
        tokens: what `tokenize` gives: "data" [N] int32, "mask" [N] bool.
        p: probability of being chosen.
        tokenizer: one that has `<mask>`.
        rng: random numbers.

    Returns:
        "data": {"ids": [N] int32, "labels": [N] int32, the original id at chosen places and -100 at all others} and
        "mask" [N] as it was. A record without the text has labels 0, as it has ids 0: losses look at `present`.

    Raises:
        ValueError: if there are no tokens yet, or the tokenizer has no `<mask>`.
    """
    if not isinstance(tokens, dict):
        raise ValueError("mlm masks tokens, not texts; put tokenize(length) before it")
    if tokenizer.mask is None:
        raise ValueError("mlm needs a tokenizer with <mask>: tokenizers.train(..., mask=True)")
    ids, real = tokens["data"], tokens["mask"]
    chosen = real & ~np.isin(ids, tokenizer.special) & (rng.random(ids.shape) < p)
    fate, other = rng.random(ids.shape), rng.choice(tokenizer.ordinary, ids.shape)
    changed = np.where(fate < 0.8, np.int32(tokenizer.mask), np.where(fate < 0.9, other, ids))
    data = {"ids": np.where(chosen, changed, ids), "labels": np.where(chosen, ids, np.int32(-100))}
    return {"data": data, "mask": real}


def multi_hot(values: str | int | Sequence[str | int], size: int) -> np.ndarray:
    """Tags -> uint8 [size], 1 for each that is there; numbers are places, words are hashed to one.

    Two words may share a place: choose `size` well above the number of tags that examples have in common.

    Raises:
        ValueError: for a number that is not a place.
    """
    hot = np.zeros(size, np.uint8)
    for value in [values] if isinstance(values, str | int | np.integer) else values:
        place = zlib.crc32(value.encode()) % size if isinstance(value, str) else int(value)
        if not 0 <= place < size:
            raise ValueError(f"tag {value} is not within 0..{size - 1}; raise multi_hot's size")
        hot[place] = 1
    return hot


def _resample(image: np.ndarray, box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    return np.asarray(_picture(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image))  # flip gives a view that runs backwards
