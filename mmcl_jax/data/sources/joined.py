"""Several sources as one: what they say of the same thing in one record. Styles of a concept, sensors of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl_jax.data import sources


def make(parts: Mapping[str, Mapping[str, Any]], on: str = "id") -> Joined:
    """Joins sources by a field. All their records are read once, to find it: for sets of up to some 100,000 records.

    Args:
        parts: name -> source, as in `data.train`.
        on: the field by which records belong together.

    Raises:
        ValueError: if there are no parts, a record lacks the field, or two records of a part have the same value.
    """
    if not parts:
        raise ValueError("joined: parts is empty; give parts=dict(name=dict(source=...), ...).")
    return Joined({name: sources.make(part, f"joined.parts.{name}") for name, part in parts.items()}, on)


class Joined:
    """See `make`. A record has a dict for each part that knows it, {"noto": {"image": ...}}.

    Beside them stand the fields of the first part that has it, so that what all parts say alike needs no path.
    """

    def __init__(self, parts: Mapping[str, Any], on: str):
        self.parts = parts
        self.places: dict[Any, dict[str, int]] = {}
        for name, part in parts.items():
            for i in range(len(part)):
                key = part[i].get(on)
                found = self.places.setdefault(key, {})
                if key is None or name in found:
                    raise ValueError(f"joined: record {i} of {name!r} has {on}={key!r}; it must have one of its own.")
                found[name] = i
        self.keys = list(self.places)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> dict[str, Any]:
        found = {name: self.parts[name][at] for name, at in self.places[self.keys[i]].items()}
        return next(iter(found.values())) | found

    @property
    def attribution(self) -> str:
        """Whom to credit wherever pictures are shown."""
        return "  ".join(sorted({getattr(p, "attribution", "") for p in self.parts.values()} - {""}))

    def class_names(self, field: str) -> list[str] | None:
        """Names of the classes of a field, as the first part knows them."""
        return sources.class_names(next(iter(self.parts.values())), field)
