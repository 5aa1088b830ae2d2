"""A run, opened: embeddings don't depend on batch, padding or devices; bad values are refused."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

import mmcl_jax
from mmcl_jax import config as configs
from mmcl_jax import evals, inherit, predict, train
from mmcl_jax.build import build
from mmcl_jax.data import pipeline, sources
from mmcl_jax.named import ConfigError
from tests.conftest import make_mesh

DATA = {"source": "synthetic", "size": 53, "split": "test"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from pathlib import Path

    folder = Path(__file__).parent.parent.parent
    workdir = tmp_path_factory.mktemp("run")
    config = configs.load(f"{folder}/configs/clip_emoji.py:tiny", ["steps=4", "batch=16", "optim.warmup=1"])
    train.train(config, workdir, jax.devices()[:1])
    return workdir


def test_results_do_not_depend_on_batch_or_devices(run):
    results = []
    for batch, mesh in ((53, "1"), (16, "1"), (16, "8"), (24, "4x2")):
        predictor = mmcl_jax.load(run, batch=batch, mesh=make_mesh(mesh))
        results.append(evals.run(predictor, "val", {"name": "retrieval", "data": DATA}))
    assert all(r == results[0] for r in results[1:])
    assert results[0]["n"] == 53


def test_embed_score_and_zero_shot(run):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    source = sources.make(DATA)
    images = [source[i]["image"] for i in range(5)]
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, "PNG")
    found = predictor.embed(image=[*images, buffer.getvalue()], text=["a red square", ""])
    np.testing.assert_allclose(np.linalg.norm(found["image"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["image"][0], found["image"][5], atol=1e-6)
    assert predictor.score(found["image"], found["text"]).shape == (6, 2)
    names, cosines = predictor.zero_shot(images, ["red square", "blue disc"], ["a {}", "the {}"])
    assert set(names) <= {"red square", "blue disc"} and cosines.shape == (5, 2)


def test_weights_as_they_were_before_the_first_step(run, tmp_path, repository):
    predictor = mmcl_jax.load(run)
    text = {"text": ["red square", "blue disc"]}
    ours = predictor.embed(**text)["text"]
    config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", ["steps=4", "batch=16", "optim.warmup=1"])
    parts = build(config, tmp_path, make_mesh("1"))
    for seed in (0, 1):
        begun = predictor.begun(seed)
        jax.tree.map(np.testing.assert_array_equal, begun.params, jax.jit(parts.init)(jax.random.key(seed)).params)
        assert np.abs(ours - begun.embed(**text)["text"]).max() > 0.01 and begun.step == 0
    np.testing.assert_array_equal(predictor.embed(**text)["text"], ours)


def test_wrong_use_is_told(run, tmp_path):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    with pytest.raises(ValueError, match="no stream 'audio'; possible here"):
        predictor.embed(audio=[1])
    with pytest.raises(OSError):
        predictor.embed(image=[b"no image"])
    with pytest.raises(ValueError, match="expected uint8"):
        predictor.embed(image=[np.zeros((5, 5, 3), np.uint8)])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        mmcl_jax.load(tmp_path)
    with pytest.raises(ValueError, match="data: .*modalities|evals.val"):
        evals.run(predictor, "val", {"name": "retrieval", "data": DATA, "limits": 3})


def test_shift_and_class_lists(run):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    over = {"a": DATA, "b": DATA | {"seed": 1}}
    results = evals.run(predictor, "shift", {"name": "shift", "over": over, "limit": 20})
    assert results["a/n"] == results["b/n"] == 20 and "b/t2i/R@10" in results
    classes = sources.make(DATA).class_names("label")[:20]
    results = evals.run(predictor, "z", {"name": "zeroshot", "data": DATA, "classes": classes, "limit": 20})
    assert results["classes"] == 20
    # any stream can be classified by the names of classes, texts among them
    source = sources.make(DATA)
    texts = [text for i in range(20) for text in source[i]["captions"]]  # two each, which are a row each
    scores = predictor.class_scores(predictor.items(text=texts)["text"], classes)
    found = evals.run(
        predictor, "z", {"name": "zeroshot", "data": DATA, "classes": classes, "limit": 20, "stream": "text"}
    )
    assert found["top1"] == pytest.approx((scores.argmax(1) == np.arange(40) // 2).mean()) and found["n"] == 40
    with pytest.raises(ValueError, match="not one of the 2 classes"):
        evals.run(predictor, "z", {"name": "zeroshot", "data": DATA, "classes": ["a", "b"]})


def make(every: int):
    """A source of one's own: synthetic records, of which only one in `every` has a label."""
    return HalfLabelled(sources.make(DATA), every)


