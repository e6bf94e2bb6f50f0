"""SegResNet: the published counts, shapes, learning."""

from __future__ import annotations

from tests.models.families.checks import check_learns, check_shapes, published, tiny

CROP = (32, 32, 32)


def test_parameters_as_published() -> None:
    assert published("segresnet", 4, 3) == 18_798_627
    assert published("segresnet", 4, 3, filters=16) == 4_702_227  # the Model Zoo's


def test_maps_and_learns() -> None:
    network = tiny("segresnet", CROP, filters=4)
    check_shapes(network, [CROP, (8, 16, 24)])
    check_learns(network, CROP)
