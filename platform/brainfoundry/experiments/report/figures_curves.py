"""Curves: losses of the pretraining by size (paper, Fig. 4), and scores by share of the labels (Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brainfoundry.experiments.report.cells import Estimate
from brainfoundry.experiments.report.figures_style import (
    COLUMN,
    DOUBLE,
    TICK,
    Style,
    metric_name,
    say_nothing,
    style,
    tidy,
    title,
)  # fmt: skip
from brainfoundry.reports.drawing import SOFT, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One loss of one run.

    Args:
        validation: of held-out subjects; else of the training crops.
    """

    label: str
    validation: bool
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Point:
    """One arm at one share of the labels.

    Args:
        share: per cent.
        draws: mean over the test subjects, one a draw.
    """

    arm: str
    share: float
    estimate: Estimate
    draws: tuple[float, ...]


def loss_figure(curves: Sequence[Curve]) -> tuple[bytes, bytes]:
    """(PNG, SVG): training losses to the left, validation losses to the right, a line a label."""
    figure = new_figure(DOUBLE, 2.9)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for axes, validation in zip(figure.subplots(1, 2), (False, True), strict=True):
        shown = [curve for curve in curves if curve.validation is validation and curve.steps.size]
        tidy(axes)
        title(axes, "validation" if validation else "training")
        if not shown:
            say_nothing(axes, "no such losses were recorded")
            continue
        for curve in shown:
            _loss(axes, curve, style(labels.index(curve.label)), label=curve.label)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("pretraining loss (total)")
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.set_xlim(left=0)
        axes.legend(fontsize=TICK, frameon=False)
    return save(figure)


def _loss(axes: Axes, curve: Curve, look: Style, *, label: str) -> None:
    few = curve.steps.size <= 25
    axes.plot(
        curve.steps, curve.values, color=look.colour, linestyle=look.dash, linewidth=1.3, label=label,
        marker=look.marker if few else "", markersize=3.2,
    )  # fmt: skip


def few_shot_figure(points: Sequence[Point], metric: str) -> tuple[bytes, bytes]:
    """(PNG, SVG): the metric by share of the labels, a line an arm; every draw is a dot beside its mean."""
    figure = new_figure(COLUMN * 1.35, 3.3)
    axes = figure.subplots()
    arms = list(dict.fromkeys(point.arm for point in points))
    shares = sorted({point.share for point in points})
    place = {share: i for i, share in enumerate(shares)}
    width = min(0.16, 0.6 / max(len(arms), 1))
    for i, arm in enumerate(arms):
        look = style(i)
        of_arm = sorted((point for point in points if point.arm == arm), key=lambda point: point.share)
        x = np.array([place[point.share] for point in of_arm]) + (i - (len(arms) - 1) / 2) * width
        y = np.array([point.estimate.value for point in of_arm])
        ends = np.array([[point.estimate.low, point.estimate.high] for point in of_arm]).T
        reach = np.nan_to_num(np.abs(ends - y))
        axes.errorbar(
            x,
            y,
            yerr=reach,
            color=look.colour,
            linestyle=look.dash,
            linewidth=1.2,
            elinewidth=1.2,
            capsize=2.5,
            marker=look.marker,
            markersize=5,
            markerfacecolor="white",
            markeredgewidth=1.3,
            label=arm,
            zorder=3,
        )
        for at, point in zip(x, of_arm, strict=True):
            axes.plot(
                [at + 0.045] * len(point.draws),
                point.draws,
                ".",
                color=look.colour,
                markersize=4,
                alpha=0.55,
                zorder=2,
            )
    axes.set_xticks(range(len(shares)), [_share_label(share, points) for share in shares])
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_xlabel("labels used in training (%), number of draws below")
    axes.set_ylabel(metric_name(metric))
    tidy(axes)
    if arms:
        axes.legend(fontsize=TICK, frameon=False, loc="best")
    return save(figure)


def _share_label(share: float, points: Sequence[Point]) -> str:
    """The share, and below it how many draws each arm has."""
    counts = sorted({len(point.draws) for point in points if point.share == share})
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{share:g}\n({told} {'draw' if counts == [1] else 'draws'})"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One difference of a forest plot: arm minus comparator.

    Args:
        clear: drawn filled: its interval leaves out 0.
    """

    label: str
    estimate: Estimate
    clear: bool


def difference_figure(
    bars: Sequence[Bar],
    *,
    metric: str,
    comparator: str,
    smallest: float | None = None,
    better_right: bool = True,
) -> tuple[bytes, bytes]:
    """(PNG, SVG): paired differences to the comparator with their intervals.

    Args:
        smallest: smallest effect of interest; a band of differences that would not matter.
        better_right: whether more of the metric is better.
    """
    figure = new_figure(COLUMN * 1.6, 0.9 + 0.3 * max(len(bars), 2))
    axes = figure.subplots()
    if smallest:
        axes.axvspan(-smallest, smallest, color=SOFT, alpha=0.13, linewidth=0)
    axes.axvline(0, color=SOFT, linewidth=1)
    for i, bar in enumerate(bars):
        e = bar.estimate
        look = style(0)
        filled = look.colour if bar.clear else "white"
        if not math.isnan(e.low):
            axes.plot([e.low, e.high], [i, i], color=look.colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(e.value, i, "o", color=look.colour, markerfacecolor=filled, markersize=5.5, zorder=3)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    if smallest:
        axes.set_xlim(min(low, -1.3 * smallest), max(high, 1.3 * smallest))
    side = "right" if better_right else "left"
    axes.set_xlabel(f"{metric_name(metric)}: difference to {comparator}\n({side} of 0 is better)")
    tidy(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    return save(figure)
