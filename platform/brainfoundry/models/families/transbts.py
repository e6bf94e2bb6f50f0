"""TransBTS (Wang et al. 2021), written anew from its description: convolutions, a transformer, a decoder.

The encoder takes a crop down to an eighth. A 3x3x3 convolution makes its 128 features 512, every voxel of
that grid is a token with a learnt position, and four transformer layers let all tokens see each other. Then
back to 128 features, and up again with the encoder's features beside.

The released network has 32,987,588 parameters for four channels in, four classes out and crops of 128^3.
Among them is a linear layer, 512 to 512, that it declares and never uses (262,656): `unused_layer` adds it,
frozen, so that the figure can be held against ours. Without it, as is the default, there are 32,724,932, or
32,724,915 for three regions instead of four classes.

Group norms throughout: the released decoder's batch norms would tie a crop's answer to its neighbours in the
batch, and to how many workers share it.
"""

from __future__ import annotations

import math

import torch
from monai.networks.blocks import MLPBlock
from torch import nn
from torch.nn import functional as F

from brainfoundry.models.families.base import Family, heads_divide

PATCH = 8
"""Voxels of an axis to a token."""
BLOCKS = (1, 2, 2, 4)
"""Residual blocks of the encoder at full size, a half, a quarter and an eighth."""
STEM_DROPOUT = 0.2
"""After the first convolution."""


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, width), width)


def _convolve(width: int, to: int, stride: int = 1) -> nn.Module:
    return nn.Conv3d(width, to, kernel_size=3, stride=stride, padding=1)


def _unit(width: int, to: int) -> list[nn.Module]:
    return [_norm(width), nn.ReLU(inplace=True), _convolve(width, to)]


class Residual(nn.Module):
    """Norm, ReLU and convolution, twice, around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_unit(width, width), *_unit(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        out: torch.Tensor = x + self.body(x)
        return out


class Attention(nn.Module):
    """All tokens see each other; queries, keys and values have no bias."""

    def __init__(self, embed: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(embed, 3 * embed, bias=False)
        self.out = nn.Linear(embed, embed)

    def forward(self, x_NTE: torch.Tensor) -> torch.Tensor:
        """(N, T, E) to (N, T, E)."""
        q, k, v = self.qkv(x_NTE).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Unlike MONAI's block, which drops weights in eval mode too where it does not hold them all at once.
        dropped = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped)
        out: torch.Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """A transformer layer, norms first."""

    def __init__(self, embed: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed), nn.LayerNorm(embed)
        self.attention = Attention(embed, heads, dropout)
        self.drop = nn.Dropout(dropout)
        self.mlp = MLPBlock(embed, hidden, dropout)

    def forward(self, x_NTE: torch.Tensor) -> torch.Tensor:
        """(N, T, E) to (N, T, E)."""
        x_NTE = x_NTE + self.drop(self.attention(self.norm1(x_NTE)))
        out: torch.Tensor = x_NTE + self.mlp(self.norm2(x_NTE))
        return out


class Up(nn.Module):
    """Doubles the grid, halves the features, and takes in the encoder's of that size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.narrow = nn.Conv3d(width, half, kernel_size=1)
        self.upsample = nn.ConvTranspose3d(half, half, kernel_size=2, stride=2)
        self.merge = nn.Conv3d(width, half, kernel_size=1)
        self.refine = Residual(half)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(N, width, d, h, w) and (N, width/2, 2d, 2h, 2w) to the shape of the latter."""
        both = torch.cat([self.upsample(self.narrow(x)), skip], dim=1)
        out: torch.Tensor = self.refine(self.merge(both))
        return out


class TransBTS(nn.Module):
    """The network, for one size of crop."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        crop: tuple[int, int, int],
        *,
        filters: int,
        embed: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        unused_layer: bool,
    ) -> None:
        super().__init__()
        heads_divide("transbts", embed, heads)
        widths = [filters * 2**level for level in range(len(BLOCKS))]
        self.stem = nn.Sequential(_convolve(in_channels, filters), nn.Dropout3d(STEM_DROPOUT))
        self.levels = nn.ModuleList()
        for level, (width, blocks) in enumerate(zip(widths, BLOCKS, strict=True)):
            down = [_convolve(width // 2, width, stride=2)] if level else []
            self.levels.append(nn.Sequential(*down, *(Residual(width) for _ in range(blocks))))
        deepest = widths[-1]
        self.to_tokens = nn.Sequential(*_unit(deepest, embed))
        self.position = nn.Parameter(torch.zeros(1, math.prod(side // PATCH for side in crop), embed))
        self.drop = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(Layer(embed, heads, hidden, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(embed)
        self.from_tokens = nn.Sequential(
            _convolve(embed, deepest), *_unit(deepest, deepest), _norm(deepest), nn.ReLU(inplace=True),
            Residual(deepest),
        )  # fmt: skip
        self.ups = nn.ModuleList(Up(width) for width in reversed(widths[1:]))
        self.head = nn.Conv3d(filters, out_channels, kernel_size=1)
        if unused_layer:
            self.unused = nn.Linear(embed, embed).requires_grad_(False)

    def forward(self, x_NCDHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, R, D, H, W)."""
        x = self.stem(x_NCDHW)
        skips = []
        for level in self.levels:
            x = level(x)
            skips.append(x)
        grid_NEdhw = self.to_tokens(skips.pop())
        tokens_NTE = grid_NEdhw.flatten(2).transpose(1, 2) + self.position
        tokens_NTE = self.norm(self.layers(self.drop(tokens_NTE)))
        x = self.from_tokens(tokens_NTE.transpose(1, 2).unflatten(2, grid_NEdhw.shape[2:]))
        for up in self.ups:
            x = up(x, skips.pop())
        logits_NRDHW: torch.Tensor = self.head(x)
        return logits_NRDHW


FAMILY = Family(
    name="transbts",
    title="TransBTS",
    multiple=PATCH,
    make=TransBTS,
    options={
        "filters": 16,
        "embed": 512,
        "layers": 4,
        "heads": 8,
        "hidden": 4096,
        "dropout": 0.1,
        "unused_layer": False,
    },
    fixed_crop=True,
)
