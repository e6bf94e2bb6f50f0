"""SegResNet (Myronenko 2018, winner of BraTS 2018; MONAI's, without its variational branch).

Four channels in and three maps out: 18,798,627 parameters with his 32 filters; 4,702,227 with the 16 of
MONAI's Model-Zoo bundle `brats_mri_segmentation`.
"""

from __future__ import annotations

import math

from monai.networks.nets import SegResNet
from torch import nn

from brainfoundry.models.families.base import Family

BLOCKS_DOWN = (1, 2, 2, 4)
BLOCKS_UP = (1, 1, 1)
GROUPS = 8
"""Of the group norm (Myronenko 2018)."""


def make(
    in_channels: int, out_channels: int, crop: tuple[int, int, int], *, filters: int, dropout: float
) -> nn.Module:
    """A SegResNet of `filters` after its first convolution, doubled at each of three levels."""
    return SegResNet(
        init_filters=filters,
        in_channels=in_channels,
        out_channels=out_channels,
        dropout_prob=dropout,
        norm=("GROUP", {"num_groups": math.gcd(GROUPS, filters)}),
        blocks_down=BLOCKS_DOWN,
        blocks_up=BLOCKS_UP,
    )


FAMILY = Family(
    name="segresnet",
    title="SegResNet",
    multiple=8,
    make=make,
    options={"filters": 32, "dropout": 0.2},
)
