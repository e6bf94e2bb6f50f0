"""A network over a volume larger than its window: overlapping windows, logits averaged with weights.

Where the windows lie and what they weigh is MONAI's (`monai.inferers.sliding_window_inference`), so that
published figures can be compared; a test holds the two equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor

from brainfoundry.core.errors import ConfigError
from brainfoundry.models import check_crop

Weights = Literal["gaussian", "constant"]
Mode = Literal["box", "exact"]

SIGMA_SCALE = 0.125
"""Standard deviation of the Gaussian weights in window sides (MONAI's default)."""


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """How a volume is cut into windows and put together again."""

    window: tuple[int, int, int]
    """Sides in voxels, multiples of 32; best the crop the network was trained on."""
    overlap: float = 0.5
    """Share of a window's side that neighbours share, 0 to below 1."""
    weights: Weights = "gaussian"
    """What a window's voxels weigh where windows overlap: less towards its border, or all the same."""
    batch: int = 1
    """Windows in the network at a time."""
    mode: Mode = "box"
    """`box`: only the box of the brain is computed; `exact`: the whole volume, as MONAI's inferer does."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", check_crop(self.window))
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap is {self.overlap}", fix="give a share from 0 to below 1, as 0.5")
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}", fix="give 1 or more windows at a time")
        for name, choices in (("weights", get_args(Weights)), ("mode", get_args(Mode))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", fix=f"choose {' or '.join(choices)}")


def window_starts(shape: Sequence[int], spec: WindowSpec) -> list[tuple[int, int, int]]:
    """First voxel of each window over a volume of `shape`, last axis fastest.

    Where the volume is smaller than the window, it is a voxel of the volume padded to the window.
    """
    size = [max(side, window) for side, window in zip(shape, spec.window, strict=True)]
    step = [
        window if side == window else max(int(window * (1 - spec.overlap)), 1)
        for side, window in zip(size, spec.window, strict=True)
    ]
    return [
        (int(d.start), int(h.start), int(w.start)) for d, h, w in dense_patch_slices(size, spec.window, step)
    ]


def sliding_window(
    network: Callable[[Tensor], Tensor],
    x_1CDHW: Tensor,
    spec: WindowSpec,
    *,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Logits (1, R, D, H, W) float32 of a whole volume, on its device. To be called in inference mode.

    Args:
        network: (N, C, *window) to (N, R, *window).
        x_1CDHW: float32; padded with zeros, centred, where it is smaller than the window.
        autocast: dtype the network computes in; None for float32. Sums are float32 always.

    Raises:
        ConfigError: the GPU's memory does not suffice.
    """
    try:
        return _sliding_window(network, x_1CDHW, spec, autocast)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(spec, x_1CDHW.shape[2:]) from error


def out_of_memory(spec: WindowSpec, shape: Sequence[int]) -> ConfigError:
    """What to change where the GPU's memory does not suffice for a volume of `shape`."""
    window, volume = ("x".join(map(str, s)) for s in (spec.window, shape))
    return ConfigError(
        f"out of GPU memory with {spec.batch} windows of {window} at a time over a volume of {volume}",
        fix=f"lower --batch (now {spec.batch}) or choose a smaller --window (now {window}); "
        "--overlap costs time, not memory",
    )


def _sliding_window(
    network: Callable[[Tensor], Tensor], x_1CDHW: Tensor, spec: WindowSpec, autocast: torch.dtype | None
) -> Tensor:
    device = x_1CDHW.device
    shape = x_1CDHW.shape[2:]
    missing = [max(window - side, 0) for side, window in zip(shape, spec.window, strict=True)]
    before = [n // 2 for n in missing]
    x_CDHW = x_1CDHW[0]
    if any(missing):
        sides = zip(reversed(before), reversed(missing), strict=True)  # F.pad begins with the last axis
        x_CDHW = F.pad(x_CDHW, [n for b, m in sides for n in (b, m - b)])
    places = [
        tuple(slice(a, a + side) for a, side in zip(start, spec.window, strict=True))
        for start in window_starts(shape, spec)
    ]
    weights_DHW = _weights(spec.window, spec.weights, device)
    norm_DHW = x_CDHW.new_zeros(x_CDHW.shape[1:], dtype=torch.float32)
    total_RDHW: Tensor | None = None
    computing = torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext()
    with computing:
        for first in range(0, len(places), spec.batch):
            here = places[first : first + spec.batch]
            logits_NRDHW = network(torch.stack([x_CDHW[(slice(None), *place)] for place in here]))
            if total_RDHW is None:
                total_RDHW = norm_DHW.new_zeros((logits_NRDHW.shape[1], *norm_DHW.shape))
            for logits_RDHW, place in zip(logits_NRDHW, here, strict=True):
                total_RDHW[(slice(None), *place)].addcmul_(logits_RDHW.float(), weights_DHW)
                norm_DHW[place] += weights_DHW
    assert total_RDHW is not None  # there is always a first window
    inside = tuple(slice(b, b + side) for b, side in zip(before, shape, strict=True))
    return total_RDHW.div_(norm_DHW)[(slice(None), *inside)][None]


@lru_cache(maxsize=8)
def _weights(window: tuple[int, int, int], kind: Weights, device: torch.device) -> Tensor:
    return compute_importance_map(window, mode=kind, sigma_scale=SIGMA_SCALE, device=device)
