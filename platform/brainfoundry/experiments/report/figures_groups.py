"""Ranks of arms on other test subjects, and scores by site, sex and age band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from brainfoundry.experiments.report.figures_style import (
    COLUMN,
    DOUBLE,
    TICK,
    metric_name,
    say_nothing,
    style,
    tidy,
    title,
)  # fmt: skip
from brainfoundry.experiments.stats import GroupRow, RankStability
from brainfoundry.reports.drawing import INK, SOFT, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOB = 520.0
"""Area in square points of a rank that an arm always has."""
_MOST_GROUPS = 14


def rank_figure(found: RankStability, metric: str) -> tuple[bytes, bytes]:
    """(PNG, SVG): how often each arm has each rank over bootstrap samples of the test subjects."""
    arms = len(found.arms)
    figure = new_figure(max(COLUMN, 2.1 + 0.55 * arms), 1.1 + 0.36 * arms)
    axes = figure.subplots()
    for row in range(arms):
        for rank in range(arms):
            share = float(found.share[row, rank])
            if share < 0.005:
                continue
            axes.scatter(
                rank + 1,
                row,
                s=_BLOB * share,
                color=style(0).colour,
                alpha=0.35,
                linewidth=0,
            )
            axes.text(rank + 1, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=INK)
    axes.set_yticks(
        range(arms), [f"{arm}  ({mean:.3f})" for arm, mean in zip(found.arms, found.means, strict=True)]
    )
    axes.set_xticks(range(1, arms + 1))
    axes.set(xlim=(0.4, arms + 0.6), ylim=(arms - 0.5, -0.5))
    axes.set_xlabel(f"rank by {metric_name(metric)} (% of samples)")
    tidy(axes, grid="")
    axes.tick_params(axis="y", length=0)
    return save(figure)


def group_figure(panels: Mapping[str, Mapping[str, Sequence[GroupRow]]], metric: str) -> tuple[bytes, bytes]:
    """(PNG, SVG): the metric in every group of subjects, with intervals and counts.

    Args:
        panels: what the groups are ("sex") -> arm -> its rows, of the same groups.
    """
    sizes = [max(len(_groups(arms)), 1) for arms in panels.values()]
    figure = new_figure(DOUBLE, 0.5 + sum(0.55 + 0.27 * n for n in sizes))
    grid = figure.subplots(
        len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 1.2 for n in sizes]}, sharex=True
    )[:, 0]
    for axes, (what, arms) in zip(grid, panels.items(), strict=True):
        _panel(axes, what, arms)
    grid[-1].set_xlabel(metric_name(metric))
    if len(next(iter(panels.values()), {})) > 1:
        grid[0].legend(
            fontsize=TICK, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderpad=0
        )
    return save(figure)


def _groups(arms: Mapping[str, Sequence[GroupRow]]) -> list[str]:
    rows = next(iter(arms.values()), ())
    return [row.group for row in rows][:_MOST_GROUPS]


def _panel(axes: Axes, what: str, arms: Mapping[str, Sequence[GroupRow]]) -> None:
    title(axes, what)
    groups = _groups(arms)
    tidy(axes, grid="x")
    if not groups:
        say_nothing(axes, "not known")
        return
    counts = {row.group: row.count for row in next(iter(arms.values()))}
    for i, (arm, rows) in enumerate(arms.items()):
        look, aside = style(i), 0.5 * ((i + 0.5) / len(arms) - 0.5)
        drawn = {row.group: row.interval for row in rows}
        label: str | None = arm
        for y, group in enumerate(groups):
            found = drawn.get(group)
            if found is None:
                continue
            if not math.isnan(found.low):
                axes.plot([found.low, found.high], [y + aside] * 2, color=look.colour, linewidth=1.2)
            axes.plot(
                found.mean,
                y + aside,
                look.marker,
                color=look.colour,
                markersize=4,
                markerfacecolor="white",
                label=label,
            )
            label = None
    for y, group in enumerate(groups):
        if all(row.interval is None for rows in arms.values() for row in rows if row.group == group):
            axes.text(0.5, y, "hidden", transform=axes.get_yaxis_transform(), ha="center", va="center",
                      fontsize=TICK, color=SOFT)  # fmt: skip
    axes.set_yticks(range(len(groups)), [f"{group} ({_count(counts[group])})" for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _count(shown: str) -> str:
    """ "n = 12", or "n < 5" where the number is hidden."""
    return f"n = {shown}" if shown[0].isdecimal() else f"n {shown[0]} {shown[1:]}"
