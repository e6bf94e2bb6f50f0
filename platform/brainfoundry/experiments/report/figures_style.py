"""What the figures of a study share: colours that colour-blind readers can tell apart, axes, labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from brainfoundry.reports.drawing import INK, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN, DOUBLE = 3.5, 7.2
"""Widths in inches of one and of two columns of a journal page."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Okabe and Ito's palette, without its yellow, which is too light for a line."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
LABEL, TICK = 8.0, 7.5
"""Sizes in points."""
NAMES = {
    "dice": "Dice",
    "dice_mean": "mean Dice",
    "dice_wt": "Dice, whole tumour",
    "dice_tc": "Dice, tumour core",
    "dice_et": "Dice, enhancing tumour",
    "hd95_wt": "HD95, whole tumour (mm)",
    "hd95_tc": "HD95, tumour core (mm)",
    "hd95_et": "HD95, enhancing tumour (mm)",
    "lesion_f1": "lesion-wise F1",
    "volume_diff": "volume difference (mm³)",
    "lesion_count_diff": "lesion count difference",
}
"""Metrics as people call them, with their units."""


@dataclass(frozen=True)
class Style:
    """How one arm is drawn: never by its colour alone."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


def style(i: int) -> Style:
    """Of the i-th arm."""
    return Style(
        COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)]
    )


def metric_name(metric: str) -> str:
    """A metric as people call it."""
    return NAMES.get(metric, metric.replace("_", " "))


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Small type, no box, a faint grid behind the data."""
    axes.tick_params(labelsize=TICK, colors=INK, length=3)
    axes.xaxis.label.set(size=LABEL, color=INK)
    axes.yaxis.label.set(size=LABEL, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, alpha=0.25, linewidth=0.6)  # type: ignore[arg-type]


def title(axes: Axes, text: str) -> None:
    """A panel's title, to the left."""
    axes.set_title(text, loc="left", fontsize=LABEL, fontweight="bold", color=INK)


def say_nothing(axes: Axes, text: str) -> None:
    """Why a panel is empty, in its middle."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=LABEL)
    axes.set(xticks=[], yticks=[])
