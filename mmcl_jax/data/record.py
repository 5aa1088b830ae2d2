"""Record ops: what `config.data.record` does to a whole record before the streams. They take and return the dict."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmcl_jax.data import ops, words
from mmcl_jax.named import ConfigError


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


def either(record: dict[str, Any], to: str, *fields: str) -> dict[str, Any]:
    """Takes the first of several fields that is there and not empty: where sources call the same by different names.

    Example:
        >>> either({"sfx": [], "speech": {"en": [1, 2]}}, "sound", "sfx", "speech/en")["sound"]
        [1, 2]
    """
    for field in fields:
        value = look_up(record, field)
        if is_there(value):
            return record | {to: value}
    return record


def one_of(record: dict[str, Any], to: str, *fields: str, rng: np.random.Generator) -> dict[str, Any]:
    """Takes one of several fields that are there and not empty, at random: a name spoken in one of several languages.

    Example:
        >>> one_of({"de": [], "en": [1, 2]}, "sound", "de", "en", rng=np.random.default_rng(0))["sound"]
        [1, 2]
    """
    there = [value for value in (look_up(record, field) for field in fields) if is_there(value)]
    return record | {to: there[rng.integers(len(there))]} if there else record


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


def draw(record: dict[str, Any], field: str, to: str, main: float = 0.0, *, rng: np.random.Generator) -> dict[str, Any]:
    """Draws one value of a list, as `pick` does, for several streams to start from the same one.

    Args:
        record: if it lacks the field, or the list is empty, it stays as it is.
        field: a list, or a single value.
        to: name of what was drawn.
        main: with this probability the first, whatever the others are.
        rng: random numbers.

    Example:
        >>> draw({"captions": ["a cat"]}, "captions", "caption", rng=np.random.default_rng(0))["caption"]
        'a cat'
    """
    values = look_up(record, field)
    if values is None or len(values) == 0:
        return record
    return record | {to: values if isinstance(values, bytes) else ops.pick(values, main, rng=rng)}


def eda(record: dict[str, Any], field: str, to: str, synonyms: str = "", *, rng: np.random.Generator) -> dict[str, Any]:
    """Changes a text a little (Wei & Zou 2019, arXiv 1901.11196): one of three ways, each as likely, as in DeCLIP.

    A synonym for one word; two words that change places; each word left out with probability .1. The text keeps a
    word at least. Insertions, the paper's fourth way, DeCLIP doesn't use.

    Args:
        record: if it lacks the text, it stays as it is.
        field: one text; `draw` makes one of several.
        to: name of the changed text.
        synonyms: "" = WordNet's, for English, which needs the extra `eda`. Else a list of words of the record, any of
            which may take the place of any word: looser than synonyms, as keywords tell more than the word does. Those
            that the text has already are left out.
        rng: random numbers.

    Raises:
        ConfigError: if WordNet is wanted and not installed, whatever the record; or if the field is not one text.
    """
    find = None if synonyms else words.wordnet()  # first of all: what is not installed is told before training
    text = look_up(record, field)
    if text is None:
        return record
    if not isinstance(text, str | bytes):
        kind = type(text).__name__
        raise ConfigError(f"data.record: eda changes one text, {field!r} is a {kind}; draw({field!r}, ...) makes one.")
    text = _text(text)
    if find is None:
        there, listed = text.lower().split(), look_up(record, synonyms)
        listed = list(listed) if isinstance(listed, list | tuple | np.ndarray) else [listed] if listed else []
        others = [w for w in map(_text, listed) if w.lower() not in there]
        return record | {to: words.change(text, lambda word: others, rng)}
    return record | {to: words.change(text, find, rng)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def is_there(value: Any) -> bool:
    """Whether a field's value is more than nothing: neither None nor empty."""
    return value is not None and not (isinstance(value, str | bytes | list | np.ndarray) and not len(value))


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


def nest(field: str, value: Any) -> dict[str, Any]:
    """A record in which `look_up` finds `value` at `field`."""
    for part in reversed(field.split("/")):
        value = {part: value}
    return value
