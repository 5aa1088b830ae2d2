"""Made-up records in which every modality tells the same hidden thing, to be learned; for tests and `:tiny`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50),
    "purple": (150, 50, 190), "orange": (240, 140, 40), "cyan": (60, 200, 210), "grey": (120, 120, 120),
}  # fmt: skip
GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "pink": (250, 180, 200), "brown": (110, 70, 40)}
SHAPES = {  # of the coordinates x and y, from -1 to 1
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.6,
    "disc": lambda x, y: np.hypot(x, y) < 0.7,
    "cross": lambda x, y: np.minimum(abs(x), abs(y)) < 0.25,
    "stripes": lambda x, y: np.floor(y * 4) % 2 == 0,
    "bars": lambda x, y: np.floor(x * 4) % 2 == 0,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.6) < 0.2,
    "corner": lambda x, y: (x < 0) & (y < 0),
    "checks": lambda x, y: np.floor(x * 2) % 2 == np.floor(y * 2) % 2,
}
CLASSES = [(c, s, g) for g in GROUNDS for c in COLOURS for s in SHAPES]  # 256
MODALITIES = ("image", "text", "audio", "video", "tags")


def make(
    size: int = 256,
    modalities: Sequence[str] = ("image", "text"),
    missing: float = 0.0,
    image_size: int = 16,
    split: str = "train",
    seed: int = 0,
) -> Synthetic:
    """Coloured shapes on coloured grounds, and what belongs to them.

    Args:
        size: number of records.
        modalities: of "image" (uint8 [S, S, 3]), "text" (str), "audio" (float32 [800]), "video" (uint8
            [4, S, S, 3]) and "tags" (uint8 [20], one each for shape, colour and ground). Every record also has
            `label` (0..255: colour, shape and ground) and `id`, those with a text `captions`, two of them, and
            `words`, the names of all colours.
        missing: probability that a record lacks a modality, each on its own; never all of them.
        image_size: S, pixels.
        split: another split has other noise, but the same colours and shapes.
        seed: of everything.

    Raises:
        ValueError: for a modality that does not exist, or a size below 1.
    """
    unknown = set(modalities) - set(MODALITIES)
    if unknown or size < 1:
        raise ValueError(f"synthetic: size={size}, modalities={tuple(modalities)}; possible: {', '.join(MODALITIES)}.")
    return Synthetic(size, tuple(modalities), missing, image_size, split, seed)


class Synthetic:
    """See `make`."""

    def __init__(self, size: int, modalities: tuple[str, ...], missing: float, image_size: int, split: str, seed: int):
        self.size, self.modalities, self.missing, self.image_size = size, modalities, missing, image_size
        self.seed = [seed, *split.encode()]

    def __len__(self) -> int:
        return self.size

    def class_names(self, field: str) -> list[str] | None:
        """Names of the 256 labels."""
        return [f"{c} {s} on {g}" for c, s, g in CLASSES] if field == "label" else None

    def __getitem__(self, i: int) -> dict[str, Any]:
        rng = np.random.default_rng([*self.seed, i])
        label = i % len(CLASSES)
        colour, shape, ground = CLASSES[label]
        make_ = {
            "image": lambda: _picture(colour, shape, ground, self.image_size, rng),
            "text": lambda: f"a {colour} {shape} on {ground}",
            "audio": lambda: _tone(label, rng),
            "video": lambda: np.stack([_picture(colour, shape, ground, self.image_size, rng) for _ in range(4)]),
            "tags": lambda: np.isin([*SHAPES, *COLOURS, *GROUNDS], CLASSES[label]).astype(np.uint8),
        }
        values = {m: make_[m]() for m in self.modalities}
        there = rng.random(len(values)) >= self.missing
        there[rng.integers(len(values))] = True
        record = {m: v for (m, v), t in zip(values.items(), there, strict=True) if t}
        if "text" in record:
            record["captions"] = [record["text"], f"{ground} behind a {shape} in {colour}"]
            record["words"] = list(COLOURS)
        return record | {"label": label, "id": f"synthetic-{i}"}


def _picture(colour: str, shape: str, ground: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A coloured shape on its ground, with noise: uint8 [S, S, 3]."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    mask = SHAPES[shape](line[None, :], line[:, None]) & np.ones((size, size), bool)
    picture = np.where(mask[..., None], COLOURS[colour], GROUNDS[ground])
    return np.clip(picture + 12 * rng.standard_normal(picture.shape, np.float32), 0, 255).astype(np.uint8)


def _tone(label: int, rng: np.random.Generator) -> np.ndarray:
    """Two sines, one for ground and colour and one for the shape, in noise: float32 [800], 0.1 s at 8 kHz."""
    t = np.arange(800) / 8000
    tone = np.sin(2 * np.pi * (200 + 20 * (label // 8)) * t) + np.sin(2 * np.pi * (1200 + 150 * (label % 8)) * t)
    return (0.4 * tone + rng.normal(0, 0.05, 800)).astype(np.float32)
