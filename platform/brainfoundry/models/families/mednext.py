"""MedNeXt (Roy et al. 2023; MONAI's): a U-Net of large depthwise convolutions.

Its authors give 5.6, 10.5, 17.6 and 61.8 million parameters for S, B, M and L with kernels of 3. Four
channels in and three maps out, MONAI's without deep supervision have 5,551,043, 10,510,979, 17,533,635 and
61,726,883.
"""

from __future__ import annotations

from dataclasses import dataclass

from monai.networks.nets import MedNeXt
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families.base import Family


@dataclass(frozen=True)
class Variant:
    """Expansion ratios and blocks of the four levels, from the top down, and of the bottleneck; the decoder
    mirrors the encoder."""

    ratios: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    bottleneck_ratio: int
    bottleneck_blocks: int


VARIANTS = {
    "S": Variant((2, 2, 2, 2), (2, 2, 2, 2), 2, 2),
    "B": Variant((2, 3, 4, 4), (2, 2, 2, 2), 4, 2),
    "M": Variant((2, 3, 4, 4), (3, 4, 4, 4), 4, 4),
    "L": Variant((3, 4, 8, 8), (3, 4, 8, 8), 8, 8),
}
"""Roy et al. 2023, Table 1."""


def make(
    in_channels: int,
    out_channels: int,
    crop: tuple[int, int, int],
    *,
    variant: str,
    kernel: int,
    filters: int,
) -> nn.Module:
    """A MedNeXt; `kernel` is the side of its depthwise convolutions (the authors': 3 or 5)."""
    if variant not in VARIANTS:
        raise ConfigError(
            f"MedNeXt variant {variant!r} does not exist", fix=f"choose one of {', '.join(VARIANTS)}"
        )
    if kernel % 2 == 0:
        raise ConfigError(f"kernel is {kernel}", fix="give an odd number, 3 or 5")
    size = VARIANTS[variant]
    return MedNeXt(
        init_filters=filters,
        in_channels=in_channels,
        out_channels=out_channels,
        encoder_expansion_ratio=size.ratios,
        decoder_expansion_ratio=size.ratios[::-1],
        bottleneck_expansion_ratio=size.bottleneck_ratio,
        kernel_size=kernel,
        use_residual_connection=True,
        blocks_down=size.blocks,
        blocks_bottleneck=size.bottleneck_blocks,
        blocks_up=size.blocks[::-1],
    )


FAMILY = Family(
    name="mednext",
    title="MedNeXt",
    multiple=16,
    make=make,
    options={"variant": "S", "kernel": 3, "filters": 32},
    min_cells=2,
)
