"""UNETR: its count, no parameter that never learns, windows of its crop alone."""

from __future__ import annotations

import pytest
import torch

from brainfoundry.core.errors import ConfigError
from tests.models.families.checks import check_learns, check_shapes, published, tiny

CROP = (32, 32, 32)
TINY = {"filters": 4, "embed": 24, "heads": 2, "hidden": 32}


def test_parameters() -> None:
    # Its authors' configuration; they print 92.58 million.
    assert published("unetr", 1, 14, (96, 96, 96)) == 92_784_046
    assert published("unetr", 4, 3, (96, 96, 96)) == 102_222_387


def test_maps_and_learns() -> None:
    network = tiny("unetr", CROP, **TINY)
    check_shapes(network, [CROP])
    check_learns(network, CROP)


def test_other_windows_and_uneven_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="built for crops of 32x32x32, and is shown 32x32x16"):
        tiny("unetr", CROP, **TINY)(torch.zeros(1, 2, 32, 32, 16))
    with pytest.raises(ConfigError, match="24 features do not divide between 5 heads"):
        tiny("unetr", CROP, **(TINY | {"heads": 5}))
