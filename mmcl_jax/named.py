"""Things that a config names: find the file, check the arguments against its signature, call it.

Methods, encoders, sources and evaluators are files of a folder with one function each, or dotted paths of one's own.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PREEMPTED = 42  # exit code: told to stop, saved; start again to go on


class ConfigError(ValueError):
    """Something in the config can't be as it is; the message says what, what is possible and how to mend it."""


class MissingError(ConfigError):
    """An argument that has no default is not given: a path, say."""


class RunError(RuntimeError):
    """A run can't go on: its data, its losses, its disk; the message says what, and how to mend it."""


def did_you_mean(name: str, possible: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: the nearest name if one is near, and all that is possible.

    Example:
        >>> did_you_mean("imge", ["image", "text"])
        "; did you mean 'image'? Possible: image, text."
    """
    possible = [str(p) for p in possible]
    near = difflib.get_close_matches(name, possible, n=1)
    return (f"; did you mean {prefix + near[0]!r}?" if near else ".") + f" Possible: {', '.join(possible)}."


def find(
    package: str, name: str, arguments: Mapping[str, Any], where: str, given: int = 0, function: str = "make"
) -> Callable[..., Any]:
    """The function of the file that a config names, once it is sure that it takes the arguments.

    Args:
        package: folder of the files, "mmcl_jax.methods".
        name: a file in it, or a dotted path.
        arguments: from the config.
        where: path of the arguments in the config, for messages.
        given: number of its first parameters that come from elsewhere.
        function: its name in the file.

    Raises:
        ConfigError: if there is no such file or argument, or (MissingError) one that is needed is not given.
    """
    path = name if "." in name else f"{package}.{name}"
    try:
        target = getattr(importlib.import_module(path), function)
    except (ModuleNotFoundError, AttributeError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name and not path.startswith(e.name):
            raise  # the file is there, but something that it imports is not
        modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
        possible = [m.name for m in modules if hasattr(importlib.import_module(f"{package}.{m.name}"), function)]
        raise ConfigError(f"{where}: there is no {name!r}{did_you_mean(name, possible)}") from None
    parameters = inspect.signature(target).parameters
    names = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)][given:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in arguments:
        if key not in names and not takes_any:
            raise ConfigError(f"{where}: {name!r} has no argument {key!r}{did_you_mean(key, names, f'{where}.')}")
    for key in names:
        if parameters[key].default is inspect.Parameter.empty and arguments.get(key) in (None, ""):
            raise MissingError(f"{where}.{key} is missing: {name!r} needs it. Set --config.{where}.{key}=...")
    return target


def call(package: str, name: str, arguments: Mapping[str, Any], where: str, *args: Any, function: str = "make") -> Any:
    """Calls what `find` finds with `args` first; what it refuses (ValueError) becomes a ConfigError."""
    target = find(package, name, arguments, where, len(args), function)
    try:
        return checked(where, lambda: target(*args, **arguments))
    except TypeError as e:
        if function != "make":
            raise
        raise ConfigError(f"{where}: {e}. Its arguments are {dict(arguments)}.") from e


def checked(where: str, function: Any, *args: Any) -> Any:
    """Calls a function with a part of the config; what it refuses becomes a ConfigError that names the part."""
    try:
        return function(*args)
    except ConfigError:
        raise
    except ValueError as e:
        text = str(e)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from e
