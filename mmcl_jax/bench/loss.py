"""`mmcl bench loss`: memory, traffic and time of the forms of a contrastive loss, next to the usual schemes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmcl_jax import parallel
from mmcl_jax.bench import hlo, timing
from mmcl_jax.bench.baselines import local_rows, naive, naive_tokenwise
from mmcl_jax.bench.flops import matmul_flops
from mmcl_jax.losses import info_nce, plan, sigmoid, tokenwise_nce
from mmcl_jax.named import ConfigError
from mmcl_jax.types import Ctx

BASELINE = "local_rows"
LOSSES = {
    "info_nce": {"naive": naive, BASELINE: local_rows}
    | {impl: functools.partial(info_nce, impl=impl) for impl in plan.IMPLS},
    "sigmoid": {impl: functools.partial(sigmoid, impl=impl, bias=-10.0) for impl in plan.IMPLS},
    "filip": {"naive": naive_tokenwise} | {impl: functools.partial(tokenwise_nce, impl=impl) for impl in plan.IMPLS},
}
USUAL = (naive, local_rows, naive_tokenwise)
TOKENS = (49, 32)  # of filip's x and y: an image of 224 in patches of 32, a caption


def measure(
    loss: str = "info_nce",
    impls: Sequence[str] = (),
    devices: int = 0,
    batch: int = 65536,
    dim: int = 512,
    dtype: str = "float32",
    chunk: int = plan.CHUNK,
    time_batch: int = 2048,
    rounds: int = 11,
    tokens: Sequence[int] = TOKENS,
) -> Iterator[dict[str, Any]]:
    """Compiles loss and gradients at `batch`, and times them at `time_batch`, which has to fit into memory.

    Args:
        loss: a name of `LOSSES`.
        impls: its forms; default: all, and the usual schemes.
        devices: default: all.
        batch: rows of all devices.
        dim: D.
        dtype: of the vectors.
        chunk: columns of a tile.
        time_batch: rows of all devices when time is taken; 0 = don't.
        rounds: how often each is timed.
        tokens: of an x and of a y, for filip.

    Yields:
        A row per form: `temp_mib` per device as compiled, `collective_mib` that collectives make on a device,
        `matmul_units` of rows x batch x dim a device, and of filip x tokens x tokens; `time_ratio` to `local_rows`,
        the usual scheme of info_nce, or to filip's `naive`, timed in the same rounds.

    Raises:
        ConfigError: for a form that does not exist, rows that don't divide, or tokens that are not two numbers.
    """
    mesh = parallel.make_mesh(devices=timing.devices(devices))
    for flag, rows in (("--batch", batch), ("--time_batch", time_batch)):
        if rows % mesh.size:
            raise ConfigError(f"{flag} {rows} does not divide among {mesh.size} devices.")
    forms, tokens = _forms(loss, impls), _tokens(loss, tokens)
    times = None
    if time_batch:
        baseline = "naive" if tokens else BASELINE
        timed = {baseline: LOSSES["filip" if tokens else "info_nce"][baseline]} | forms
        runs = {impl: _runnable(form, mesh, time_batch, dim, dtype, chunk, tokens) for impl, form in timed.items()}
        times = timing.alternate(runs, rounds)
    for impl, form in forms.items():
        compiled, flops = compile_form(form, mesh, batch, dim, dtype, chunk, tokens)
        yield {
            "loss": loss, "impl": impl, "batch": batch, "dim": dim, "dtype": dtype, "devices": mesh.size,
        } | ({"tokens": "{}x{}".format(*tokens)} if tokens else {}) | {
            "temp_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
            "collective_mib": round(hlo.mib(hlo.collectives(compiled.as_text())), 1),
            "matmul_units": round(flops / (2 * batch * batch * dim * math.prod(tokens)), 2),
        } | ({"time_batch": time_batch, "ms": round(1e3 * times.median(impl), 1),
              "time_ratio": round(times.ratio(impl, baseline), 3)} if times else {})  # fmt: skip


def largest(
    loss: str,
    impls: Sequence[str],
    devices: int,
    dim: int,
    dtype: str,
    chunk: int,
    limit_mib: float,
    tokens: Sequence[int] = TOKENS,
) -> Iterator[dict[str, Any]]:
    """Doubles the batch, from 1,024 or a little less, until the compiled program takes more than `limit_mib` a device.

    Yields:
        A row per form: the `largest_batch` that takes less, and `temp_mib`, batch -> MiB, for those tried.
    """
    mesh = parallel.make_mesh(devices=timing.devices(devices))
    first, tokens = 1024 // mesh.size * mesh.size, _tokens(loss, tokens)
    for impl, form in _forms(loss, impls).items():
        temps: dict[int, float] = {}
        batch = first
        while not temps or max(temps.values()) <= limit_mib:
            compiled, _ = compile_form(form, mesh, batch, dim, dtype, chunk, tokens)
            temps[batch] = round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1)
            batch *= 2
        fitting = [b for b, t in temps.items() if t <= limit_mib]
        yield {"loss": loss, "impl": impl, "dim": dim, "dtype": dtype, "devices": mesh.size, "limit_mib": limit_mib,
               "largest_batch": max(fitting, default=0), "temp_mib": temps}  # fmt: skip


def plot(rows: Sequence[dict[str, Any]], out: str | Path) -> None:
    """Draws memory against batch, from rows of `largest`, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 4.5))
    for i, row in enumerate(rows):
        points = sorted(row["temp_mib"].items())
        usual = row["impl"] in ("naive", BASELINE)
        ax.plot(*zip(*points, strict=True), "--" if usual else "-", marker="o", ms=4, color=f"C{i}", label=row["impl"])
    ax.axhline(rows[0]["limit_mib"], color="#888888", lw=0.8)
    ax.text(1100, rows[0]["limit_mib"] * 1.1, f"{rows[0]['limit_mib']:,.0f} MiB", fontsize=8, color="#555555")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    batches = sorted({b for row in rows for b in row["temp_mib"]})
    ax.set_xticks(batches, [f"{b // 1024}k" for b in batches])
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:.2g}")
    ax.set(xlabel="global batch", ylabel="temporary memory a device, MiB")
    ax.set_title(f"{rows[0]['loss']} with gradients, {rows[0]['devices']} devices, dim {rows[0]['dim']}", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def compile_form(
    form: Callable, mesh: Any, batch: int, dim: int, dtype: str, chunk: int, tokens: Sequence[int] = ()
) -> tuple[Any, float]:
    """A form of a loss with its gradients, compiled but not run; and its matrix products' operations."""
    rows = parallel.by_rows(mesh)
    x, y = (jax.ShapeDtypeStruct(s, dtype, sharding=rows) for s in _shapes(batch, dim, tokens))
    function = _with_gradients(form, mesh, chunk)
    arguments = (x, y, jax.ShapeDtypeStruct((), jnp.float32))
    return jax.jit(function).lower(*arguments).compile(), matmul_flops(function, *arguments)


def _shapes(batch: int, dim: int, tokens: Sequence[int]) -> list[tuple[int, ...]]:
    """Of x and y."""
    return [(batch, n, dim) for n in tokens] if tokens else [(batch, dim)] * 2


def _runnable(
    form: Callable, mesh: Any, batch: int, dim: int, dtype: str, chunk: int, tokens: Sequence[int]
) -> Callable[[], Any]:
    compiled = jax.jit(_with_gradients(form, mesh, chunk))
    x, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(_shapes(batch, dim, tokens)))
    y = y + (2 * x.mean(1, keepdims=True) if tokens else 2 * x)  # pairs are near each other
    x, y = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
    x, y = jax.device_put((x.astype(dtype), y.astype(dtype)), parallel.by_rows(mesh))
    return lambda: compiled(x, y, jnp.float32(20.0))


