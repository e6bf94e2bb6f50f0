"""SwinUNETR as a family: the paper's count, and the segmenter of `models.segmenter`."""

from __future__ import annotations

import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families import load_family
from brainfoundry.models.swin import LegacyPatchMerging
from tests.models.families.checks import CROP, check_learns, check_shapes, parameters, tiny


def test_parameters_are_the_papers_62m() -> None:
    assert parameters(load_family("swinunetr").build(4, 3, (96, 96, 96))) == 62_191_941


def test_maps_and_learns() -> None:
    network = tiny("swinunetr", size="nano", merging="legacy")
    assert isinstance(network.swinViT.layers1[0].downsample, LegacyPatchMerging)
    check_shapes(network, [CROP])
    check_learns(network)


@pytest.mark.parametrize("options", [{"size": "huge"}, {"merging": "newest"}])
def test_what_does_not_exist_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        tiny("swinunetr", **options)
