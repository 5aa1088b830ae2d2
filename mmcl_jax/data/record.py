"""Record ops: what `config.data.record` does to a whole record before the streams. They take and return the dict."""

from __future__ import annotations

from typing import Any

import numpy as np


def collect(record: dict[str, Any], to: str, *fields: str) -> dict[str, Any]:
    """Gathers the values of several fields into one list, for `pick` or `two`: a label and its tags, or several images.

    Fields that are missing or empty are passed over, what is there twice is kept once. A number becomes a word that
    tells its field, "group=3", so that it can stand beside texts as a tag.

    Example:
        >>> record = {"labels": {"en": "cat"}, "tags": {"en": ["pet", "cat"]}}
        >>> collect(record, "captions", "labels/en", "tags/en")["captions"]
        ['cat', 'pet']
    """
    values: list[str | bytes] = []
    for field in fields:
        value = look_up(record, field)
        if isinstance(value, int | np.integer | np.bool_):
            value = f"{field}={value}"
        values += [value] if isinstance(value, str | bytes) else list(value if value is not None else [])
    return record | {to: list(dict.fromkeys(v for v in values if v not in (None, "", b"")))}


def two(record: dict[str, Any], field: str, *, rng: np.random.Generator) -> dict[str, Any]:
    """Draws two different values of a list, as "<field>0" and "<field>1": two captions or two drawings of one thing.

    A list with a single value gives it twice, an empty one nothing.

    Example:
        >>> two({"captions": ["a cat"]}, "captions", rng=np.random.default_rng(0))["captions1"]
        'a cat'
    """
    values = look_up(record, field)
    if not values:
        return record
    values = [values] if isinstance(values, str | bytes) else values
    first, second = rng.choice(len(values), 2, replace=False) if len(values) > 1 else (0, 0)
    return record | {f"{field}0": values[first], f"{field}1": values[second]}


def look_up(record: dict[str, Any], field: str) -> Any:
    """The value of a field, "labels/en" looks into a dict; None if it isn't there.

    Example:
        >>> look_up({"labels": {"en": "cat"}}, "labels/en")
        'cat'
    """
    value: Any = record
    for part in field.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value
