"""A linear head on a frozen encoder: what its features say of every voxel, without any training of it.

The encoder's hidden states are brought to one grid, whose cells have `CELL` voxels a side, and set side by
side. A ridge regression of each region's share of a cell gives one weight a feature. All that it needs of the
data are sums over cells (`Moments`), so it is exact, deterministic, and shared out over workers by adding
them up. Scores are interpolated back to voxels; a region is what reaches a level, and Dice at every level
follows from counts (`tally`, `dice_by_level`).
"""

from __future__ import annotations

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

CELL = 4
"""Voxels along each side of a cell: half the first hidden state's resolution, at an eighth of its cost."""
FEATURES = 1 + 2 + 4 + 8 + 16
"""Features in units of the encoder's feature size: the channels of the five hidden states."""
RIDGE = 1e-2
"""Penalty of the regression relative to the features' variance. From 1e-5 to 1e-1 the mean Dice of a random
nano on the tumour demo (8 subjects to fit, 2 of 4 modalities) moved by 0.03."""
LEVELS = 200
"""Levels at which a score may become a mark, from 0 to 1 (the whole cell)."""


def features(encoder: SwinTransformer, x_NCDHW: Tensor) -> Tensor:
    """The five hidden states on one grid: (N, K, D/4, H/4, W/4) float32.

    Each state is normalised over its channels by the encoder itself, as a decoder is given it.
    """
    d, h, w = (int(side) // CELL for side in x_NCDHW.shape[2:])
    states = []
    for state in encoder(x_NCDHW):
        finer = state.shape[2] >= d
        state = state.float()
        states.append(
            F.adaptive_avg_pool3d(state, (d, h, w))
            if finer
            else F.interpolate(state, (d, h, w), mode="trilinear", align_corners=False)
        )
    return torch.cat(states, dim=1)


class LinearProbe(nn.Module):
    """Encoder and head as one network: crops (N, C, D, H, W) to scores (N, R, D, H, W), about 0 to 1."""

    def __init__(self, encoder: SwinTransformer, weights_RK: Tensor, bias_R: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.weights_RK, self.bias_R = weights_RK, bias_R

    def forward(self, x_NCDHW: Tensor) -> Tensor:
        """The share of each region that the head sees around each voxel."""
        found_NKdhw = features(self.encoder, x_NCDHW)
        with torch.autocast(x_NCDHW.device.type, enabled=False):
            scores_NRdhw = torch.einsum("nkdhw,rk->nrdhw", found_NKdhw, self.weights_RK)
            scores_NRdhw = scores_NRdhw + self.bias_R.view(-1, 1, 1, 1)
            return F.interpolate(scores_NRdhw, x_NCDHW.shape[2:], mode="trilinear", align_corners=False)


def to_cells(regions_NRDHW: Tensor) -> Tensor:
    """Each region's share of every cell, (N, R, D/4, H/4, W/4)."""
    return F.avg_pool3d(regions_NRDHW, CELL)


class Moments:
    """Sums over cells of features, shares and all their products: what the regression needs of the data.

    Attributes:
        sums: (K + R + 1)^2 float64; those of several workers may be added.
    """

    def __init__(self, n_features: int, n_regions: int, device: torch.device) -> None:
        side = n_features + n_regions + 1
        self.sums = torch.zeros(side, side, dtype=torch.float64, device=device)
        self._n_features = n_features

    def add(self, found_NKdhw: Tensor, shares_NRdhw: Tensor) -> None:
        """Take in the cells of crops: their features, and each region's share of them."""
        ones_N1dhw = torch.ones_like(shares_NRdhw[:, :1])
        cells = torch.cat([found_NKdhw, shares_NRdhw, ones_N1dhw], dim=1).movedim(1, -1).flatten(0, -2)
        self.sums += (cells.T @ cells).double()

    @property
    def cells(self) -> int:
        """How many were taken in."""
        return int(self.sums[-1, -1])

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights (R, K) and bias (R,) of the ridge regression, float32."""
        k = self._n_features
        mean = self.sums[-1, :-1] / self.sums[-1, -1]
        covariance = self.sums[:-1, :-1] / self.sums[-1, -1] - torch.outer(mean, mean)
        scale_K = covariance.diagonal()[:k].clamp(min=1e-12).sqrt()
        correlation_KK = covariance[:k, :k] / torch.outer(scale_K, scale_K)
        correlation_KK.diagonal().add_(RIDGE)
        weights_RK = torch.linalg.solve(correlation_KK, covariance[:k, k:] / scale_K[:, None]).T / scale_K
        return weights_RK.float(), (mean[k:] - weights_RK @ mean[:k]).float()


def tally(scores_RDHW: Tensor, truth_RDHW: Tensor) -> Tensor:
    """Voxels by region, whether they are in it (0, 1), and level of their score: int64 (R, 2, LEVELS)."""
    regions = len(scores_RDHW)
    level = (scores_RDHW * LEVELS).clamp(0, LEVELS - 1).long()
    kind = 2 * torch.arange(regions, device=level.device).view(-1, 1, 1, 1) + (truth_RDHW > 0).long()
    counts = torch.bincount((kind * LEVELS + level).flatten(), minlength=regions * 2 * LEVELS)
    return counts.view(regions, 2, LEVELS)


def dice_by_level(counts_R2L: Tensor) -> Tensor:
    """Dice (R, LEVELS) float64 where voxels at or above a level are marked; NaN for a region that is not
    there."""
    above_R2L = counts_R2L.flip(-1).cumsum(-1).flip(-1).double()
    region_R1 = counts_R2L[:, 1].sum(-1, keepdim=True).double()
    dice_RL = 2 * above_R2L[:, 1] / (above_R2L.sum(1) + region_R1)
    return torch.where(region_R1 > 0, dice_RL, torch.nan)
