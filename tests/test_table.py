"""Tables of runs: grouping by content, means and deviations, what seeds can't tell apart, what differs."""

import json
import statistics
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from mmcl_jax import config as configs
from mmcl_jax import table
from mmcl_jax.named import ConfigError


@pytest.fixture
def write(tmp_path, repository, monkeypatch):
    """Writes a run's config and summary as training leaves them, with metrics of our choice."""
    monkeypatch.chdir(repository)

    def run(name, metrics, *overrides, spec="configs/clip_emoji.py:tiny", loss=1.0):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = configs.load(spec, overrides)
        (folder / "config.json").write_text(configs.to_json(config))
        summary = {"method": config.method.name, "steps": config.steps, "loss": loss, "platform": "cpu"}
        (folder / "summary.json").write_text(json.dumps(summary | {"evals": metrics}))
        return str(folder)

    return run


def recall(value):
    return {"val/i2t/R@1": value, "val/i2t/MedR": 1 / value}


def seeds(write, name, values, *overrides):
    return [write(f"{name}{s}", recall(v), f"seed={s}", *overrides) for s, v in enumerate(values)]


def marks(paths, metric="val/i2t/R@1"):
    groups = table.group(table.read(paths))
    return [table.mark(groups, metric, g) for g in groups]


def test_seeds_become_mean_and_deviation(write):
    paths = seeds(write, "a", (0.5, 0.6, 0.7)) + seeds(write, "b", (0.1, 0.2), "optim.lr=0.01")
    groups = table.group(table.read(paths))
    assert [(len(g.runs), g.label) for g in groups] == [(3, {"optim.lr": 3e-3}), (2, {"optim.lr": 0.01})]
    text = table.markdown(groups, table.choose(groups))
    line = [cell.strip() for cell in text.splitlines()[2].split("|")]
    deviation = statistics.stdev((0.5, 0.6, 0.7))
    assert line[1:5] == ["a0", "0.003", "3", f"**0.600 ± {deviation:.3f}**"]
    row = table.rows(groups)[1]
    assert row["val/i2t/R@1"] == pytest.approx(0.15) and row["val/i2t/R@1 std"] == pytest.approx(
        np.std((0.1, 0.2), ddof=1)
    )


def test_folds_become_mean_and_deviation(write):
    how = ("data.train.source=folds", "data.train.of={'source': 'synthetic', 'size': 9}", "data.train.by=label")
    paths = [write(f"a{k}", recall(v), *how, f"data.train.fold={k}") for k, v in enumerate((0.5, 0.7))]
    paired = [write(f"b{k}", recall(v), *how, f"data.train.fold={k}", f"init_from.run=towers{k}", "optim.lr=0.01")
              for k, v in enumerate((0.41, 0.6))]  # fmt: skip
    both = table.group(table.read(paths + paired))
    assert [len(g.runs) for g in both] == [2, 2], "each fold starts from a run of its own"
    (group,) = table.group(table.read(paths))
    text = table.markdown([group], table.choose([group]))
    ours, theirs = (0.5, 0.7, 0.4, 0.9, 0.6), (0.44, 0.65, 0.34, 0.83, 0.55)
    more = [write(f"{name}{k}", recall(v), *how, f"data.train.fold={k}", f"optim.lr={lr}")
            for name, values, lr in (("c", ours, 0.1), ("d", theirs, 0.2)) for k, v in enumerate(values)]  # fmt: skip
    assert marks(more) == ["best", ""], "it is better in each fold, though folds differ by more than that"
    assert stats.ttest_ind(ours, theirs, equal_var=False).pvalue > 0.5
    unfinished = [
        write(f"e{k}", recall(v), *how, f"data.train.fold={k}", "optim.lr=0.3") for k, v in enumerate((0.9, 0.9))
    ]
    assert marks(more + unfinished) == ["best", "", table.UNKNOWN], "two easy folds are not five"
    scratch = [
        write(f"f{k}", recall(v), *how, f"data.train.fold={k}", "optim.lr=0.01") for k, v in enumerate((0.1, 0.2))
    ]
    assert len(table.group(table.read(paired + scratch))) == 2, "a start from other weights is another experiment"
    assert "0.600 ± 0.141" in text and "| folds |" in text and "deviation over folds" in text


