"""Record ops: what `config.data.record` does to a whole record before the streams. They take and return the dict."""

from __future__ import annotations

from typing import Any


def collect(record: dict[str, Any], to: str, *fields: str) -> dict[str, Any]:
    """Gathers the texts of several fields into one list, for `pick`: a label and its tags, say.

    Fields that are missing or empty are passed over.

    Example:
        >>> record = {"labels": {"en": "cat"}, "tags": {"en": ["pet", "cat"]}}
        >>> collect(record, "captions", "labels/en", "tags/en")["captions"]
        ['cat', 'pet']
    """
    texts: list[str] = []
    for field in fields:
        value = look_up(record, field)
        texts += [value] if isinstance(value, str) else list(value if value is not None else [])
    return record | {to: list(dict.fromkeys(t for t in texts if t))}


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
