"""The page of an evaluation: means and what they rest on, how subjects spread, pictures, every subject."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainfoundry.reports.drawing import COLOURS, INK, SOFT, new_figure
from brainfoundry.reports.overlays import score_text
from brainfoundry.reports.page import Page

RANKS = ("worst", "median", "best")
_ID = ("subject", "session")
_TURN = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, are spread evenly however many there are


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A subject to look at.

    Args:
        caption: what to know of it, such as its score.
        png: of `overlays.overlay_figure`.
        rank: why it was chosen, of `RANKS`.

    Raises:
        ValueError: another rank.
    """

    subject: str
    caption: str
    png: bytes
    rank: str

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise ValueError(f"rank {self.rank!r} of a picture: {', '.join(RANKS)}")


def evaluation_page(
    *,
    title: str,
    lead: str,
    summary_rows: Sequence[Mapping[str, Any]],
    policy_lines: Sequence[str],
    subjects: Sequence[Mapping[str, Any]],
    sort_by: str,
    pictures: Sequence[Picture] = (),
    histogram: bool = True,
    notes: Sequence[str] = (),
) -> str:
    """HTML of an evaluation, self-contained.

    Args:
        lead: what was evaluated, in a line.
        summary_rows: one a metric: `metric`, `rows`, `defined` (rows with a value), `mean`, `low` and `high`
            (ends of its 95 % interval), `sd`, `median`; NaN = undefined.
        policy_lines: what the numbers rest on, told right below them.
        subjects: one a session: `subject`, `session` ("" without) and the metrics, NaN = undefined.
        sort_by: metric that ranks subjects, higher is better.
        histogram: with a figure of how the subjects' Dice are spread.
        notes: sentences on how it was made.

    Raises:
        ValueError: `sort_by` is not a metric of every subject.
    """
    if any(sort_by not in row for row in subjects):
        raise ValueError(f"sort_by {sort_by!r} is not a metric of every subject")
    metrics = [name for name in (subjects[0] if subjects else {}) if name not in _ID]
    metrics.sort(key=lambda name: name.endswith("_challenge"))  # last: they repeat the others save for dashes
    page = Page(title, lead=lead)
    page.items(notes)
    page.text("This page names subjects and shows their scans: it is for those who may see them.")
    page.heading("Scores")
    _say_summary(page, summary_rows, policy_lines)
    dice = [name for name in metrics if "dice" in name and "challenge" not in name]
    if histogram and dice:
        page.figure(
            metric_figure(subjects, dice),
            "Dice of every subject (dots). A box reaches from the first to the third quartile, its line is "
            "the median; whiskers reach to the furthest subject within 1.5 box lengths; diamonds are means.",
            alt="A column of dots with a box for each region.",
        )
    _say_pictures(page, pictures, sort_by)
    _say_subjects(page, subjects, metrics, sort_by)
    return page.html()


def metric_figure(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    """PNG of the values of some metrics of one unit: a dot a row, a box and the mean a metric.

    Args:
        rows: of each its metrics; NaN values are counted and not drawn.
        names: metrics to draw, left to right.
    """
    figure = new_figure(1.2 + 1.35 * max(len(names), 2), 3.8)
    axes = figure.subplots()
    ticks, shown = [], np.zeros(0)
    for i, name in enumerate(names):
        every = np.array([float(row[name]) for row in rows])
        values = np.sort(every[np.isfinite(every)])
        missing = every.size - values.size
        ticks.append(f"{name}\nn = {values.size:,}" + (f"\n{missing:,} undefined" if missing else ""))
        shown = np.concatenate([shown, values])
        if not values.size:
            continue
        colour = COLOURS[i % len(COLOURS)]
        line = {"color": INK, "linewidth": 1.1}
        axes.boxplot(
            values, positions=[i], widths=0.5, showfliers=False, manage_ticks=False,
            boxprops=line, whiskerprops=line, capprops=line, medianprops={**line, "linewidth": 2.0},
        )  # fmt: skip
        aside = 0.4 * (np.arange(values.size) * _TURN % 1 - 0.5)
        axes.plot(i + aside, values, "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
        axes.plot(i, values.mean(), "D", color=INK, markerfacecolor="white", markersize=6.5, zorder=4)
    if not shown.size:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=SOFT)
    elif shown.min() >= 0 and shown.max() <= 1:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xticks(range(len(names)), ticks)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()


def _say_summary(page: Page, rows: Sequence[Mapping[str, Any]], policy_lines: Sequence[str]) -> None:
    lines = []
    for row in rows:
        low, high = (score_text(row[end]) for end in ("low", "high"))
        interval = "–" if math.isnan(row["low"]) else f"{low} to {high}"
        rest = [score_text(row[name]) for name in ("sd", "median")]
        lines.append([row["metric"], score_text(row["mean"]), interval, *rest, row["defined"]])
    heads = ["metric", "mean", "95 % interval", "sd", "median", "n"]
    of = max((row["rows"] for row in rows), default=0)
    page.table(heads, lines, caption=f"Over {of:,} sessions; n of them have a value")
    page.items(policy_lines)


def _say_pictures(page: Page, pictures: Sequence[Picture], metric: str) -> None:
    if not pictures:
        return
    page.heading(f"Subjects to look at, by {metric}")
    for rank in RANKS:
        of_rank = [picture for picture in pictures if picture.rank == rank]
        if of_rank:
            page.heading(rank.capitalize(), level=3)
        for picture in of_rank:
            alt = f"Three planes of {picture.subject}: scan, and what was marked in it."
            page.figure(picture.png, f"{picture.subject}: {picture.caption}", alt=alt)


def _say_subjects(
    page: Page, subjects: Sequence[Mapping[str, Any]], metrics: Sequence[str], sort_by: str
) -> None:
    page.heading("Every subject")
    if not subjects:
        page.text("Nobody was scored.")
        return
    ids = [name for name in _ID if name == "subject" or any(row[name] for row in subjects)]
    page.text(
        f"The lowest {sort_by} first. A dash is a metric that is not defined for the subject under the "
        "policies above; it is in no mean."
    )
    ordered = sorted(subjects, key=lambda row: _last_if_undefined(row[sort_by]))
    cells = [[*(row[i] for i in ids), *(score_text(row[name]) for name in metrics)] for row in ordered]
    page.table([*ids, *metrics], cells)


def _last_if_undefined(value: float) -> float:
    return math.inf if math.isnan(value) else value