@pytest.mark.parametrize(
    "ours, theirs, mark",
    [
        ((0.50, 0.51, 0.52), (0.10, 0.11, 0.12), ""),  # far apart
        ((0.50, 0.51, 0.52), (0.49, 0.50, 0.53), table.LIKE),  # within each other
        ((0.50, 0.51, 0.52), (0.10,), table.UNKNOWN),  # one seed has no deviation
        ((0.50,), (0.10,), table.UNKNOWN),
        ((0.5, 0.5), (0.1, 0.1), ""),
        ((0.5, 0.5), (0.5, 0.5), table.LIKE),
    ],
)
def test_what_the_seeds_cannot_tell_apart(write, ours, theirs, mark):
    paths = seeds(write, "a", ours) + seeds(write, "b", theirs, "optim.lr=0.01")
    assert marks(paths) == marks(paths[::-1]) == ["best", mark]


def test_more_comparisons_ask_for_more(write):
    """A difference that one comparison would believe is not believed among many: Bonferroni's correction."""
    best, near = (0.50, 0.54, 0.52), (0.43, 0.47, 0.45)
    p = stats.ttest_ind(best, near, equal_var=False).pvalue
    assert p < 0.05 < 5 * p
    paths = seeds(write, "a", best) + seeds(write, "b", near, "optim.lr=0.01")
    assert marks(paths) == ["best", ""]
    for i in range(4):
        paths += seeds(write, f"c{i}", (0.1, 0.11, 0.12), f"optim.lr={0.02 + i / 100}")
    assert marks(paths)[:2] == ["best", table.LIKE]


def test_less_can_be_better_and_losses_of_methods_are_not_compared(write):
    paths = seeds(write, "a", (0.5, 0.51)) + seeds(write, "b", (0.1, 0.11), "optim.lr=0.01")
    assert marks(paths, "val/i2t/MedR") == ["best", ""]
    paths.append(write("s", recall(0.3), spec="configs/siglip_emoji.py:tiny", loss=0.1))
    assert marks(paths, "loss") == ["", "", ""]
    assert marks(paths[:-1], "loss")[0] == "best"


def test_a_kept_run_is_the_same_run(write, tmp_path, capsys):
    paths = seeds(write, "a", (0.5, 0.6))
    table.keep(table.read(paths), str(tmp_path / "kept"))
    assert len(table.group(table.read([*paths, str(tmp_path / "kept")]))[0].runs) == 2
    other = write("other", recall(0.9), "seed=1")  # the same experiment and seed, another result
    groups = table.group(table.read([*paths, other]))
    assert len(groups) == 1 and groups[0].values("val/i2t/R@1") == [0.5, 0.6]
    assert "repeats" in capsys.readouterr().out


def test_a_metric_that_a_seed_lacks(write):
    """Null in a summary is what was not finite; it is neither counted nor taken for zero."""
    paths = [
        write("a0", {"val/i2t/R@1": 0.5}, "seed=0"), write("a1", {"val/i2t/R@1": None}, "seed=1"),
        write("b0", {"val/t2i/R@1": 0.5}, "optim.lr=0.01"),
    ]  # fmt: skip
    groups = table.group(table.read(paths))
    assert groups[0].values("val/i2t/R@1") == [0.5] and groups[1].values("val/i2t/R@1") == []
    assert marks(paths) == ["", ""] and "| 0.500" in table.markdown(groups, table.choose(groups))


def test_ways_of_computing_matter_where_a_seed_was_computed_in_several(write):
    """A sweep over the form of the loss is a table of two lines; seeds that ran on other devices are one line."""
    ways = seeds(write, "a", (0.5, 0.6)) + seeds(write, "b", (0.5, 0.7), "loss.impl=ring")
    groups = table.group(table.read(ways))
    assert [g.label for g in groups] == [{"loss.impl": "auto"}, {"loss.impl": "ring"}]
    assert [len(g.runs) for g in groups] == [2, 2]
    moved = [write("c0", recall(0.5), "seed=0", "mesh.fsdp=2"), write("c1", recall(0.6), "seed=1")]
    assert [len(g.runs) for g in table.group(table.read(moved))] == [2]


