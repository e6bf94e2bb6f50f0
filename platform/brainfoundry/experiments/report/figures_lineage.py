"""The stages of a study and their lineage: which weights came from which, on how many subjects, and any leak.

A tree from left to right. Every box has a lane (a row) of its own from its parent onwards, so that no line
passes behind a box that it has nothing to do with.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from brainfoundry.experiments.report.figures_style import COLOURS
from brainfoundry.reports.drawing import FILL, INK, SOFT, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["start", "pretrain", "finetune", "test"]
# Inches.
_WIDTH, _GAP, _LINE, _PAD, _BETWEEN, _EDGE, _HEAD = 1.75, 0.45, 0.15, 0.09, 0.16, 0.1, 0.36
_CHARS, _FONT = 31, 7.5
_NAMES: dict[Kind, str] = {
    "start": "start",
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "test": "test",
}
_EDGES: dict[Kind, str] = {"start": SOFT, "pretrain": COLOURS[0], "finetune": COLOURS[2], "test": INK}
_LEAK = COLOURS[1]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Weights, or a group of runs alike in all but their repetition, or a test set.

    Args:
        column: from the left; all parents of a box stand further to the left.
        lines: below the name: subjects, runs, steps.
        leak: what was seen that should not have been; "" for nothing.
        parents: ids of the boxes it came from, the one it stands behind first.
    """

    id: str
    kind: Kind
    column: int
    name: str
    lines: tuple[str, ...] = ()
    leak: str = ""
    parents: tuple[str, ...] = ()


def lineage_figure(boxes: Sequence[Box]) -> tuple[bytes, bytes]:
    """(PNG, SVG) of the lineage."""
    lane = lanes([box for box in boxes if box.kind != "test"])
    high = [0.0] * (max(lane.values()) + 1)
    for box in boxes:
        if box.id in lane:
            high[lane[box.id]] = max(high[lane[box.id]], _height(box))
    columns = sorted({box.column for box in boxes})
    tests = [box for box in boxes if box.kind == "test"]
    tall = max(sum(high) + _BETWEEN * len(high), sum(_height(box) + _BETWEEN for box in tests))
    width = 2 * _EDGE + len(columns) * _WIDTH + (len(columns) - 1) * _GAP
    figure = new_figure(width, tall + _HEAD, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, tall + _HEAD))
    axes.axis("off")

    left = {column: _EDGE + i * (_WIDTH + _GAP) for i, column in enumerate(columns)}
    middle = {id_: tall - sum(high[:row]) - _BETWEEN * row - high[row] / 2 for id_, row in lane.items()}
    for i, box in enumerate(tests):
        middle[box.id] = tall - (i + 0.5) * tall / len(tests)
    by_id = {box.id: box for box in boxes}
    for column in columns:
        kinds = {box.kind for box in boxes if box.column == column}
        text = " / ".join(name for kind, name in _NAMES.items() if kind in kinds)
        axes.text(left[column], tall + _HEAD / 2, text, fontsize=_FONT + 0.5, color=SOFT, va="center")
    for box in boxes:
        _draw(axes, box, left[box.column], middle[box.id])
        for parent in box.parents:
            start = (left[by_id[parent].column] + _WIDTH, middle[parent])
            _elbow(axes, start, (left[box.column], middle[box.id]), late=box.kind == "test")
    return save(figure)


def lanes(boxes: Sequence[Box]) -> dict[str, int]:
    """Row of every box: that of its parent for the first child without children, else one of its own."""
    children: dict[str, list[Box]] = defaultdict(list)
    for box in boxes:
        if box.parents:
            children[box.parents[0]].append(box)
    row: dict[str, int] = {}

    def place(box: Box, at: int) -> int:
        """Place a box and all that comes from it, the first of them beside it; returns the next free row."""
        row[box.id] = at
        below = sorted(children[box.id], key=lambda child: bool(children[child.id]))
        for child in below:
            at = place(child, at)
        return at if below else at + 1

    free = 0
    for box in boxes:
        if not box.parents:
            free = place(box, free)
    return row


def _texts(box: Box) -> tuple[list[str], list[str], list[str]]:
    """Lines of the name, of the facts, and of the leak."""
    leak = textwrap.wrap(f"LEAK: {box.leak}", _CHARS - 6) if box.leak else []
    facts = [part for line in box.lines for part in textwrap.wrap(line, _CHARS)]
    return textwrap.wrap(box.name, _CHARS - 4), facts, leak


def _height(box: Box) -> float:
    return sum(map(len, _texts(box))) * _LINE + 2 * _PAD


def _draw(axes: Axes, box: Box, x: float, middle: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    high = _height(box)
    axes.add_patch(
        FancyBboxPatch(
            (x, middle - high / 2), _WIDTH, high, boxstyle="round,pad=0,rounding_size=0.05", facecolor=FILL,
            edgecolor=_LEAK if box.leak else _EDGES[box.kind], linewidth=2.0 if box.leak else 1.2,
            linestyle="--" if box.leak else "-", zorder=2,
        )
    )  # fmt: skip
    y = middle + high / 2 - _PAD - _LINE / 2
    for texts, colour, weight in zip(_texts(box), (INK, INK, _LEAK), ("bold", "normal", "bold"), strict=True):
        for text in texts:
            axes.text(
                x + 0.07, y, text, fontsize=_FONT, color=colour, va="center", fontweight=weight, zorder=3
            )
            y -= _LINE


def _elbow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, late: bool) -> None:
    """A line with right angles: it turns just behind its start, or (`late`) just before its end."""
    bend = end[0] - _GAP * 0.5 if late else start[0] + _GAP * 0.5
    points = [start, (bend, start[1]), (bend, end[1])]
    axes.plot([x for x, _ in points], [y for _, y in points], color=SOFT, linewidth=1.0, zorder=1)
    arrow = {"arrowstyle": "-|>", "color": SOFT, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=points[-1], arrowprops=arrow, zorder=1)
