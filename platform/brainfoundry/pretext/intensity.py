"""From stored codes to what the network sees: intensity rules, applied on the device to whole batches.

A code q stands for the value `q * slope + inter`. The rule is recorded on the checkpoint's card, because
weights learnt under one are of little use under another:

- `zscore_nonzero`: z-score by mean and standard deviation of the volume's own non-zero voxels; background 0.
- `zscore_crop`: the same by those of the crop's own non-zero voxels, as the released fine-tuning code does
  (NormalizeIntensity of the non-zero voxels of each channel, after the crop). A crop without any stays 0.
- `ct_window`: the released pretraining code's rule, (value + 1000) / 2000 clipped to 0..1. On MRI it maps the
  background to 0.5 and saturates whatever is above 1000; padding outside the scanned volume stays 0.

Under each, every voxel of a modality the session came without is exactly 0, and counts as none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from brainfoundry.core.errors import ConfigError

WINDOW = (-1000.0, 1000.0)
"""The window of `ct_window`, in file units (released code: ScaleIntensityRange of -1000..1000 to 0..1)."""

_SLAB = 16
"""Slices of a crop that stay in a core's cache: 0.6 MB of float32 at 96^3."""


class CodedBatch(Protocol):
    """The fields of a batch that intensity rules read.

    Attributes:
        codes_NCDHW: int16 or float32.
        slope_NC, inter_NC, zero_code_NC, mean_NC, sd_NC: float32; mean and sd of the non-zero voxels in file
            units.
        present_NC: bool, False for modalities the session came without.
        inside_lo_N3, inside_hi_N3: int32, the part of the crop (half-open, voxels) inside the scanned volume.
    """

    codes_NCDHW: torch.Tensor
    slope_NC: torch.Tensor
    inter_NC: torch.Tensor
    zero_code_NC: torch.Tensor
    mean_NC: torch.Tensor
    sd_NC: torch.Tensor
    present_NC: torch.Tensor
    inside_lo_N3: torch.Tensor
    inside_hi_N3: torch.Tensor


