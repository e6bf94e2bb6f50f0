"""A residual-encoder U-Net of the size of nnU-Net's ResEnc-L, from its authors' library of networks.

`dynamic_network_architectures` is an optional package (`pip install brainfoundry[resenc]`). Four channels in
and three maps out: 102,353,167 parameters. The logits of all levels are added up (`deep.py`), where nnU-Net
gives each a loss of its own.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families.base import Family
from brainfoundry.models.families.deep import add_up
from brainfoundry.models.families.dynunet import LEVELS, widths

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks of the encoder's levels (nnU-Net's planner of residual encoders)."""
_LIBRARY = "dynamic_network_architectures.architectures.unet"


class SummedLevels(nn.Module):
    """A network that gives the logits of all its levels, finest first, and their sum as its own."""

    def __init__(self, levels: nn.Module) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x_NCDHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, R, D, H, W)."""
        finest, *coarser = self.levels(x_NCDHW)
        return add_up(finest, coarser)


def make(in_channels: int, out_channels: int, crop: tuple[int, int, int], *, filters: int) -> nn.Module:
    """A U-Net with a deep residual encoder and one convolution a level in its decoder."""
    return SummedLevels(
        _library().ResidualEncoderUNet(
            input_channels=in_channels,
            n_stages=LEVELS,
            features_per_stage=widths(filters),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=(1, *[2] * (LEVELS - 1)),
            n_blocks_per_stage=BLOCKS,
            num_classes=out_channels,
            n_conv_per_stage_decoder=(1,) * (LEVELS - 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
    )


def _library() -> Any:
    try:
        return importlib.import_module(_LIBRARY)
    except ImportError as error:
        raise ConfigError(
            f"family resenc_unet needs the package dynamic_network_architectures: {error}",
            fix="pip install 'brainfoundry[resenc]'",
        ) from error


FAMILY = Family(
    name="resenc_unet",
    title="ResEnc-L U-Net",
    multiple=2 ** (LEVELS - 1),
    make=make,
    options={"filters": 32},
    min_cells=2,
)
