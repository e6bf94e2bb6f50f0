"""The family of imported bundles: what may be built of a definition, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families.bundle import NETWORKS, definition_of
from tests.models.families.checks import check_learns, check_shapes, published, tiny

CROP = (16, 16, 16)
# As in the Model Zoo's brats_mri_segmentation.
ZOO = {
    "_target_": "SegResNet", "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "init_filters": 16,
    "in_channels": 4, "out_channels": 3, "dropout_prob": 0.2,
}  # fmt: skip
TINY = ZOO | {"init_filters": 8, "in_channels": 2, "blocks_down": [1, 1, 1, 1]}


def test_parameters_as_published() -> None:
    assert published("bundle", 4, 3, network=ZOO) == 4_702_227


def test_maps_and_learns() -> None:
    network = tiny("bundle", CROP, network=TINY)
    check_shapes(network, [CROP, (8, 16, 24)])
    check_learns(network, CROP)


@pytest.mark.parametrize("target", ["UNet", "monai.networks.nets.UNet", "monai.networks.nets.unet.UNet"])
def test_a_class_goes_by_any_of_its_names(target: str) -> None:
    assert definition_of({"_target_": target, "_desc_": "note", "strides": (2, 2)}) == {
        "_target_": "UNet",
        "strides": (2, 2),
    }


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "SegResNetVAE",
        "TorchVisionFCModel",
        "builtins.UNet",
        "monai.networks.netsx.UNet",
        "",
        "nets",
    ],
)
def test_other_classes_are_refused(target: str) -> None:
    with pytest.raises(
        ConfigError, match=f"only these of monai.networks.nets are built: {', '.join(NETWORKS)}"
    ):
        definition_of({"_target_": target})


@pytest.mark.parametrize(
    "argument",
    [
        {"act": "$__import__('os').system('true')"},
        {"channels": [16, "@width"]},
        {"norm": {"_target_": "BatchNorm3d"}},
        {"_requires_": "LoadImage"},
        {"act": print},
    ],
)
def test_arguments_that_are_not_plain_are_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expressions and components are not evaluated"):
        definition_of(ZOO | argument)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({}, "needs the definition of a network.*jobs/import_bundle.py"),
        (ZOO, "has in_channels 4, and 2 are asked for"),
        (TINY | {"out_channels": 4}, "has out_channels 4, and 3 are asked for"),
        (TINY | {"colour": 3}, "MONAI cannot make the bundle's SegResNet: .*colour"),
        (TINY | {"init_filters": 6}, "MONAI cannot make the bundle's SegResNet"),
    ],
)
def test_networks_that_cannot_be_made(network: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny("bundle", CROP, network=network)
