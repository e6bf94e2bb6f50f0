"""UNETR (Hatamizadeh et al. 2022; MONAI's): a vision transformer on patches of 16^3, a convolutional decoder.

Its authors give 92.58 million parameters for one channel in, 14 maps out and crops of 96^3; MONAI's has
92,784,046 there. Four channels in and three maps out: 102,222,387 at 96^3.
"""

from __future__ import annotations

from monai.networks.nets import UNETR
from torch import nn

from brainfoundry.models.families.base import Family, heads_divide

PATCH = 16


def make(
    in_channels: int,
    out_channels: int,
    crop: tuple[int, int, int],
    *,
    filters: int,
    embed: int,
    heads: int,
    hidden: int,
    dropout: float,
) -> nn.Module:
    """A UNETR for one size of crop: its position embedding has a vector a patch."""
    heads_divide("unetr", embed, heads)
    network = UNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        img_size=crop,
        feature_size=filters,
        hidden_size=embed,
        mlp_dim=hidden,
        num_heads=heads,
        dropout_rate=dropout,
    )
    # MONAI's blocks have a norm for cross-attention, which a UNETR has none of: it would never learn.
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()
    return network


FAMILY = Family(
    name="unetr",
    title="UNETR",
    multiple=PATCH,
    make=make,
    options={"filters": 16, "embed": 768, "heads": 12, "hidden": 3072, "dropout": 0.0},
    fixed_crop=True,
)
