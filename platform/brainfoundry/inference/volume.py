"""Probabilities of a whole volume: the box of the brain, windows, networks and mirror images averaged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.transforms.utils import generate_spatial_bounding_box
from scipy.special import entr
from torch import Tensor

from brainfoundry.core.errors import ConfigError
from brainfoundry.inference.windows import WindowSpec, out_of_memory, sliding_window, window_starts

Triple = tuple[int, int, int]
Box = tuple[Triple, Triple]
"""First voxel and one past the last, along each axis."""

_AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_MIRRORS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]
"""The eight ways to flip (N, C, D, H, W) along its spatial axes, the first of them not at all."""


def brain_box(values_CDHW: np.ndarray) -> Box:
    """The box of what is not 0 in any channel.

    Args:
        values_CDHW: values as scanned, or which voxels are foreground; intensity rules may give the
            background another value than 0.
    """
    lo, hi = generate_spatial_bounding_box(values_CDHW, select_fn=lambda values: values != 0)
    return (int(lo[0]), int(lo[1]), int(lo[2])), (int(hi[0]), int(hi[1]), int(hi[2]))


def window_box(box: Box, shape: Sequence[int], spec: WindowSpec) -> Box:
    """The part of a volume of `shape` that is computed for `box`: the fewest windows that cover it.

    They are windows of the whole volume's own grid, so that mode `box` leaves windows out and moves none: a
    network with instance norms answers otherwise where a window shows something else around a voxel.
    """
    places = window_starts(shape, spec)
    sides = []
    for axis, (lo, hi, side, window) in enumerate(zip(*box, shape, spec.window, strict=True)):
        starts = sorted({place[axis] for place in places})
        first = max(start for start in starts if start <= lo)
        last = next((start for start in starts if start >= first and start + window >= hi), starts[-1])
        sides.append((first, min(last + window, side)))
    (a, b), (c, d), (e, f) = sides
    return (a, c, e), (b, d, f)


def predict_probabilities(
    networks: Sequence[Callable[[Tensor], Tensor]],
    x_CDHW: Tensor,
    box: Box,
    spec: WindowSpec,
    *,
    device: torch.device | str,
    precision: str = "fp32",
    flips: bool = False,
) -> np.ndarray:
    """Probabilities (R, D, H, W) float32: the mean of the networks' sigmoids.

    Args:
        networks: on `device`, in evaluation mode.
        x_CDHW: float32, normalised as in training.
        box: of the brain; in mode `box` only the windows that cover it are computed (`window_box`) and
            everything outside it is 0.
        precision: fp32, bf16 or fp16, in which the networks compute; sums are float32 always.
        flips: also average over the eight mirror images of the volume.

    Raises:
        ConfigError: fp16 without a GPU, an unknown precision, or too little memory.
    """
    device = torch.device(device)
    autocast = _autocast(precision, device)
    try:
        return _predict(networks, x_CDHW, box, spec, device, autocast, flips)
    except torch.OutOfMemoryError as error:  # sums and mirror images lie there too
        raise out_of_memory(spec, x_CDHW.shape[1:]) from error


def _predict(
    networks: Sequence[Callable[[Tensor], Tensor]], x_CDHW: Tensor, box: Box, spec: WindowSpec,
    device: torch.device, autocast: torch.dtype | None, flips: bool,
) -> np.ndarray:  # fmt: skip
    shape = tuple(x_CDHW.shape[1:])
    whole: Box = ((0, 0, 0), (shape[0], shape[1], shape[2]))
    inside, region = (box, window_box(box, shape, spec)) if spec.mode == "box" else (whole, whole)
    x_1CDHW = x_CDHW[(slice(None), *_slices(region))][None].to(device)
    total: Tensor | None = None
    mirrors = _MIRRORS if flips else _MIRRORS[:1]
    with torch.inference_mode():
        for network, axes in itertools.product(networks, mirrors):
            logits = sliding_window(network, x_1CDHW.flip(axes), spec, autocast=autocast)
            maps = logits.sigmoid_().flip(axes)
            total = maps if total is None else total.add_(maps)
        if total is None:
            raise ValueError("no network to predict with")
        total_RDHW = total.div_(len(networks) * len(mirrors))[0].cpu().numpy()
    probabilities_RDHW = np.zeros((len(total_RDHW), *shape), np.float32)
    cut = _slices(inside, origin=region[0])
    probabilities_RDHW[(slice(None), *_slices(inside))] = total_RDHW[(slice(None), *cut)]
    return probabilities_RDHW


def entropy(probabilities_RDHW: np.ndarray) -> np.ndarray:
    """Uncertainty (D, H, W) float32: the mean over regions of each voxel's binary entropy, in nats
    (0 to ln 2)."""
    parts = entr(probabilities_RDHW) + entr(1 - probabilities_RDHW)
    return np.asarray(parts.mean(axis=0), np.float32)


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    if precision not in _AUTOCAST:
        raise ConfigError(f"precision is {precision!r}", fix=f"choose one of {', '.join(_AUTOCAST)}")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("fp16 needs a GPU", fix="use --precision fp32 (or bf16)")
    return _AUTOCAST[precision]


def _slices(box: Box, origin: Triple = (0, 0, 0)) -> tuple[slice, ...]:
    return tuple(slice(lo - o, hi - o) for lo, hi, o in zip(*box, origin, strict=True))
