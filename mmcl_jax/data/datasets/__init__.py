"""Our TFDS builders, and `mmcl data build NAME`, which stands in for the `tfds build` that needs TensorFlow."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

from mmcl_jax import files
from mmcl_jax.named import ConfigError, did_you_mean

BUILDERS = {
    "openmoji": "Openmoji",
    "emoji_styles": "EmojiStyles",
    "tux_stamps": "TuxStamps",
    "emoji_modalities": "EmojiModalities",
}


def names() -> list[str]:
    """All data sets with their configs, "openmoji/color" say."""
    return [f"{name}/{config.name}" for name in BUILDERS for config in _builder_class(name).BUILDER_CONFIGS]


def build(name: str, data_dir: str = "") -> files.AnyPath:
    """Builds a data set, unless it is there.

    Args:
        name: "openmoji/color"; "emoji_styles/all" builds all styles.
        data_dir: TFDS's folder, also on gs://; default: TFDS_DATA_DIR of the environment, or ~/tensorflow_datasets.

    Returns:
        The folder of the (last) data set.

    Raises:
        ConfigError: if there is no such data set, or a package that it is rendered with is not installed.
    """
    try:
        possible = names()
    except ModuleNotFoundError as e:
        raise ConfigError(f"Building needs the package {e.name}: pip install 'mmcl-jax[demo,audio,speech]'.") from None
    data_set, _, config = name.partition("/")
    wanted = [n for n in possible if n.startswith(f"{data_set}/")] if config == "all" else [name]
    if not wanted or not set(wanted) <= set(possible):
        raise ConfigError(f"There is no data set {name!r} of ours{did_you_mean(name, possible)}")
    for each in wanted:
        folder = _build_one(each, data_dir)
    return folder


def _build_one(name: str, data_dir: str) -> files.AnyPath:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # its bars are many lines where there is no terminal
    data_set, _, config = name.partition("/")
    target = files.path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    with tempfile.TemporaryDirectory() as scratch:  # array_record files can be read on gs://, but only written to disks
        there = Path(scratch) if files.is_remote(target) else target
        builder = _builder_class(data_set)(config=config, data_dir=str(target), file_format="array_record")
        if not builder.is_prepared():
            builder = _builder_class(data_set)(config=config, data_dir=str(there), file_format="array_record")
            builder.download_and_prepare(download_dir=str(there / "downloads"))
            if files.is_remote(target):
                files.copy_tree(there / data_set, target / data_set, last="dataset_info.json")
                builder = _builder_class(data_set)(config=config, data_dir=str(target), file_format="array_record")
    sizes = ", ".join(f"{k} {v.num_examples}" for k, v in builder.info.splits.items())
    print(f"{name} in {builder.data_dir}: {sizes}")
    print(f"  licence {builder.info.metadata['license']}: {builder.info.metadata['attribution']}")
    return files.path(builder.data_dir)


def _builder_class(name: str):
    return getattr(importlib.import_module(f"{__name__}.{name}"), BUILDERS[name])
