"""ResEnc-L: its count and learning where the optional package is, and what to do where it is not."""

from __future__ import annotations

import sys

import pytest

from brainfoundry.core.errors import ConfigError
from tests.models.families.checks import CROP, check_learns, check_shapes, published, tiny

PACKAGE = "dynamic_network_architectures"


def test_parameters() -> None:
    pytest.importorskip(PACKAGE, reason="needs the extra resenc")
    assert published("resenc_unet", 4, 3) == 102_353_167


def test_maps_and_learns() -> None:
    pytest.importorskip(PACKAGE, reason="needs the extra resenc")
    network = tiny("resenc_unet", filters=4)
    check_shapes(network, [CROP, (32, 64, 32)])
    check_learns(network)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.architectures.unet", None)
    with pytest.raises(ConfigError, match=r"needs the package.*pip install 'brainfoundry\[resenc\]'"):
        tiny("resenc_unet")
