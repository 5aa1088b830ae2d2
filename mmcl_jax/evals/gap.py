"""The modality gap during training: how far apart modalities lie, of any method with two or more.

The cheap part of `analysis.modality_gap` and `analysis.geometry`, for `eval_every`; see Liang et al. 2022, "Mind the
Gap", arXiv 2203.02053.

    --config.eval_every=100 --config.evals.gap="{'name': 'gap', 'data': {'split': 'validation'}}"
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.analysis import geometry, modality_gap
from mmcl_jax.data import sources
from mmcl_jax.evals.embeddings import check_finite, check_streams
from mmcl_jax.named import ConfigError
from mmcl_jax.predict import Predictor


def check(
    predictor: Predictor, where: str, data: Mapping[str, Any], modalities: Sequence[str] = (), limit: int = 1000
) -> list[Any]:
    """Refuses streams that are not there, and a single one; see `evals.check`."""
    names = modalities or streams(predictor)
    check_streams(predictor.streams, names, where)
    if len(set(names)) < 2:
        raise ConfigError(
            f"{where}: a gap is between two modalities or more; there {'is' if len(names) == 1 else 'are'} "
            f"{', '.join(names) or 'none'}. Streams of the evaluation: {', '.join(predictor.streams.chains)}."
        )
    return [sources.make(data, f"{where}.data")]


def run(
    predictor: Predictor, data: Mapping[str, Any], modalities: Sequence[str] = (), limit: int = 1000
) -> dict[str, float]:
    """The evaluator.

    Args:
        predictor: the model; unit vectors of its first space are looked at, of token-wise methods their mean.
        data: a source, as in `data.train`; of records with several captions the first is taken.
        modalities: streams; default: all of the space that the evaluation has.
        limit: only so many records; 0 = all.

    Returns:
        "<a>_<b>/size", the length of the gap, "<a>_<b>/paired" and "/unpaired", mean cosines across, of each pair over
        the records that have both; "<a>/cone", the mean cosine within, and "<a>/rank", the effective rank. Pairs that
        no record has are left out.

    Raises:
        ValueError: if there is no pair at all, or an embedding is not finite.
    """
    names = tuple(modalities or streams(predictor))
    found = predictor.embed_source(sources.make(data, "evals data"), names, limit=limit)
    check_finite(*found.vectors.values())
    results: dict[str, float] = {}
    for a, b in itertools.combinations(names, 2):
        records, pair = found.pairs(a, b)
        if len(records):
            results |= {f"{a}_{b}/{k}": v for k, v in modality_gap.gap(*pair).items()}
    if not results:
        raise ValueError(f"No record has two of {', '.join(names)}: there is no pair.")
    for name in names:
        _, (z,) = found.pairs(name)
        if len(z) > 1:
            cosine = geometry.cone(z)["cosine"]
            results |= {f"{name}/cone": cosine, f"{name}/rank": geometry.collapse(z)["rank"]}
    return results


def streams(predictor: Predictor) -> list[str]:
    """The streams of the evaluation that live in the method's first space, one of each modality."""
    members = next(iter(predictor.method.spaces.values()), tuple(predictor.method.encoders))
    return [name for name in predictor.streams.chains if name in members]