class HalfLabelled:
    def __init__(self, inner, every):
        self.inner, self.every = inner, every

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        record = self.inner[i]
        return record if i % self.every == 0 else record | {"label": None}

    def class_names(self, field):
        return self.inner.class_names(field)


def test_records_without_a_label_are_left_out(run):
    predictor = mmcl_jax.load(run, mesh=make_mesh("1"))
    part = {"name": "zeroshot", "data": {"source": __name__, "every": 2}, "limit": 20}
    evals.check(predictor, {"z": part})
    assert evals.run(predictor, "z", part)["n"] == 10
    nothing = part | {"label": "colour", "classes": ["red", "blue"]}
    with pytest.raises(ValueError, match="'colour' is missing from all"):
        evals.run(predictor, "z", nothing)


def test_streams_that_share_their_host_half(run):
    one = mmcl_jax.load(run, mesh=make_mesh("1"))
    ops = configs.load(str(run / "config.json")).data.eval_streams
    streams = pipeline.Streams(ops.to_dict() | {"image/v1": ops.image}, 0, one.streams.tokenizer)
    streams.find_spec(sources.make(DATA))
    assert streams.source_of["image/v1"] == "image"
    device = predict.device_streams(streams, 0)
    two = predict.Predictor(one.method, one.params, one.extra, streams, device, one.mesh)
    images = [sources.make(DATA)[i]["image"] for i in range(3)]
    np.testing.assert_allclose(
        two.embed(**{"image/v1": images})["image/v1"], one.embed(image=images)["image"], atol=1e-6
    )


def test_token_embeddings_come_with_their_tokenizer(run, tmp_path, repository):
    """Another data set would train another tokenizer, in which the same number is another token."""
    other = sources.make({"source": "synthetic", "size": 8, "seed": 5})

    def tokenizer_of(*overrides):
        config = configs.load(f"{repository}/configs/clip_emoji.py:tiny", overrides)
        return pipeline.make_tokenizer(config.data, [other], tmp_path, False, inherit.tokenizer(config))

    own = tokenizer_of()
    own.save(tmp_path / "own.json")
    theirs = mmcl_jax.load(run, mesh=make_mesh("1")).streams.tokenizer
    assert own != theirs
    assert tokenizer_of(f"init_from.run={run}") == theirs
    assert tokenizer_of(f"init_from.run={run}", "init_from.rules=('text:',)") == own
    with pytest.raises(ConfigError, match="is not the tokenizer of the token embeddings"):
        tokenizer_of(f"init_from.run={run}", f"data.tokenizer.path={tmp_path / 'own.json'}")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        tokenizer_of("init_from.run=nowhere")


def test_a_run_starts_from_another(run, tmp_path):
    from pathlib import Path

    folder = Path(__file__).parent.parent.parent
    overrides = ["steps=1", "batch=16", "optim.warmup=0", "optim.rules=('.*: lr=0',)", f"init_from.run={run}",
                 "init_from.rules=('text:',)", "optim.decay=0.0"]  # fmt: skip
    config = configs.load(f"{folder}/configs/clip_emoji.py:tiny", overrides)
    config.evals = {}
    train.train(config, tmp_path, jax.devices()[:1])
    new, old = predict.load(tmp_path), predict.load(run)
    for a, b in zip(jax.tree.leaves(new.params["image"]), jax.tree.leaves(old.params["image"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(p.params["text"]) for p in (new, old)), strict=True))


