"""MedNeXt: its authors' counts, MONAI's own variants, learning."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.mednext import create_mednext

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families import load_family
from tests.models.families.checks import check_learns, check_shapes, published, tiny

CROP = (32, 32, 32)
# Kernel 3, four channels in, three maps out; Roy et al. 2023 print 5.6, 10.5, 17.6 and 61.8 million.
PARAMETERS = {"S": 5_551_043, "B": 10_510_979, "M": 17_533_635, "L": 61_726_883}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_and_layers_are_monais(variant: str) -> None:
    assert published("mednext", 4, 3, variant=variant) == PARAMETERS[variant]
    with torch.device("meta"):
        ours = load_family("mednext").build(4, 3, CROP, {"variant": variant, "kernel": 5})
        theirs = create_mednext(variant, 3, 4, 3, 5)
    assert str(ours) == str(theirs)


def test_maps_and_learns() -> None:
    network = tiny("mednext", CROP, filters=4)
    check_shapes(network, [CROP, (16, 32, 48)])
    check_learns(network, CROP)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"variant": "XL"}, "variant 'XL' does not exist.*S, B, M, L"), ({"kernel": 4}, "give an odd number")],
)
def test_what_does_not_exist_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny("mednext", CROP, **options)
