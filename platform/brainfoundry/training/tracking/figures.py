"""Pictures of a run: its losses over the steps, and what the network makes of held-out crops.

Drawn with matplotlib's object interface on the Agg canvas: no display, no global state, any thread.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, float]]

_NO_LOSSES = {"lr", "saturated", "grad_norm"}  # figures of a step that are not losses
_COLORS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_ROWS = ("input", "cut", "rebuilt")
# Planes of a volume in RAS axis order (0 towards the right, 1 towards the front, 2 upwards): the axis cut
# across, and what the picture's horizontal axis is.
# Only left and right are marked: the rotation task turns crops about the axis through the ears.
_PLANES = (("sagittal", 0, ""), ("coronal", 1, "L → R"), ("axial", 2, "L → R"))


def loss_figure(*histories: History, title: str) -> bytes:
    """PNG of the loss and its parts over the steps, training and held-out, with the learning rate below, and
    the probe's Dice where there was a probe.

    Args:
        histories: rows of `step` and metrics (`train/total`, `train/<part>`, `val/<the same>`, `train/lr`,
            `probe/dice_<region>`); of several values for a step the first counts.
        title: heading, the run's name.
    """
    curves = _curves(histories)
    probed = sorted(k for k in curves if k.startswith("probe/dice_"))
    figure = _figure(8.0, 7.5 if probed else 6.0)
    heights = [3, 1, 1.5] if probed else [3, 1]
    upper, lower, *more = figure.subplots(
        len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    names = {k.partition("/")[2] for k in curves if k.startswith(("train/", "val/"))} - _NO_LOSSES - {"total"}
    for i, name in enumerate(["total", *sorted(names)]):
        color = _COLORS[i % len(_COLORS)]
        for prefix, style in (("train/", "-"), ("val/", "--")):
            if prefix + name not in curves:
                continue
            x, y = curves[prefix + name]
            held_out = prefix == "val/"
            upper.plot(
                x,
                y,
                style,
                color=color,
                lw=1.8 if name == "total" else 1.0,
                marker="o" if held_out else "." if len(x) < 40 else None,
                ms=4,
                label=f"{name}, held out" if held_out else name,
            )
    if upper.get_lines():
        upper.legend(fontsize=8, ncols=2)
    else:
        upper.text(0.5, 0.5, "no losses yet", ha="center", va="center", transform=upper.transAxes)
    upper.set_ylabel("loss")
    upper.set_title(title, fontsize=10)
    if "train/lr" in curves:
        lower.plot(*curves["train/lr"], color="tab:gray")
    lower.set_ylabel("learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in more:
        for name in probed:
            axes.plot(*curves[name], marker="o", ms=4, label=name.removeprefix("probe/"))
        axes.set_ylabel("probe, Dice")
        axes.legend(fontsize=8, ncols=len(probed))
    last = more[-1] if more else lower
    last.set_xlabel("optimiser step")
    last.xaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower, *more):
        axes.grid(alpha=0.3)
    return _png(figure, dpi=110)


def reconstruction_figure(
    volumes: Mapping[str, np.ndarray],
    modalities: Sequence[str],
    *,
    step: int,
    title: str = "",
    samples: int = 2,
) -> bytes:
    """PNG of crops as they were, as they were cut, and as the network rebuilt them.

    Three rows a sample; for each modality the sagittal, coronal and axial plane through the crop's
    middle (a rotated view shows rotated). The gray window of a sample and modality is the 0.5th to
    99.5th percentile of its input, the same in all three rows, so that rows can be compared and noise
    fill cannot wash them out.

    Args:
        volumes: "input", "cut" and "rebuilt", each (N, C, D, H, W) in RAS axis order (D towards the
            right, H towards the front, W upwards).
        modalities: names of the C channels.
        step: optimiser steps done.
        title: the run's name.
        samples: crops shown, at most.

    Raises:
        ValueError: the three are not there, or not of one 5-dimensional shape with C channels.
    """
    shapes = [np.shape(volumes.get(name, ())) for name in _ROWS]
    shape = shapes[0]
    if len(shape) != 5 or 0 in shape or shapes != [shape] * 3 or len(modalities) != shape[1]:
        raise ValueError(
            f"input, cut and rebuilt must be (N, {len(modalities)}, D, H, W), all alike; they are {shapes}"
        )
    shown = [np.asarray(volumes[name], np.float32) for name in _ROWS]
    n, channels = min(shape[0], samples), shape[1]
    depth, height, width = shape[2:]
    inch = 5.0 / (height + 2 * depth)  # a voxel: a modality's three planes are 5 inches wide
    figure = _figure(0.5 + 5.2 * channels, 0.7 + 3 * n * (inch * max(height, width) + 0.08))
    ratios = {"width_ratios": [height, depth, depth] * channels}
    axes = figure.subplots(3 * n, 3 * channels, squeeze=False, gridspec_kw=ratios)
    for i in range(n):
        for c in range(channels):
            low, high = _window(shown[0][i, c])
            for row, volume in enumerate(shown):
                for column, (plane, axis, across) in enumerate(_PLANES):
                    ax = axes[3 * i + row, 3 * c + column]
                    middle = volume.shape[2 + axis] // 2
                    picture = np.take(volume[i, c], middle, axis=axis).T
                    ax.imshow(
                        picture, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest"
                    )
                    ax.set_xticks([])
                    ax.set_yticks([])
                    if i == 0 and row == 0:
                        ax.set_title(f"{modalities[c]}\n{plane}" if column == 0 else f"\n{plane}", fontsize=8)
                    if row == len(shown) - 1:
                        ax.set_xlabel(across, fontsize=6, labelpad=1)
                    if c == 0 and column == 0:
                        ax.set_ylabel(f"{_ROWS[row]} {i + 1}" if n > 1 else _ROWS[row], fontsize=8)
    figure.suptitle(f"{title}, step {step:,}" if title else f"step {step:,}", fontsize=9)
    return _png(figure, dpi=90)


def _curves(histories: Sequence[History]) -> dict[str, tuple[list[float], list[float]]]:
    """Per metric its steps in order and the values."""
    points: dict[str, dict[float, float]] = {}
    for history in histories:
        for row in history:
            for key, value in row.items():
                if key != "step":
                    points.setdefault(key, {}).setdefault(float(row["step"]), value)
    return {k: (sorted(p), [p[s] for s in sorted(p)]) for k, p in points.items()}


def _window(volume: np.ndarray) -> tuple[float, float]:
    finite = volume[np.isfinite(volume)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