def test_a_run_that_starts_from_another_takes_statistics_and_its_twin_from_there(tmp_path, repository):
    config = configs.load(f"{repository}/configs/moco.py:tiny", ["steps=3", "batch=16", "optim.warmup=1"])
    config.evals = {}
    train.train(config, tmp_path / "first", jax.devices()[:1])
    first = predict.load(tmp_path / "first", mesh=make_mesh("1"))
    mesh = make_mesh("1")
    config.init_from.run = str(tmp_path / "first")
    parts = build(config, tmp_path / "second", mesh)
    fresh = jax.jit(parts.init)(jax.random.key(7))
    state = inherit.start_from(config.init_from, fresh, first.method, parts.optimizer, parts.sharding)
    for mine in (state.params, state.extra["key"]["params"]):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(first.params), strict=True):
            np.testing.assert_array_equal(a, b)
    assert jax.tree.leaves(first.extra), "there are batch statistics"
    assert set(first.extra) == {"batch_stats"}, "queue and twin are not loaded for evaluation"
    for mine in (state.extra["batch_stats"], state.extra["key"]["batch_stats"]):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(first.extra["batch_stats"]), strict=True):
            np.testing.assert_array_equal(a, b)
    state.extra["key"]["params"]["image"]["stem"]["kernel"].delete()  # buffers of its own: they can be donated
    assert not state.params["image"]["stem"]["kernel"].is_deleted()


@pytest.mark.parametrize("method", ["gmc", "pairwise", "late_fusion"])
def test_a_sound_is_the_mean_of_its_clips(tmp_path, repository, method):
    """Once they are unit vectors; pooled features as they are; a short sound has but one; also with 8 devices."""
    log_mel = "log_mel(8000, mels=16)|standardize(-5, 3)"
    config = configs.load(f"{repository}/configs/{method}.py:tiny", ["evals={}"])
    with config.unlocked():
        config.data.streams.audio = f"sound(8000)|excerpt(2000) || {log_mel}"
        config.data.eval_streams.audio = f"sound(8000)|excerpts(2000, 3) || {log_mel}"
        config.data.eval_streams["audio/one"] = f"audio: sound(8000)|center_excerpt(2000) || {log_mel}"
    parts = build(config, tmp_path / "a", make_mesh("1"))
    state = jax.jit(parts.init)(jax.random.key(0))
    record = sources.make({"source": "synthetic", "size": 9, "modalities": ("image", "audio", "tags")})[3]
    sounds = [np.random.default_rng(1).uniform(-0.5, 0.5, 9001).astype(np.float32), record["audio"][:1500]]
    clips = [sounds[0][start : start + 2000] for start in (0, 3500, 7001)]
    for mesh in ("1", "8"):
        predictor = build(config, tmp_path / mesh, make_mesh(mesh)).predictor
        predictor.params, predictor.extra = state.params, predictor.method.to_embed(state.extra)
        found, one = predictor.embed(**{"audio": sounds, "audio/one": [*clips, sounds[1]]}).values()
        mean = one[:3].mean(0)
        np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
        np.testing.assert_allclose(found[1], one[3], atol=1e-6)
        assert (one[0] @ one[1:3].T < 0.9999).all(), "the clips differ"
        pooled, one = predictor._of_values({"audio": sounds, "audio/one": [*clips, sounds[1]]}, "pooled").values()
        np.testing.assert_allclose(pooled, [one[:3].mean(0), one[3]], atol=1e-5)
        if method != "gmc":  # what is represented by several streams
            both = predictor.fuse(audio=[sounds[0], None], tags=[record["tags"]] * 2)
            alone = predictor.fuse(audio=[sounds[0], None]), predictor.fuse(tags=[record["tags"]] * 2)
            np.testing.assert_allclose(both, [(alone[0][0] + alone[1][0]) / 2, alone[1][1]], atol=1e-6)
            if method == "pairwise":
                np.testing.assert_allclose(alone[0][0], found[0], atol=1e-6)
        else:
            with pytest.raises(ConfigError, match="data.eval_streams.audio gives 3 clips of an example, but the joint"):
                predictor.fuse(audio=[sounds[0]], tags=[record["tags"]])
    with config.unlocked():
        data = dict(source="synthetic", size=300, split="test", modalities=("image", "audio", "tags"))
        names = ("image", "audio", "tags")
        if method == "gmc":
            config.evals.left = dict(name="missing", data=data, fit=data, modalities=names)
            with pytest.raises(ConfigError, match="data.eval_streams.audio gives 3 clips"):
                build(config, tmp_path / "b", make_mesh("1"))
        elif method == "pairwise":  # losses take one, as in training
            found = evals.run(predictor, "held", dict(name="losses", data=data))
            assert np.isfinite(found["audio_image"]) and found["audio_image"] > 0
        config.data.streams.audio, config.evals = config.data.eval_streams.audio, {}
    with pytest.raises(ConfigError, match="data.streams.audio gives 3 clips of an example, but training takes one"):
        build(config, tmp_path / "b", make_mesh("1"))