def _with_gradients(form: Callable, mesh: Any, chunk: int) -> Callable:
    known = {} if form in USUAL else {"chunk": chunk}

    def scalar(x, y, scale):
        return Ctx(mesh, parallel.BATCH_AXES).over_batch(form)(x, y, scale=scale, **known)

    return jax.value_and_grad(scalar, (0, 1, 2))


def _tokens(loss: str, tokens: Sequence[int]) -> tuple[int, ...]:
    """Tokens of an x and of a y; none where rows are single vectors."""
    if loss != "filip":
        return ()
    if len(tokens) != 2 or min(tokens) < 1:
        raise ConfigError(f"--tokens {','.join(map(str, tokens))}: write two numbers, of an x and of a y: 49,32.")
    return tuple(tokens)


def _forms(loss: str, impls: Sequence[str]) -> dict[str, Callable]:
    if loss not in LOSSES:
        raise ConfigError(f"--loss {loss}: possible: {', '.join(LOSSES)}.")
    if set(impls) & set(LOSSES):
        raise ConfigError(
            f"--impl {','.join(impls)}: that is a loss, of which all forms are measured: --loss {impls[0]}."
        )
    unknown = [i for i in impls if i not in LOSSES[loss]]
    if unknown:
        raise ConfigError(f"--impl {unknown[0]}: {loss} has {', '.join(LOSSES[loss])}.")
    return {i: LOSSES[loss][i] for i in impls or LOSSES[loss]}
