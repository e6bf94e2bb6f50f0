"""Deep supervision inside a network: the logits of every level, added up at full size.

nnU-Net gives the levels losses of their own, which an objective would have to know of. Their sum as *the*
logits (Kayalibay et al. 2017; Isensee et al. 2017, third of BraTS 2017) supervises all levels by one loss, is
the same in training and in prediction, and leaves no parameter without a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional as F


def add_up(finest_NRDHW: torch.Tensor, coarser: Iterable[torch.Tensor]) -> torch.Tensor:
    """The finest logits plus those of coarser levels, each interpolated to their size."""
    size = finest_NRDHW.shape[2:]
    for logits in coarser:
        # Not in place: autograd may still need the terms.
        finest_NRDHW = finest_NRDHW + F.interpolate(logits, size, mode="trilinear", align_corners=False)
    return finest_NRDHW
