"""Figures that others published, as data: the paper's tables with their misprints, and a few from elsewhere.

They stand beside measured ones in reports, marked as published. Nothing here compares the two: they were made
with other test sets, other rules for Dice and other code.

    published_cell(9, "repeat 1", "BSF 5%").value                                       # 0.781
    [cell for cell in published(8) if cell.axes.get("size") == "big"]
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as package_files
from typing import Any

from brainfoundry.core.errors import ConfigError
from brainfoundry.reports.paper import FIG3_NOTES, SOURCE, TABLE7_NOTES

SCRATCH, STAGE1, STAGE12, CT, DOWNSTREAM = "scratch", "stage1", "stage1+2", "ct", "swinu-res"
"""Values of the axis `init` in our studies; `DOWNSTREAM`: pretrained on the downstream T1w and T2w alone."""

_DICE = (
    "Dice as published, possibly of probabilities that were not thresholded (soft Dice): in the evaluation "
    "code released with the paper, and in that of the SwinUNETR models, no threshold takes effect."
)
TABLE_NOTES: Mapping[str, tuple[str, ...]] = {
    "2": (
        "The encoder's parameters are those of the whole self-supervised network, encoder and three heads, "
        "with one input channel, although Table 3 gives two.",
    ),
    "3": (
        "Stage 1: the text gives a learning rate of 6e-6, 15,000 iterations and 41,400 subjects.",
        "ATLAS: the text gives learning rates of 5e-3 (stage 2) and 1e-4 (stage 3), 600 epochs, 2 GPUs and "
        "665 subjects.",
    ),
    "4": (_DICE,),
    "5": (
        _DICE,
        "BrainSegFounder needs a stage 1 of its own here: the paper's was given one modality alone. UK "
        "Biobank has no T2w; what the paper calls T2w in places is T2-FLAIR.",
    ),
    "6": (
        "BrainSegFounder and SwinUNETR are single models on an evaluation set that the paper does not name. "
        "CTRL, HeRN and POBOTRI are ensembles, with their scores on the challenge's training set; the "
        "paper's footnote links the board of the hidden test set.",
    ),
    "7": TABLE7_NOTES,
    "8": (_DICE,),
    "9": (
        _DICE,
        "The text says that the model is the one of 64M after both stages; the surviving code fine-tunes the "
        "one of 62M after stage 1.",
        "The released code drew new subsets and a new test set for every repeat, and chose the best epoch on "
        "that test set: repeat k of one column and repeat k of another may not be a pair.",
    ),
    "fig3": FIG3_NOTES,
    "brats2021": (
        "Five folds of the authors' own split of the same 1,251 subjects; all models trained from scratch.",
    ),
}
"""What holds for a whole table, of the paper or from elsewhere."""


def _swin(**axes: Any) -> dict[str, Any]:
    return {"family": "swinunetr", **axes}


_COLUMNS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "2": {size: {"size": size} for size in ("tiny", "small", "big")},
    "4": {
        "BSF-S (64M)": _swin(size="small", init=STAGE12),
        "BSF-1-S (64M)": _swin(size="small", init=STAGE1),
        "SwinU-MRI": _swin(size="tiny", init=SCRATCH),
        "SwinU-Res": _swin(init=DOWNSTREAM),
        "SwinU-CT": _swin(init=CT, variant="legacy"),
        "nnU-Net": {"family": "nnunetv2"},
        "SegResNet": {"family": "segresnet"},
        "TransBTS": {"family": "transbts"},
        "Model-Zoo": {"family": "bundle"},
    },
    "5": {
        "BrainSegFounder (T1w only)": _swin(modalities="T1w", init=STAGE12),
        "SwinUNETR (T1w only)": _swin(modalities="T1w", init=SCRATCH),
    },
    "6": {"BrainSegFounder": _swin(init=STAGE12), "SwinUNETR": _swin(init=SCRATCH)},
    "8": {
        "SwinUNETR (62M)": _swin(size="tiny", init=SCRATCH),
        "BSF-T (62M)": _swin(size="tiny", init=STAGE12),
        "BSF-S (64M)": _swin(size="small", init=STAGE12),
        "BSF-B (69M)": _swin(size="big", init=STAGE12),
        "One-Stage (62M)": _swin(size="tiny", init=STAGE1),
        "One-Stage (64M)": _swin(size="small", init=STAGE1),
        "One-Stage (69M)": _swin(size="big", init=STAGE1),
    },
    "9": {
        f"{arm} {share}%": {"share": share, **axes}
        for share in (5, 10, 20, 40)
        for arm, axes in (("BSF", _swin(size="small", init=STAGE12)), ("SwinU", _swin(init=SCRATCH)))
    },
}
"""Table -> column -> axes of a study, as far as the paper states them."""
_METRICS = {
    "Dice": "dice",
    "Lesion-wise F1": "lesion_f1",
    "Simple lesion count": "lesion_count_diff",
    "Volume difference": "volume_diff",
}
"""Rows of Table 6."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published figure.

    Args:
        value: a number where it is one.
        text: as it is printed, but for zeros at the end.
        note: footnote on this figure, such as a misprint; `TABLE_NOTES` has those on its table.
        metric: our name of what it measures; "" where it is no metric.
        axes: the values on the axes of a study of the trials it may stand beside; empty where there are none.
            An average has no `fold` or `draw`.
    """

    table: str
    row: str
    column: str
    value: int | float | str
    text: str
    note: str = ""
    source: str = SOURCE
    metric: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)


def published(table: str | int) -> list[Published]:
    """The figures of a table of the paper ("1" to "9", "fig3", "text"), in its order.

    Raises:
        ConfigError: there is no such table.
    """
    return _table(_paper(), table)


def published_cell(table: str | int, row: str, column: str) -> Published:
    """One figure of the paper.

    Raises:
        ConfigError: there is no such table, row or column.
    """
    cells = published(table)
    for cell in cells:
        if (cell.row, cell.column) == (row, column):
            return cell
    columns = dict.fromkeys(cell.column for cell in cells if cell.row == row)
    if columns:
        problem, known = f"row {row!r} has no column {column!r}", columns
    else:
        problem, known = f"no row {row!r}", dict.fromkeys(cell.row for cell in cells)
    raise ConfigError(f"Table {table} of the paper: {problem}", fix=f"choose one of {', '.join(known)}")


def elsewhere(table: str) -> list[Published]:
    """Figures of other people's work: "brats2021" (nnU-Net's own folds), "intervals" (how wide they are).

    Raises:
        ConfigError: there is no such table.
    """
    return _table(_elsewhere(), table)


def _table(tables: Mapping[str, tuple[Published, ...]], table: str | int) -> list[Published]:
    if str(table) not in tables:
        raise ConfigError(f"no published table {table!r}", fix=f"choose one of {', '.join(tables)}")
    return list(tables[str(table)])


@cache
def _paper() -> Mapping[str, tuple[Published, ...]]:
    return _read("paper_tables.csv")


@cache
def _elsewhere() -> Mapping[str, tuple[Published, ...]]:
    return _read("elsewhere.csv")


def _read(name: str) -> Mapping[str, tuple[Published, ...]]:
    text = (package_files("brainfoundry.experiments") / "data" / name).read_text(encoding="utf-8")
    tables: dict[str, list[Published]] = {}
    for line in csv.DictReader(text.splitlines()):
        table, row, column = line["table"], line["row"], line["column"]
        cell = Published(
            table=table, row=row, column=column, value=_value(line["value"]), text=line["value"],
            note=line["note"], source=line.get("source") or SOURCE, metric=_metric(table, row),
            axes={**_COLUMNS.get(table, {}).get(column, {}), **_repetition(row)},
        )  # fmt: skip
        tables.setdefault(table, []).append(cell)
    return {table: tuple(cells) for table, cells in tables.items()}


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text


def _metric(table: str, row: str) -> str:
    if table in ("4", "5", "8", "9", "brats2021"):
        return "dice_mean"
    return _METRICS.get(row, "") if table == "6" else ""


def _repetition(row: str) -> dict[str, int]:
    """Folds and repeats, which the paper counts from 1 and we from 0."""
    found = re.fullmatch(r"(Fold|repeat) (\d)", row)
    return {{"Fold": "fold", "repeat": "draw"}[found[1]]: int(found[2]) - 1} if found else {}
