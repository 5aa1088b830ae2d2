"""`mmcl data show`: the streams of a config as the model will see them, augmented, on a contact sheet."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mmcl_jax.data import mix, pipeline
from mmcl_jax.evals import figures
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import device_streams


def contact_sheet(config: ConfigDict, out: Path, count: int = 32, evaluation: bool = False) -> None:
    """Draws the first examples of the training stream, after both halves of their ops.

    Images are scaled to the range that the sheet's images have; under each stand its texts, decoded from their ids.

    Args:
        config: resolved.
        out: the PNG.
        count: number of examples.
        evaluation: the evaluation's streams instead of training's.

    Raises:
        ConfigError: if no stream is an image.
    """
    sources, weights = mix.open_sources(config.data.train)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = pipeline.make_tokenizer(config.data, sources, Path(folder))
    chosen = config.data.eval_streams if evaluation else config.data.streams
    record = pipeline.eval_record(config.data) if evaluation else config.data.record
    streams = pipeline.Streams(chosen, config.seed, tokenizer, record)
    streams.find_spec(*sources)
    records = mix.mixed(config.data, sources, weights, config.seed, config.batch)
    host = pipeline.stack([streams.element(pipeline.read(records, i), i) for i in range(count)])
    batch = jax.jit(device_streams(streams, config.seed))({k: host[k] for k in ("streams", "position")})
    first = {k: jax.tree.leaves(s.data)[0] for k, s in batch.items()}  # of ids and labels, the ids
    images = {k: np.asarray(x, np.float32) for k, x in first.items() if x.ndim == 4}
    if not images:
        raise ConfigError(f"No stream is an image; there is {', '.join(batch)}.")
    titles = [""] * count
    for name, stream in batch.items():
        if stream.mask is not None and first[name].ndim == 2:
            rows = zip(np.asarray(first[name]), np.asarray(stream.mask), strict=True)
            titles = [f"{t} {name}:{tokenizer.decode(ids[mask])}" for t, (ids, mask) in zip(titles, rows, strict=True)]
    low, high = (f([f(x) for x in images.values()]) for f in (np.min, np.max))
    sheet = [[(x[i] - low) / (high - low) for x in images.values()] for i in range(count)]
    named = [[f"{name}{title}" if len(images) > 1 else title for name in images] for title in titles]
    flat = itertools.chain.from_iterable
    credits = sorted({c for c in (getattr(s, "attribution", "") for s in sources) if c})
    figures.contact_sheet(list(flat(sheet)), list(flat(named)), out, credit="  ".join(credits))
