"""Eight virtual CPU devices and a compilation cache that lasts, for all tests and the processes that they start."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
# Most of the suite's time is XLA's; what its optimizations do to the numbers is not what is tested.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from mmcl_jax import log, parallel  # noqa: E402
from mmcl_jax.types import Ctx  # noqa: E402

flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags
jax.config.update("jax_default_matmul_precision", "highest")

MESHES = {"1": {"data": 1, "fsdp": 1}, "8": {"data": 8, "fsdp": 1}, "4x2": {"data": 4, "fsdp": 2}}


def make_mesh(name: str):
    """A mesh of the first devices: "1", "8" or "4x2" (data x fsdp)."""
    shape = MESHES[name]
    return parallel.make_mesh(shape, jax.devices()[: shape["data"] * shape["fsdp"]])


def finish(process) -> tuple[int, str]:
    """Exit code and output of a process that was started with its output in a pipe."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss of a run."""
    return {r["step"]: r["loss"] for r in log.read_metrics(workdir / "metrics.jsonl") if "loss" in r}


@pytest.fixture(params=["none", *MESHES])
def ctx(request) -> Ctx:
    """Contexts without a mesh, and with one of 1, 8 and 4 x 2 devices."""
    if request.param == "none":
        return Ctx()
    return Ctx(make_mesh(request.param), parallel.BATCH_AXES, train=True, step=0, rng=jax.random.key(0))


@pytest.fixture
def repository() -> Path:
    """The root of the clone."""
    return Path(__file__).parent.parent
