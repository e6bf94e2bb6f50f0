"""The demographics drawn (paper, Fig. 2): ages by sex, and ages, sex and ethnicity of every split.

Only what the table shows is drawn: a hidden count is a mark without a height, a hidden share is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brainfoundry.cohorts.participants import ETHNIC_GROUPS
from brainfoundry.reports import paper
from brainfoundry.reports.demographics import AGE_BANDS, ALL, PAPER_ROWS, SEXES, UNANSWERED, Table
from brainfoundry.reports.drawing import COLOURS, INK, SOFT, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAPER_STYLE: dict[str, Any] = {
    "color": SOFT,
    "marker": "D",
    "markersize": 4,
    "linestyle": ":",
    "linewidth": 1.2,
}


def draw(table: Table, *, beside_paper: bool) -> tuple[bytes, bytes]:
    """(PNG, SVG) of the four panels.

    Args:
        beside_paper: add the shares of the paper's 40K cohort (Table 7).
    """
    figure = new_figure(10.5, 7.4)
    (a, b), (c, d) = figure.subplots(2, 2)
    _ages_by_sex(a, table)
    _age_shares(b, table, beside_paper)
    _sexes(c, table, beside_paper)
    _ethnicity(d, table, beside_paper)
    for letter, axes in zip("abcd", (a, b, c, d), strict=True):
        title = axes.get_title()
        axes.set_title("")
        axes.set_title(f"{letter}  {title}", loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.tick_params(labelsize=8.5, colors=INK)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return save(figure)


def _unknown(axes: Axes, table: Table, *sections: str) -> bool:
    """True, and said on the panel, where a section is not known."""
    missing = [section for section in sections if section not in table.people.sections]
    if missing:
        _say(axes, f"{' and '.join(missing)}: not known")
        axes.set(xticks=[], yticks=[])
    return bool(missing)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=9)


def _ages_by_sex(axes: Axes, table: Table) -> None:
    axes.set_title(f"{table.people.age_kind}, by sex" if "age" in table.people.sections else "age, by sex")
    if _unknown(axes, table, "age", "sex"):
        return
    shown = table.shown
    bands = [*AGE_BANDS, UNANSWERED]
    sexes = [*SEXES.values(), UNANSWERED]
    keys = {(band, sex): ("age and sex", band, sex) for band in bands for sex in sexes}
    sexes = [s for s in sexes if any(shown.counts[keys[b, s]] or keys[b, s] in shown.hidden for b in bands)]
    bands = [  # a band that is hidden must not tell by its absence that it is empty
        b
        for b in bands
        if b != UNANSWERED or any(shown.counts[keys[b, s]] or keys[b, s] in shown.hidden for s in sexes)
    ]
    width = 0.8 / max(len(sexes), 1)
    top = max(
        (shown.counts[keys[b, s]] for b in bands for s in sexes if keys[b, s] not in shown.hidden), default=0
    )
    for i, sex in enumerate(sexes):
        for j, band in enumerate(bands):
            key, x = keys[band, sex], j + (i - (len(sexes) - 1) / 2) * width
            label = sex if j == 0 else None
            if key in shown.hidden:
                axes.bar(x, 0, width, color=COLOURS[i], label=label)
                axes.text(
                    x,
                    0.01 * max(top, 1),
                    shown.text(key),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color=COLOURS[i],
                )
            else:
                axes.bar(x, shown.counts[key], width * 0.94, color=COLOURS[i], label=label)
    axes.set_xticks(range(len(bands)), ["not\nanswered" if b == UNANSWERED else b for b in bands])
    axes.set_ylim(0, max(top, 1) * 1.15)
    axes.set_ylabel("participants")
    if not top:
        axes.set_yticks([])
        _say(axes, "every count is small\n(marked at the axis)")


def _age_shares(axes: Axes, table: Table, beside_paper: bool) -> None:
    axes.set_title("age bands, share of every split")
    if _unknown(axes, table, "age"):
        return
    drawn = False
    for i, column in enumerate(table.columns):
        shares = [
            table.shown.share(("age", band, column), ("participants", "", column)) for band in AGE_BANDS
        ]
        heights = [float("nan") if share is None else 100 * share for share in shares]
        if sum(share or 0.0 for share in shares) < 0.5:
            continue  # a few bands would look like a distribution
        drawn = True
        style: dict[str, Any] = {"linewidth": 2.2 if column == ALL else 1.4, "marker": "o", "markersize": 4}
        axes.plot(
            range(len(AGE_BANDS)),
            heights,
            color=INK if column == ALL else COLOURS[i - 1],
            label=table.titles[column],
            **style,
        )
    if beside_paper:
        axes.plot(
            range(len(AGE_BANDS)),
            [_paper_share("age", b) for b in AGE_BANDS],
            label="paper, 40K cohort",
            **_PAPER_STYLE,
        )
    axes.set_xticks(range(len(AGE_BANDS)), AGE_BANDS)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("%")
    if not drawn:
        axes.text(
            0.02,
            0.03,
            "this cohort is not shown: small counts",
            transform=axes.transAxes,
            color=SOFT,
            fontsize=8,
        )


def _sexes(axes: Axes, table: Table, beside_paper: bool) -> None:
    axes.set_title("sex")
    if _unknown(axes, table, "sex"):
        return
    rows = [
        (table.titles[c], [table.shown.share(("sex", s, c), ("participants", "", c)) for s in SEXES.values()])
        for c in table.columns
    ]
    if beside_paper:
        rows.append(("paper, 40K cohort", [_paper_share("sex", s) / 100 for s in SEXES.values()]))
    for y, (_, shares) in enumerate(rows):
        left, alpha = 0.0, 0.55 if beside_paper and y == len(rows) - 1 else 1.0
        for i, (sex, share) in enumerate(zip(SEXES.values(), shares, strict=True)):
            if share is None:
                said = f"{sex}: not shown" if left else "not shown: small counts"
                axes.text(left + 2, y, said, va="center", fontsize=8, color=SOFT)
                break
            axes.barh(y, 100 * share, 0.6, left=left, color=COLOURS[i], alpha=alpha)
            if share >= 0.15:
                place = left + 50 * share
                text = f"{sex} {100 * share:.1f}"
                axes.text(place, y, text, ha="center", va="center", fontsize=8, color="white")
            left += 100 * share
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")


def _ethnicity(axes: Axes, table: Table, beside_paper: bool) -> None:
    axes.set_title("ethnicity, share of every split (logarithmic)")
    if _unknown(axes, table, "ethnicity"):
        return
    groups = [*ETHNIC_GROUPS, UNANSWERED]
    for i, column in enumerate(table.columns):
        shares = [table.shown.share(("ethnicity", g, column), ("participants", "", column)) for g in groups]
        points = [(100 * share, y) for y, share in enumerate(shares) if share]
        offset = 0.12 * (i - len(table.columns) / 2)
        axes.plot(
            [x for x, _ in points],
            [y + offset for _, y in points],
            "o",
            markersize=6,
            color=INK if column == ALL else COLOURS[i - 1],
            label=table.titles[column],
        )
        if column == ALL:
            for y, share in enumerate(shares):
                if share is None:
                    axes.text(
                        0.985,
                        y,
                        "not shown",
                        transform=axes.get_yaxis_transform(),
                        ha="right",
                        va="center",
                        fontsize=7.5,
                        color=SOFT,
                    )
    if beside_paper:
        style = {**_PAPER_STYLE, "linestyle": ""}
        axes.plot(
            [_paper_share("ethnicity", g) for g in groups],
            range(len(groups)),
            label="paper, 40K cohort",
            **style,
        )
    axes.set_xscale("log")
    axes.set_xlim(0.05, 130)
    axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel("%")


def _paper_share(section: str, line: str) -> float:
    """Percent of the paper's 40K cohort."""
    printed = paper.table7(paper.COHORT)
    return 100 * printed[PAPER_ROWS[section, line]] / printed["Samples"]
