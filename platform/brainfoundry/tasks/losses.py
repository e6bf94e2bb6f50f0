"""Losses on overlapping regions, one sigmoid map each: soft Dice, alone or with binary cross-entropy.

Every figure is a mean over crops of something that depends on one crop alone, so it is the same on any number
of workers, and with any number of micro-batches.
"""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from brainfoundry.core.errors import ConfigError

PARTS: dict[str, tuple[str, ...]] = {
    "dice": ("dice_loss",),
    "dice_ce": ("dice_loss", "ce_loss"),
}
"""Every loss by name, and the parts whose sum it is."""


class RegionLoss:
    """Loss of logits against region masks.

    `dice` is the released code's: MONAI's DiceLoss on sigmoids, mean over crops and regions. `dice_ce` adds
    binary cross-entropy, mean over voxels, region by region. MONAI's DiceCELoss does that for one region
    only; of several it takes the softmax, as if a voxel could not be in two of them.

    Args:
        name: one of `PARTS`.
        squared: squares in Dice's denominator and no smoothing of the numerator (released code:
            `--squared_dice`, smooth_nr 0, smooth_dr 1e-6).

    Raises:
        ConfigError: no such loss.
    """

    def __init__(self, name: str, *, squared: bool = False) -> None:
        if name not in PARTS:
            raise ConfigError(f"loss '{name}' does not exist", fix=f"choose one of {', '.join(PARTS)}")
        self.parts = PARTS[name]
        smooth_nr, smooth_dr = (0.0, 1e-6) if squared else (1e-5, 1e-5)
        self._dice = DiceLoss(
            to_onehot_y=False, sigmoid=True, squared_pred=squared, smooth_nr=smooth_nr, smooth_dr=smooth_dr
        )

    def __call__(self, logits_NRDHW: torch.Tensor, truth_NRDHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts by name, float32 scalars with gradient, whatever the autocast."""
        # Sums over millions of voxels. No operation here is one that autocast would take back to 16 bits.
        logits, truth = logits_NRDHW.float(), truth_NRDHW.float()
        losses = {"dice_loss": self._dice(logits, truth)}
        if "ce_loss" in self.parts:
            losses["ce_loss"] = F.binary_cross_entropy_with_logits(logits, truth)
        return losses


@torch.no_grad()
def hard_dice(logits_NRDHW: torch.Tensor, truth_NRDHW: torch.Tensor) -> torch.Tensor:
    """Dice of each region at probability 0.5, mean over crops: float32 (R,), never NaN.

    A crop without the region counts as 1 where nothing was predicted either, else as 0. For watching a run
    only: scores are computed on whole volumes (`Task.score`).
    """
    predicted, truth = logits_NRDHW > 0, truth_NRDHW > 0.5
    overlap_NR = (predicted & truth).sum(dim=(2, 3, 4))
    size_NR = predicted.sum(dim=(2, 3, 4)) + truth.sum(dim=(2, 3, 4))
    return torch.where(size_NR > 0, 2 * overlap_NR / size_NR.clamp(min=1), 1.0).mean(dim=0)
