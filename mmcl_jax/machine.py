"""What a run depends on beside its config: packages, flags, the commit, devices."""

from __future__ import annotations

import collections
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu", "jax-cuda12-plugin",
            "jax-cuda13-plugin")  # fmt: skip
FLAGS = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_COMPILATION_CACHE_DIR",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
)


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Of Python and the packages that results and speed depend on."""
    found = {name: version(name) for name in PACKAGES}
    return {"Python": platform.python_version()} | {name: v for name, v in found.items() if v}


def flags() -> dict[str, str]:
    """The environment's flags for JAX and its compilers, as far as they are set."""
    return {name: os.environ[name] for name in FLAGS if os.environ.get(name)}


def devices() -> str:
    """What JAX computes on: "8 x TPU v4"."""
    import jax

    kinds = collections.Counter(d.device_kind for d in jax.devices())
    return ", ".join(f"{n} x {kind}" for kind, n in kinds.items())


def commit() -> str:
    """Of the code that runs, with a "+" if files differ from it; "" if it is not known.

    MMCL_COMMIT tells it where there is no git: in an image, on a TPU.
    """
    if os.environ.get("MMCL_COMMIT"):
        return os.environ["MMCL_COMMIT"]
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return ""
    try:
        said = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"], cwd=here,
                              capture_output=True, text=True, timeout=20)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def describe() -> dict[str, Any]:
    """All of it, for a run's environment.json."""
    import jax

    return {"command": sys.argv, "commit": commit(), "host": platform.node(), "devices": devices(),
            "processes": jax.process_count(), "versions": versions(), "flags": flags()}  # fmt: skip
