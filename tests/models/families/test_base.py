"""Families by name, their options and crops: what is there, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families import Family, family_names, load_family

NAMES = ("bundle", "dynunet", "mednext", "resenc_unet", "segresnet", "swinunetr", "transbts", "unetr")


class Toy(nn.Conv3d):
    """A network that remembers what it was made of."""

    def __init__(self, in_channels: int, out_channels: int, crop: tuple[int, int, int], **options: Any):
        super().__init__(in_channels, out_channels, 1)
        self.made = (crop, options)


TOY = Family(
    name="toy",
    title="Toy",
    multiple=16,
    make=Toy,
    options={"filters": 8, "dropout": 0.0, "heads": True, "kind": "S"},
    min_cells=2,
)


def test_every_file_is_a_family_and_says_its_name() -> None:
    assert family_names() == NAMES
    for name in NAMES:
        family = load_family(name)
        assert family.name == name and family.title


@pytest.mark.parametrize("name", ["resnet", "base", "deep", "../segresnet", ""])
def test_an_unknown_family_names_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' does not exist.*dynunet, mednext"):
        load_family(name)


def test_options_keep_their_defaults() -> None:
    network = TOY.build(2, 3, [32, 32, 32], {"filters": 4, "dropout": 0})
    assert network.made == ((32, 32, 32), {"filters": 4, "dropout": 0.0, "heads": True, "kind": "S"})
    assert TOY.build(2, 3, (32, 32, 32)).made[1] == TOY.options
    assert TOY.options["filters"] == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filter": 4}, r"family toy has no option 'filter'. Fix: did you mean filters\?"),
        ({"xyz": 4}, "its options are filters, dropout, heads, kind"),
        ({"filters": 4.0}, "option filters of family toy is 4.0. Fix: give a value like 8"),
        ({"filters": True}, "option filters of family toy is True"),
        ({"filters": "4"}, "option filters of family toy is '4'"),
        ({"filters": 0}, "give 1 or more"),
        ({"dropout": 1.0}, "give a share from 0 to below 1"),
        ({"dropout": float("nan")}, "give a share from 0 to below 1"),
        ({"heads": 1}, "option heads of family toy is 1"),
        ({"kind": None}, "option kind of family toy is None"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TOY.build(2, 3, (32, 32, 32), options)


def test_a_family_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match="it has none"):
        Family(name="bare", title="Bare", multiple=8, make=Toy).settle({"filters": 4})


@pytest.mark.parametrize(
    ("crop", "says"),
    [
        ((32, 32), "is not three whole numbers"),
        ((32, 32, 32.0), "is not three whole numbers"),
        ((32, 32, 0), "is not three whole numbers"),
        ((40, 32, 30), "multiples of 16 voxels. Fix: the nearest valid size is 32x32x32"),
        ((16, 16, 16), "would have 1 cell.*such as 32x16x16"),
    ],
)
def test_crops_that_are_refused(crop: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TOY.build(2, 3, crop)


@pytest.mark.parametrize("counts", [(0, 3), (2, 0), (True, 3), (2, 3.0)])
def test_channels_that_are_refused(counts: Any) -> None:
    with pytest.raises(ConfigError, match="channels"):
        TOY.build(*counts, (32, 32, 32))


def test_a_network_of_fixed_crop_refuses_other_windows() -> None:
    family = Family(name="toy", title="Toy", multiple=16, make=Toy, fixed_crop=True)
    network = family.build(2, 3, (32, 16, 16))
    assert network(torch.zeros(1, 2, 32, 16, 16)).shape == (1, 3, 32, 16, 16)
    with pytest.raises(
        ConfigError, match=r"built for crops of 32x16x16, and is shown 16x16x16.*windows of 32x16x16"
    ):
        network(torch.zeros(1, 2, 16, 16, 16))
