"""Sources: anything with `__len__` and `__getitem__(i) -> {field: bytes | str | array | list of str | dict}`.

A file of this folder (or the dotted path of one's own) has a function `make(**arguments)`; `config.data.train`
names it and holds the arguments. A field may be missing from a record. `id`, if there, names the record in messages.
"""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Mapping
from typing import Any

from mmcl_jax import named

# Evaluators run again and again over the same data, often the training's: opened once, for as long as someone holds it.
_opened: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def make(config: Mapping[str, Any], where: str = "data.train") -> Any:
    """Builds a source from its part of the config: `source`, its file, and the arguments of that file's `make`.

    Raises:
        ConfigError: if there is no such source, or an argument is unknown or missing; or from the source.
        FileNotFoundError: from the source, if its files are not there.
    """
    key = json.dumps(config, default=dict, sort_keys=True)
    source = _opened.get(key)
    if source is not None:
        return source
    arguments = {k: v for k, v in config.items() if k not in ("source", "weight", "streams")}
    if not config.get("source"):
        raise named.ConfigError(f"{where}.source is missing; name one, source='files' say.")
    source = named.call(__name__, config["source"], arguments, where)
    with contextlib.suppress(TypeError):  # a source of one's own may be of a class that can't be referred to weakly
        _opened[key] = source
    return source


def class_names(source: Any, field: str) -> list[str] | None:
    """The names of a field's classes, if the source knows them."""
    return source.class_names(field) if hasattr(source, "class_names") else None
