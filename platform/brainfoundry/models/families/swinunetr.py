"""SwinUNETR, the family whose encoder a pretraining run hands over (`models.segmenter`).

62,191,941 / 64,076,853 / 69,731,589 parameters as tiny / small / big, four channels in and three maps out:
the paper's 62M, 64M and 69M.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from brainfoundry.models.crops import STRIDE
from brainfoundry.models.families.base import Family
from brainfoundry.models.segmenter import build_segmenter
from brainfoundry.models.sizes import EncoderSpec


def make(
    in_channels: int, out_channels: int, crop: tuple[int, int, int], *, size: str, merging: Any
) -> nn.Module:
    """A SwinUNETR; a run of ours gives more than these two options, and builds it from its `EncoderSpec`."""
    return build_segmenter(EncoderSpec(size=size, in_channels=in_channels, merging=merging), out_channels)


FAMILY = Family(
    name="swinunetr",
    title="SwinUNETR",
    multiple=STRIDE,
    make=make,
    options={"size": "tiny", "merging": "current"},
    min_cells=2,
)