def test_other_evaluations_are_not_averaged(write):
    paths = [write("a", recall(0.5), "seed=0"), write("b", recall(0.1), "seed=1", "evals.val.limit=8")]
    groups = table.group(table.read(paths))
    assert [g.label for g in groups] == [{"evals.val.limit": None}, {"evals.val.limit": 8}]


def test_a_run_made_longer_is_not_finished(write, tmp_path):
    write("a", recall(0.5))
    longer = write("b", recall(0.5), "steps=500")
    summary = json.loads((tmp_path / "b/summary.json").read_text()) | {"steps": 120}
    (tmp_path / "b/summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="No finished run"):
        table.read([longer])


def test_what_is_kept_is_not_overwritten(write, tmp_path):
    runs = table.read([write("x/final", recall(0.5)), write("y/final", recall(0.6), "optim.lr=0.01")])
    with pytest.raises(ConfigError, match="keeps another run"):
        table.keep(runs, str(tmp_path / "kept"))
    assert table.keep(runs[:1], str(tmp_path / "kept"))  # again, the same one: it may have been evaluated anew


def test_configs_are_diffed(write):
    paths = [
        write("a", recall(0.5)),
        write("b", recall(0.4), "optim.lr=0.01", "optim.decay=0.5", "method.embed_dim=64"),
    ]
    groups = table.group(table.read(paths))
    text = table.markdown(groups, ["val/i2t/R@1"])
    assert list(groups[0].label) == ["method.embed_dim"]  # one key tells them apart; the others are said below
    assert "- b: `optim.decay` 0.01 → 0.5; `optim.lr` 0.003 → 0.01" in text


def test_many_metrics_are_a_table_for_each_evaluator(write):
    metrics = {f"{e}/{d}/R@1": 0.5 for e in ("val", "test", "other") for d in ("i2t", "t2i", "a2t")}
    groups = table.group(table.read([write("a", metrics), write("b", metrics | {"solo/top1": 0.1}, "optim.lr=0.01")]))
    text = table.markdown(groups, table.choose(groups))
    solo = text.split("**solo**")[1].split("**")[0]
    assert "| b " in solo and "| a " not in solo and "top1 ↑" in solo


def test_what_is_asked_for_must_be_there(write, tmp_path):
    path = write("a", recall(0.5) | {"val/no_flag/i2t/R@1": 0.4})
    groups = table.group(table.read([path]))
    assert (
        table.choose(groups) == ["val/i2t/R@1", "loss"] and table.choose(groups, ["val/*"])[-1] == "val/no_flag/i2t/R@1"
    )
    with pytest.raises(ConfigError, match="did you mean 'val/i2t/R@1'"):
        table.choose(groups, ["val/i2t/R@2"])
    with pytest.raises(ConfigError, match="name metrics: --metrics 'steps' say"):
        table.choose(table.group(table.read([write("none", {}, loss=None)])))
    (tmp_path / "a/summary.json").unlink()
    with pytest.raises(ConfigError, match="No finished run"):
        table.read([path])
    with pytest.raises(FileNotFoundError, match="no folder"):
        table.read([str(tmp_path / "nowhere")])


def test_lines_are_in_the_order_of_what_tells_them_apart(write):
    paths = [write(f"{i}", {"loss": 1.0}, f"optim.lr={lr}") for i, lr in enumerate((0.1, 0.02, 1.0))]
    groups = table.group(table.read(paths))
    assert [g.label["optim.lr"] for g in groups] == [0.02, 0.1, 1.0]


def test_a_gap_is_neither_good_nor_bad(write):
    paths = [write(name, {"seen_gap/image_text/size": size, "missing/gap/top1": size}, f"optim.lr={size}")
             for name, size in (("a", 0.2), ("b", 0.4))]  # fmt: skip
    text = table.markdown(table.group(table.read(paths)), ["seen_gap/image_text/size", "missing/gap/top1"])
    assert "seen_gap/image_text/size |" in text and "missing/gap/top1 ↑" in text
    assert "0.200" in text and text.count("**0.400**") == 1


def test_whoever_reads_may_stop_early(write, tmp_path):
    runs = " ".join(seeds(write, "a", (0.4, 0.5)))
    line = f"{sys.executable} -m mmcl_jax.cli table {runs} --out {tmp_path}/table | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr
    assert (tmp_path / "table.md").exists() and (tmp_path / "table.csv").exists()
