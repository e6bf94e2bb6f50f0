"""The CONSORT diagram drawn: what remains goes down, what is left out goes to the right (paper, Fig. 3)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brainfoundry.reports.consort import Flow, Line, Step
from brainfoundry.reports.drawing import FILL, INK, SOFT, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches.
_LINE, _PAD, _GAP = 0.175, 0.14, 0.38
_MAIN_X, _MAIN_W = 0.25, 3.4
_SIDE_X, _SIDE_W = 4.1, 4.75
_PAPER_X, _PAPER_W = 9.2, 2.35
_FONT = 8.6
_MAIN_CHARS, _SIDE_CHARS, _PAPER_CHARS, _SPLIT_W = 44, 70, 28, 1.15


def draw(flow: Flow) -> tuple[bytes, bytes]:
    """(PNG, SVG) of the diagram."""
    heights = [_height(_step_lines(step)) for step in flow.steps]
    sides = [[_box_lines(box, step.left_out) for box in step.boxes] for step in flow.steps]
    side_heights = [sum(_height(lines) + 0.12 for lines in boxes) for boxes in sides]
    split_lines = [_split_lines(split) for split in flow.splits]
    tail = max((_height(lines) for lines in split_lines), default=0.0)
    below = [max(_GAP, side + 0.16) for side in side_heights[:-1]]
    total = 0.5 + sum(heights) + sum(below) + (tail + _GAP if flow.splits else 0.0) + 0.35
    wide = _PAPER_X + _PAPER_W + 0.15 if flow.paper else _SIDE_X + _SIDE_W + 0.1
    axes = _axes(wide, total)
    axes.text(_MAIN_X, total - 0.2, flow.title, fontsize=10.5, fontweight="bold", color=INK, va="center")

    middle, y = _MAIN_X + _MAIN_W / 2, total - 0.5
    for i, step in enumerate(flow.steps):
        _box(axes, _MAIN_X, y, _MAIN_W, _step_lines(step), bold=1, fill=FILL)
        y -= heights[i]
        if i == len(flow.steps) - 1:
            break
        _arrow(axes, (middle, y), (middle, y - below[i]))
        top = y - (below[i] - side_heights[i] + 0.12) / 2
        for lines in sides[i]:
            high = _height(lines)
            _arrow(axes, (middle, top - high / 2), (_SIDE_X, top - high / 2))
            _box(axes, _SIDE_X, top, _SIDE_W, lines, bold=1)
            top -= high + 0.12
        y -= below[i]
    if flow.splits:
        _splits(axes, split_lines, middle, y)
    if flow.suppressed:
        note = "Counts under 5 are not shown; where that is needed to hide one, a zero is written as <5 too."
        axes.text(_MAIN_X, 0.15, note, fontsize=7.2, color=SOFT, va="center")
    if flow.paper:
        _paper(axes, flow, total - 0.5)
    return save(axes.get_figure(root=True))  # type: ignore[arg-type]


def _axes(width: float, height: float) -> Axes:
    """Axes in inches, from the lower left."""
    figure = new_figure(width, height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def _step_lines(step: Step, chars: int = _MAIN_CHARS) -> list[str]:
    return [*textwrap.wrap(step.text, chars), _count(step.subjects, step.sessions)]


def _split_lines(split: Step) -> list[str]:
    return [split.text, f"n = {split.subjects}", f"({split.sessions} sessions)"]


def _count(subjects: str, sessions: str) -> str:
    """Such as "n = 12 (14 sessions)", or "n < 5" where the number is hidden."""
    if not subjects[0].isdecimal():
        return f"n {subjects[0]} {subjects[1:]}"
    told = sessions if sessions[0].isdecimal() else f"{sessions[0]} {sessions[1:]}"
    return f"n = {subjects} ({told} {'session' if sessions == '1' else 'sessions'})"


def _box_lines(box: Sequence[Line], left_out: tuple[str, str]) -> list[str]:
    if len(box) == 1:
        count = _count(box[0].subjects, box[0].sessions)
        return [f"Left out, {count}", *textwrap.wrap(box[0].text, _SIDE_CHARS)]
    lines = [f"Left out, {_count(*left_out)}"]
    for line in box:
        text = f"{line.text}: {_count(line.subjects, line.sessions)}"
        first, *rest = textwrap.wrap(text, _SIDE_CHARS)
        lines += [f"• {first}", *(f"   {more}" for more in rest)]
    return lines


def _height(lines: Sequence[str]) -> float:
    return len(lines) * _LINE + 2 * _PAD


def _box(
    axes: Axes,
    x: float,
    top: float,
    width: float,
    lines: Sequence[str],
    *,
    bold: int = 0,
    fill: str = "white",
    centre: bool = False,
    colour: str = INK,
) -> None:
    """A box from `top` down; its first `bold` lines are bold."""
    from matplotlib.patches import FancyBboxPatch

    high = _height(lines)
    style = "round,pad=0,rounding_size=0.05"
    axes.add_patch(
        FancyBboxPatch(
            (x, top - high), width, high, boxstyle=style, facecolor=fill, edgecolor=colour, linewidth=0.9
        )
    )
    for i, line in enumerate(lines):
        place, align = (x + width / 2, "center") if centre else (x + 0.12, "left")
        weight = "bold" if i < bold else "normal"
        at = top - _PAD - (i + 0.5) * _LINE
        axes.text(place, at, line, fontsize=_FONT, color=colour, va="center", ha=align, fontweight=weight)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def _splits(axes: Axes, lines: Sequence[Sequence[str]], middle: float, y: float) -> None:
    """The splits side by side below the last box."""
    gap = 0.1
    span = len(lines) * _SPLIT_W + (len(lines) - 1) * gap
    left = max(middle - span / 2, 0.1)
    bar = y - _GAP / 2
    centres = [left + i * (_SPLIT_W + gap) + _SPLIT_W / 2 for i in range(len(lines))]
    axes.plot([middle, middle], [y, bar], color=INK, linewidth=0.9)
    axes.plot([min(*centres, middle), max(*centres, middle)], [bar, bar], color=INK, linewidth=0.9)
    for centre, texts in zip(centres, lines, strict=True):
        _arrow(axes, (centre, bar), (centre, y - _GAP))
        _box(axes, centre - _SPLIT_W / 2, y - _GAP, _SPLIT_W, texts, bold=1, centre=True)


def _paper(axes: Axes, flow: Flow, top: float) -> None:
    """The paper's own steps, in a quieter column at the right."""
    middle = _PAPER_X + _PAPER_W / 2
    axes.text(_PAPER_X, top + 0.3, "The paper (Fig. 3)", fontsize=9.5, color=SOFT, va="center")
    last: int | None = None
    for text, value in flow.paper:
        if last is not None:
            _arrow(axes, (middle, top), (middle, top - _GAP), SOFT)
            axes.text(
                middle + 0.1, top - _GAP / 2, f"− {last - value:,}", fontsize=8, color=SOFT, va="center"
            )
            top -= _GAP
        lines = [*textwrap.wrap(text[0].upper() + text[1:], _PAPER_CHARS), f"n = {value:,}"]
        _box(axes, _PAPER_X, top, _PAPER_W, lines, colour=SOFT)
        top, last = top - _height(lines), value
