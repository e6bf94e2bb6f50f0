"""MONAI's DynUNet with the plan that nnU-Net makes for BraTS: six levels of 32 to 320 filters.

Four channels in and three maps out: 31,185,708 parameters, with instance norms that have no weights of their
own and three heads of deep supervision (31,184,355 without the heads). With the heads, which are there by
default, the logits of the four finest levels are added up (`deep.py`). nnU-Net's own network has five heads,
weights in its norms and biases in its convolutions: 31,198,991.
"""

from __future__ import annotations

import torch
from monai.networks.nets import DynUNet
from torch import nn

from brainfoundry.models.families.base import Family
from brainfoundry.models.families.deep import add_up

LEVELS = 6
HEADS = 3


class SummedDynUNet(DynUNet):
    """A DynUNet with deep supervision whose logits are the sum over its levels."""

    def forward(self, x_NCDHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, R, D, H, W)."""
        finest = self.output_block(self.skip_layers(x_NCDHW))
        logits = add_up(finest, self.heads)
        # MONAI's levels leave their logits in this list. Held on to, they would keep their graph alive.
        self.heads[:] = [torch.empty(0)] * len(self.heads)
        return logits


def widths(filters: int) -> tuple[int, ...]:
    """nnU-Net's: doubled at each level, up to ten times the first."""
    return tuple(min(filters * 2**level, filters * 10) for level in range(LEVELS))


def make(
    in_channels: int,
    out_channels: int,
    crop: tuple[int, int, int],
    *,
    filters: int,
    deep_supervision: bool,
) -> nn.Module:
    """A plain U-Net: two convolutions a level, strides of 2, transposed convolutions up."""
    strides = (1, *[2] * (LEVELS - 1))
    kind = SummedDynUNet if deep_supervision else DynUNet
    return kind(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(3,) * LEVELS,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=widths(filters),
        norm_name="instance",
        deep_supervision=deep_supervision,
        deep_supr_num=HEADS if deep_supervision else 1,
    )


FAMILY = Family(
    name="dynunet",
    title="nnU-Net plan (MONAI DynUNet)",
    multiple=2 ** (LEVELS - 1),
    make=make,
    options={"filters": 32, "deep_supervision": True},
    min_cells=2,
)