def normalise(batch: CodedBatch, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised crops (N, C, D, H, W) float32, and the share of scanned voxels that saturated (scalar
    float32).

    The batch is left as it was. Nothing waits for the device.

    Raises:
        ConfigError: there is no such rule.
    """
    if rule not in RULES:
        raise ConfigError(f"intensity rule '{rule}' does not exist", fix=f"choose one of {', '.join(RULES)}")
    return RULES[rule](batch)


def _wide(per_channel_NC: torch.Tensor) -> torch.Tensor:
    return per_channel_NC[:, :, None, None, None]


def inside_mask(lo_N3: torch.Tensor, hi_N3: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """True in the half-open boxes [lo, hi) of crops of the given spatial shape: bool (N, 1, D, H, W)."""
    mask = torch.ones((), dtype=torch.bool, device=lo_N3.device)
    for axis, side in enumerate(shape):
        at = torch.arange(side, device=lo_N3.device)
        line = (at >= lo_N3[:, axis, None]) & (at < hi_N3[:, axis, None])
        mask = mask & line.view(-1, 1, *(side if a == axis else 1 for a in range(3)))
    return mask


def _zscore_nonzero(batch: CodedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    # A modality without contrast (sd 0 or unknown) is centred and left at its own scale instead of blown up.
    sd_NC = torch.where(batch.sd_NC > 0, batch.sd_NC, torch.ones_like(batch.sd_NC))
    mean_NC = torch.nan_to_num(batch.mean_NC)
    x = _affine(batch, batch.slope_NC / sd_NC, (batch.inter_NC - mean_NC) / sd_NC)
    return x.masked_fill_(_background(batch), 0.0), x.new_zeros(())


def _zscore_crop(batch: CodedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    x = _affine(batch, batch.slope_NC, batch.inter_NC)
    background = _background(batch)
    count_NC = (~background).sum(dim=(2, 3, 4)).clamp_(min=1)
    mean_NC = x.masked_fill_(background, 0.0).sum(dim=(2, 3, 4)) / count_NC
    x.sub_(_wide(mean_NC)).masked_fill_(background, 0.0)
    sd_NC = (x.square().sum(dim=(2, 3, 4)) / count_NC).sqrt_()
    # Without contrast: centred and left at its own scale, as MONAI does.
    return x.div_(_wide(torch.where(sd_NC > 0, sd_NC, torch.ones_like(sd_NC)))), x.new_zeros(())


def _background(batch: CodedBatch) -> torch.Tensor:
    """True where a voxel holds the code of value 0: bool (N, C, D, H, W)."""
    return batch.codes_NCDHW == _wide(batch.zero_code_NC).to(batch.codes_NCDHW.dtype)


def _ct_window(batch: CodedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = WINDOW
    x = _affine(batch, batch.slope_NC / (high - low), (batch.inter_NC - low) / (high - low), (0.0, 1.0))
    _clear_outside(x, batch.inside_lo_N3, batch.inside_hi_N3)
    # Padding reads as value 0, which the window holds, so no padding voxel is counted here.
    saturated = _count_outside(batch, low, high)
    voxels_N = (batch.inside_hi_N3 - batch.inside_lo_N3).clamp(min=0).prod(dim=1)
    scanned = (voxels_N * batch.present_NC.sum(dim=1)).sum()
    return x, saturated.to(torch.float32) / scanned.clamp(min=1)


def _affine(
    batch: CodedBatch,
    a_NC: torch.Tensor,
    b_NC: torch.Tensor,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> torch.Tensor:
    """codes * a + b as float32, clamped to the limits; 0 in absent channels."""
    codes_NCDHW = batch.codes_NCDHW
    # Their codes are finite: 0 * code + 0 is exactly 0, and costs no pass over the voxels.
    a_NC, b_NC = (torch.where(batch.present_NC, v, torch.zeros_like(v)) for v in (a_NC, b_NC))
    if codes_NCDHW.device.type != "cpu":
        x = codes_NCDHW.to(torch.float32, copy=True).mul_(_wide(a_NC)).add_(_wide(b_NC))
        return x.clamp_(*limits) if limits[1] < math.inf else x
    # On a CPU a slab of a channel at a time: it stays in the cache, and a plain number is cheaper than a
    # broadcast one.
    x = torch.empty(codes_NCDHW.shape, dtype=torch.float32)
    for x_CDHW, codes_CDHW, a_C, b_C in zip(x, codes_NCDHW, a_NC.tolist(), b_NC.tolist(), strict=True):
        for x_DHW, codes_DHW, a, b in zip(x_CDHW, codes_CDHW, a_C, b_C, strict=True):
            for part, codes in zip(x_DHW.split(_SLAB), codes_DHW.split(_SLAB), strict=True):
                part.copy_(codes).mul_(a).add_(b)
                if limits[1] < math.inf:
                    part.clamp_(*limits)
    return x


def _count_outside(batch: CodedBatch, low: float, high: float) -> torch.Tensor:
    """Number of voxels whose value is below `low` or above `high`."""
    codes_NCDHW = batch.codes_NCDHW
    # Compared as codes, which are half the bytes.
    at_low, at_high = (torch.nan_to_num((v - batch.inter_NC) / batch.slope_NC, nan=0.0) for v in (low, high))
    first, last = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
    if codes_NCDHW.device.type != "cpu":
        return ((codes_NCDHW < _wide(first)) | (codes_NCDHW > _wide(last))).sum()
    count = 0  # NumPy counts true values several times faster than torch does
    limits = zip(first.flatten().tolist(), last.flatten().tolist(), strict=True)
    for codes, (lo, hi) in zip(codes_NCDHW.flatten(0, 1).numpy(), limits, strict=True):
        if codes.max() > hi:
            count += int(np.count_nonzero(codes > hi))
        if codes.min() < lo:
            count += int(np.count_nonzero(codes < lo))
    return torch.tensor(count)


def _clear_outside(x: torch.Tensor, lo_N3: torch.Tensor, hi_N3: torch.Tensor) -> None:
    """Set what lies outside [lo, hi) to 0, in place."""
    if x.device.type != "cpu":
        x.mul_(inside_mask(lo_N3, hi_N3, x.shape[2:]))
        return
    for x_CDHW, lo, hi in zip(x, lo_N3.tolist(), hi_N3.tolist(), strict=True):
        for axis in range(3):  # mostly empty slices: no padding, nothing to do
            x_CDHW.narrow(axis + 1, 0, lo[axis]).zero_()
            x_CDHW.narrow(axis + 1, hi[axis], x_CDHW.shape[axis + 1] - hi[axis]).zero_()


RULES: dict[str, Callable[[CodedBatch], tuple[torch.Tensor, torch.Tensor]]] = {
    "zscore_nonzero": _zscore_nonzero,
    "zscore_crop": _zscore_crop,
    "ct_window": _ct_window,
}
"""Every intensity rule by name."""
