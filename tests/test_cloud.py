"""Runs and data sets on gs://, against a Cloud Storage of our own on loopback; the clients are the real ones."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from mmcl_jax import files
from mmcl_jax.named import ConfigError
from tests import gcs
from tests.conftest import finish

RUN = (
    "--config", "configs/clip_emoji.py:tiny", "--config.batch=16", "--config.log.every=1",
    "--config.checkpoint.every=3",
    "--config.optim.warmup=2", "--config.data.train.size=64", "--config.evals.val.limit=32",
    "--config.optim.end_lr=3e-3",
)  # fmt: skip


def clients(url):
    """What sends gcsfs, google-cloud-storage, TensorStore and array_record to another server, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x", "FSSPEC_GCS": '{"token": "anon"}', "NO_GCE_CHECK": "true",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }  # fmt: skip


@pytest.fixture(scope="module")
def store():
    with gcs.serve() as server:
        yield server


def mmcl(store, repository, *arguments, env=None, **kwargs):
    start = f"import sys; from mmcl_jax.cli import main; sys.exit(main({list(arguments)!r}))"
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(repository)} | clients(store.url) | (env or {})
    return subprocess.Popen([sys.executable, "-c", start], cwd=repository, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)  # fmt: skip


def names(store, prefix):
    return sorted(n for n in list(store.buckets["bucket"]) if n.startswith(prefix))


def rows(store, run):
    lines = store.buckets["bucket"][f"{run}/metrics.jsonl"][0].decode().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_on_a_store_stops_goes_on_and_is_read(store, repository, tmp_path):
    """Begun by two processes, told to stop, continued by one; all of the run lies there, nothing here."""
    there = ("--workdir", "gs://bucket/runs/one")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    several = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process")
    first, second = (
        mmcl(store, repository, "train", *RUN, "--config.steps=100000", *there, *several, i) for i in ("0", "1")
    )
    deadline = time.monotonic() + 200
    while not names(store, "runs/one/checkpoints/6/commit_success.txt"):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    code, output = finish(first)
    assert (code, finish(second)[0]) == (42, 42), output
    saved = int(re.search(r"stopped by a signal at step (\d+), saved", output)[1])
    assert f"runs/one/manifests/{saved}.json" in names(store, "runs/one/")
    assert [r["step"] for r in rows(store, "runs/one") if "loss" in r] == list(range(1, saved + 1))
    before = rows(store, "runs/one")

    code, output = finish(mmcl(store, repository, "train", *RUN, f"--config.steps={saved + 2}", *there))
    assert code == 0 and f"going on from step {saved}" in output, output
    assert rows(store, "runs/one")[: len(before)] == before
    found = {n.removeprefix("runs/one/").split("/")[0] for n in names(store, "runs/one/")}
    assert found == {"checkpoints", "manifests", "config.json", "eval_streams.json", "tokenizer.json", "metrics.jsonl",
                     "summary.json", "curves.png", "retrieval.png", "owner.json", "environment.json"}  # fmt: skip
    assert not (repository / "gs:").exists()

    # the newest checkpoint loses a file: it is set aside, the one before it used
    newest = max(int(n.split("/")[3]) for n in names(store, "runs/one/checkpoints/"))
    del store.buckets["bucket"][names(store, f"runs/one/checkpoints/{newest}/state/d/")[0]]
    code, output = finish(mmcl(store, repository, "train", *RUN, f"--config.steps={saved + 3}", *there))
    assert code == 0 and f"damaged/{newest}" in output and "going on from step" in output, output
    assert names(store, f"runs/one/damaged/{newest}/")

    code, output = finish(mmcl(store, repository, "eval", "gs://bucket/runs/one"))
    assert code == 0 and f"runs/one/eval_{saved + 3}.json" in names(store, "runs/one/"), output
    code, output = finish(mmcl(store, repository, "table", "gs://bucket/runs/one", "--keep", str(tmp_path / "kept")))
    assert code == 0 and "| one" in output and (tmp_path / "kept/one/summary.json").exists(), output


def test_the_run_that_began_last_owns_the_workdir(store, repository):
    """There are no locks on a store: the earlier run sees before its next save that it is no longer its own."""
    there = ("--workdir", "gs://bucket/runs/two", "--config.steps=100000", "--config.checkpoint.every=20")
    first = mmcl(store, repository, "train", *RUN, *there)
    deadline = time.monotonic() + 200
    while not names(store, "runs/two/checkpoints/20/commit_success.txt"):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    data, generation, updated = store.buckets["bucket"]["runs/two/owner.json"]
    store.buckets["bucket"]["runs/two/owner.json"] = data.replace(b'"pid"', b'"other"'), generation + 1, updated
    code, output = finish(first)
    assert code == 1 and "Another run has begun in gs://bucket/runs/two since" in output, output


def test_data_sets_on_a_store(store, repository):
    """Built here, copied there, read there record by record; the real builder and reader."""
    build = mmcl(store, repository, "data", "build", "openmoji/color", "--data_dir", "gs://bucket/data")
    code, output = finish(build)
    assert code == 0 and "openmoji/color in gs://bucket/data/openmoji/color" in output, output
    assert any("array_record" in n for n in names(store, "data/openmoji/color/"))
    code, output = finish(mmcl(store, repository, "data", "build", "openmoji/color", "--data_dir", "gs://bucket/data"))
    assert code == 0, output
    train = ("train", "--config", "configs/clip_emoji.py", "--workdir", "gs://bucket/runs/emoji", "--config.batch=8",
             "--config.steps=2", "--config.optim.warmup=1", "--config.evals={}", "--config.data.cache_mib=0",
             "--config.encoders.image.depth=1", "--config.data.train.in_memory=False")  # fmt: skip
    code, output = finish(mmcl(store, repository, *train, env={"TFDS_DATA_DIR": "gs://bucket/data"}))
    assert code == 0 and "1,582 records" in output, output


def test_addresses(monkeypatch):
    with pytest.raises(ConfigError, match="local or on gs://"):
        files.path("s3://bucket/run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mmcl-jax\[gcs\]'"):
        files.path("gs://bucket/run")
