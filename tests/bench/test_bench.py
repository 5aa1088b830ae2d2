"""What the benchmarks count is right; they run, and say what they promise. Nobody asserts how long anything took."""

import json

import jax
import jax.numpy as jnp
import pytest

from mmcl_jax import cli
from mmcl_jax.bench import hlo, loss, timing
from mmcl_jax.bench.flops import matmul_flops
from tests.conftest import make_mesh


def test_flops_of_products_loops_and_convolutions():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    assert matmul_flops(lambda a, b: a @ b, a, b) == 2 * 4 * 8 * 16
    assert matmul_flops(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), a, b) == 3 * 2 * 4 * 8 * 16

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ b @ b.T), None), a, length=5)[0]

    assert matmul_flops(jax.jit(loop), a, b) == 5 * 2 * 2 * 4 * 8 * 16
    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(lambda a: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c.T @ c, a), a)

    def conv(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    image, kernel = jnp.ones((2, 16, 16, 3)), jnp.ones((4, 4, 3, 8))
    forward = 2 * (2 * 4 * 4 * 8) * (4 * 4 * 3)
    assert matmul_flops(conv, image, kernel) == forward
    gradient = jax.grad(lambda image, kernel: conv(image, kernel).sum(), (0, 1))
    assert matmul_flops(gradient, image, kernel) == pytest.approx(3 * forward, rel=0.01)


def test_flops_on_several_devices_are_those_of_all():
    """The usual scheme computes 6 units a device, ours 3, recomputed 4; the naive one 6 on each device of all."""
    found = {}
    for impl, form in loss.LOSSES["info_nce"].items():
        _, flops = loss.compile_form(form, make_mesh("8"), 64, 32, "float32", 4)
        found[impl] = flops / (2 * 64 * 64 * 32)
    expected = {"naive": 48, "local_rows": 6, "shared_tile": 3, "chunked": 4, "ring": 4}
    assert found == pytest.approx(expected, abs=3 / 64), "beside them only the products of each pair's own two vectors"


def test_collectives_of_compiled_programs():
    """A ring passes its block on 7 times, which a reader of the text sees once."""
    mesh = make_mesh("8")
    b, d, f32 = 64 // 8, 32, 4
    usual, _ = loss.compile_form(loss.local_rows, mesh, 64, d, "float32", 4)
    found = hlo.collectives(usual.as_text())
    assert not any(c.in_loop for c in found)
    towers = [c.output_bytes for c in found if c.kind in ("all-gather", "reduce-scatter")]
    assert sum(towers) >= 2 * (64 + b) * d * f32
    ring, _ = loss.compile_form(loss.LOSSES["info_nce"]["ring"], mesh, 64, d, "float32", 4)
    blocks = [c for c in hlo.collectives(ring.as_text()) if c.output_bytes >= b * d * f32]
    # The columns twice, and once their gradients, which also come home.
    assert sum(c.times * c.output_bytes for c in blocks if c.in_loop) == 3 * 7 * b * d * f32
    assert {c.kind for c in blocks} == {"collective-permute"}
    assert hlo.mib(blocks) == (3 * 7 + 1) * b * d * f32 / 2**20


ASYNC = """
ENTRY %main (p: f32[8,16]) -> f32[64,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %ag = (f32[8,16]{1,0}, f32[64,16]{1,0}) all-gather-start(%p), dimensions={0}
  ROOT %done = f32[64,16]{1,0} all-gather-done(%ag)
}
"""


def test_collectives_that_begin_and_end_count_once():
    """As GPUs and TPUs have them: the operation that begins has its input in its shape, too."""
    assert hlo.collectives(ASYNC) == [hlo.Collective("all-gather", 64 * 16 * 4, 1, False)]


def test_variants_alternate():
    order = []
    times = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "a", "b", "b"] * 3 and {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round():
    times = timing.Times(a=[1.0, 4.0, 9.0], b=[2.0, 4.0, 3.0])  # a machine that slows down
    assert times.median("a") == 4.0 and times.ratio("a", "b") == 1.0


def bench(capsys, *arguments):
    assert cli.main(["bench", *arguments]) == 0
    return capsys.readouterr().out


def test_loss(capsys):
    small = ("loss", "--batch", "256", "--dim", "16", "--time_batch", "64", "--rounds", "1", "--chunk", "16")
    rows = [json.loads(line) for line in bench(capsys, *small, "--json").splitlines()]
    assert [r["impl"] for r in rows] == ["naive", "local_rows", "shared_tile", "chunked", "ring"]
    wanted = {"impl", "batch", "dim", "devices", "temp_mib", "collective_mib", "matmul_units", "time_ratio"}
    assert all(wanted <= set(r) for r in rows)
    assert rows[1]["impl"] == "local_rows" and rows[1]["time_ratio"] == 1 and rows[0]["devices"] == 8
    temp = {r["impl"]: r["temp_mib"] for r in rows}
    assert temp["naive"] > temp["local_rows"] > temp["shared_tile"] > temp["chunked"]
    table = bench(capsys, *small, "--loss", "sigmoid", "--impl", "chunked,ring", "--time_batch", "0")
    assert "matmul_units" in table and "shared_tile" not in table


def test_loss_of_tokens(capsys):
    """Chunks hold a part of the products; what every device does of the usual scheme, it does for all of them."""
    small = ("loss", "--loss", "filip", "--batch", "64", "--dim", "16", "--tokens", "9,7", "--chunk", "2", "--json")
    rows = [json.loads(line) for line in bench(capsys, *small, "--time_batch", "16", "--rounds", "1").splitlines()]
    assert [r["impl"] for r in rows] == ["naive", "shared_tile", "chunked", "ring"]
    assert rows[0]["time_ratio"] == 1 and {r["tokens"] for r in rows} == {"9x7"}
    temp = {r["impl"]: r["temp_mib"] for r in rows}
    assert temp["naive"] > 4 * temp["shared_tile"] > 8 * temp["chunked"]
    units = {r["impl"]: r["matmul_units"] for r in rows}
    own_pairs = 3 / 64
    expected = {"naive": 24, "shared_tile": 3, "chunked": 4, "ring": 4}
    assert units == pytest.approx(expected, abs=2 * own_pairs)


def test_largest_batch(capsys, tmp_path):
    arguments = ("loss", "--dim", "16", "--impl", "local_rows,ring", "--chunk", "64", "--largest", "8", "--json")
    out = bench(capsys, *arguments, "--plot", str(tmp_path / "memory.png")).splitlines()
    usual, ring = map(json.loads, out)
    assert 0 < usual["largest_batch"] < ring["largest_batch"]
    assert usual["temp_mib"][str(usual["largest_batch"])] <= 8
    assert (tmp_path / "memory.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("loss", "--impl", "rings"), "info_nce has naive, local_rows"),
        (("loss", "--loss", "softmax"), "possible: info_nce, sigmoid"),
        (("loss", "--devices", "9"), "there are 8"),
        (("loss", "--loss", "filip", "--tokens", "49"), "--tokens 49: write two numbers"),
        (("loss", "--devices", "3", "--batch", "256"), "--batch 256 does not divide among 3 devices"),
        (("step", "--config", "configs/clip_emoji.py:tiny", "--config.chunks=7"), "chunks=7"),
    ],
)
def test_what_cannot_be_measured(capsys, arguments, message):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_step_data_and_eval(capsys):
    config = ("--config", "configs/clip_emoji.py:tiny", "--config.batch=16", "--config.data.train.size=64", "--json")
    config += ("--config.encoders.image.depth=1", "--config.encoders.text.depth=1", "--config.mesh.fsdp=2")
    row = json.loads(bench(capsys, "step", *config, "--rounds", "1").splitlines()[-1])
    assert row["mesh"] == "4x2" and row["gflop"] > 0 and 0 < row["utilisation"] < 1 and 0 <= row["data_wait"] <= 1
    assert row["collectives"] > 0 and row["temp_mib"] > 0 and row["examples_per_s"] > 0
    stages = [json.loads(line) for line in bench(capsys, "data", *config).splitlines()]
    assert {"read", "stream image", "stream text", "to the devices", "device ops"} <= {s["stage"] for s in stages}
    assert all(s["records_per_s"] > 0 for s in stages)
    costs = [json.loads(line) for line in bench(capsys, "eval", *config).splitlines()]
    assert [c["what"] for c in costs] == [
        "embed image", "embed text", "evals.val (retrieval)", "evals.zeroshot (zeroshot)"
    ]  # fmt: skip
