"""Tables that count and state: cohorts (Table 1), sizes (2), settings used (3), demographics (7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.experiments.axes import REPEATED
from brainfoundry.experiments.published import TABLE_NOTES, Published, published
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report.cells import Cell, Table, table_of
from brainfoundry.experiments.report.lineage import seen_subjects
from brainfoundry.experiments.report.results import Study
from brainfoundry.experiments.report.tables_grid import arms_of
from brainfoundry.models.segmenter import build_segmenter
from brainfoundry.models.sizes import SIZES, EncoderSpec
from brainfoundry.models.ssl import SSLNetwork
from brainfoundry.models.swin import build_encoder
from brainfoundry.reports import demographics, paper
from brainfoundry.reports.suppress import SMALL, THRESHOLD

_COHORTS = {"ukb": "UK Biobank", "brats": "BraTS", "atlas": "ATLAS"}
_PAPER_STAGES = {
    "ukb": "Stage 1 pretraining (encoder), UKB",
    "brats": "Stage 2 and 3 (encoder + decoder), BraTS",
    "atlas": "Stage 2 and 3 (encoder + decoder), ATLAS",
}
"""Recipe -> row of the paper's Table 3."""


_JOIN = ",\N{NO-BREAK SPACE}"


def _figures(table: str) -> dict[tuple[str, str], Published]:
    """(row, column) -> figure, as the paper prints them."""
    return {(figure.row, figure.column): figure for figure in published(table)}


# ---------------------------------------------------------------------------------------------------------
# Table 1


def cohort_table(studies: Sequence[Study]) -> Table:
    """Table 1: who the cohorts are, from their manifests."""
    found: dict[str, Manifest | str] = {}
    for study in studies:
        for name, manifest in study.manifests.items():
            title = (
                _COHORTS.get(manifest.meta.cohort, manifest.meta.cohort)
                if isinstance(manifest, Manifest)
                else name
            )
            found.setdefault(
                title if title == name or title in _COHORTS.values() else f"{name} ({title})", manifest
            )
    figures = _figures("1")
    cells: list[Cell] = []
    for row in dict.fromkeys([*found, *_COHORTS.values()]):
        counted = found.get(row)
        facts = _cohort_facts(counted) if isinstance(counted, Manifest) else {}
        unread = (f"its manifest cannot be read: {counted}",) if isinstance(counted, str) else ()
        for column in ("subjects", "modalities", "images", "train / val / test subjects", "disease"):
            figure = figures.get((column, row))
            cells.append(
                Cell(
                    row=row,
                    column=column,
                    measured=facts.get(column),
                    notes=unread if column == "subjects" else (),
                    published=_grouped(figure.text) if figure else "",
                    published_note=figure.note if figure else "",
                )
            )
    return table_of("table1", "Table 1: the cohorts", cells, corner="cohort", notes=TABLE_NOTES.get("1", ()))


def _cohort_facts(manifest: Manifest) -> dict[str, str]:
    rows = list(manifest.rows(included_only=True))
    by_split = {
        split: len({r.subject for r in rows if r.split == split}) for split in ("train", "val", "test")
    }
    return {
        "subjects": f"{len({row.subject for row in rows}):,}",
        "modalities": "; ".join(manifest.meta.modalities),
        "images": f"{sum(len(row.scans) for row in rows):,}",
        "train / val / test subjects": " / ".join(f"{n:,}" for n in by_split.values()),
    }


def _grouped(text: str) -> str:
    return f"{int(text):,}" if text.isdecimal() else text


# ---------------------------------------------------------------------------------------------------------
# Table 2


def size_table(sizes: Iterable[str] = ()) -> Table:
    """Table 2: the networks of the paper's sizes, and of others in use, counted and run through."""
    figures = _figures("2")
    cells: list[Cell] = []
    wanted = [size for size in SIZES if size in ("tiny", "small", "big") or size in sizes]
    for size in wanted:
        printed = {row: figure for (row, column), figure in figures.items() if column == size}
        for column, fact, text, note in _size_facts(size, printed):
            cells.append(Cell(row=size, column=column, measured=fact, published=text, published_note=note))
    return table_of(
        "table2", "Table 2: the sizes of the network", cells, corner="size", notes=TABLE_NOTES.get("2", ())
    )


def _size_facts(size: str, printed: Mapping[str, Published]) -> list[tuple[str, str, str, str]]:
    """(column, counted, as printed, footnote of the printed)."""
    shape = SIZES[size]

    def levels(what: str, join: str = _JOIN) -> str:
        return join.join(printed[f"level {k} {what}"].text for k in (1, 2, 3, 4)) if printed else ""

    def plain(row: str) -> tuple[str, str]:
        return (_grouped(printed[row].text), printed[row].note) if row in printed else ("", "")

    ssl, segmenter, outputs = measured_size(size)
    crop = "x".join(map(str, shape.crop))
    return [
        ("parameters, pretraining network, 1 channel", f"{ssl:,}", *plain("encoder parameters")),
        ("parameters, SwinUNETR, 4 channels to 3 maps", f"{segmenter:,}", "", ""),
        ("blocks", _JOIN.join(map(str, shape.depths)), levels("blocks"), ""),
        ("attention heads", _JOIN.join(map(str, shape.heads)), levels("heads"), ""),
        ("crop", crop, "", ""),
        ("output of levels 1 to 4", ", ".join(outputs[:4]), levels("output", ", "), ""),
        ("feature size", str(shape.feature_size), *plain("feature size")),
        ("bottleneck", outputs[4].partition("x")[0], *plain("bottleneck")),
    ]  # fmt: skip


@cache
def measured_size(size: str) -> tuple[int, int, tuple[str, ...]]:
    """Parameters of the pretraining network and of the SwinUNETR, and the shapes of the encoder's outputs."""
    one = EncoderSpec(size=size, in_channels=1)
    ssl = sum(p.numel() for p in SSLNetwork(one).parameters())
    segmenter = sum(p.numel() for p in build_segmenter(EncoderSpec(size=size, in_channels=4), 3).parameters())
    with torch.no_grad():  # shapes alone: nothing is computed
        outputs = build_encoder(one).to("meta").eval()(torch.empty(1, 1, *SIZES[size].crop, device="meta"))
    return ssl, segmenter, tuple("x".join(map(str, x.shape[1:])) for x in outputs)


# ---------------------------------------------------------------------------------------------------------
# Table 3


def settings_table(study: Study) -> Table:
    """Table 3: what the runs were really given, from their own configurations."""
    figures = _figures("3")
    rows: list[tuple[str, str, list[TrialRecord]]] = []
    for name, stage in study.spec.stages.items():
        made = [r for r in study.pretraining if _stage_of(study, r) == name]
        rows.append((f"{name} ({stage.cohort})", stage.recipe, made))
    if study.spec.finetune is not None:
        run = study.spec.finetune
        for arm in arms_of(
            study, [axis for axis in study.varying if axis not in (*REPEATED, "fold", "share")]
        ):
            records = [t.record for t in study.select(arm.where) if t.record is not None]
            rows.append((f"fine-tuning ({run.cohort}): {arm.name}", "", records))
    cells: list[Cell] = []
    for row, recipe, records in rows:
        cells += _settings(study, row, records, figures, _PAPER_STAGES.get(recipe, ""))
    shown = {_PAPER_STAGES.get(recipe, "") for _, recipe, _ in rows}
    for printed in dict.fromkeys(row for row, _ in figures):
        if printed not in shown:
            cells += _settings(study, printed, [], figures, printed)
    notes = (*TABLE_NOTES.get("3", ()), "Several values in a cell are of several runs.")
    names = {row: _PAPER_STAGES[recipe] for row, recipe, _ in rows if recipe in _PAPER_STAGES}
    return table_of(
        "table3", "Table 3: settings that were used", cells, corner="run", notes=notes, published_rows=names
    )


_SETTINGS = {
    "subjects": "subjects", "devices": "GPU", "subjects a step": "batch size", "crops a step": "",
    "learning rate": "learning rate", "steps": "steps", "input channels": "input channels",
}  # fmt: skip
"""Our column -> the paper's, "" where it has none. Its batches are of volumes, each cut into crops."""


def _settings(
    study: Study,
    row: str,
    records: Sequence[TrialRecord],
    figures: Mapping[tuple[str, str], Published],
    printed: str,
) -> list[Cell]:
    values: dict[str, list[Any]] = {name: [] for name in _SETTINGS}
    for record in records:
        for name, value in _run_settings(study, record).items():
            if value not in values[name] and value is not None:
                values[name].append(value)
    cells = []
    for name, theirs in _SETTINGS.items():
        figure = figures.get((printed, theirs))
        told = _several(values[name]) if values[name] else ("not known" if records else None)
        cells.append(
            Cell(row=row, column=name, measured=told, published=figure.text if figure else "",
                 published_note=figure.note if figure else "")
        )  # fmt: skip
    return cells


def _run_settings(study: Study, record: TrialRecord) -> dict[str, Any]:
    config = study.run_config(record)
    if not config:
        return {"subjects": seen_subjects(record), "steps": record.steps or None}
    data, optim, cluster = config["data"], config["optim"], config["cluster"]
    subjects = data["groups_per_step"] * data["subjects_per_group"]
    card = study.card(record)
    return {
        "subjects": seen_subjects(record),
        "devices": f"{cluster['workers']} x {record.device or 'device not recorded'}",
        "subjects a step": subjects,
        "crops a step": subjects * data["crops_per_subject"],
        "learning rate": optim["lr"],
        "steps": record.steps or optim["steps"],
        "input channels": len(card.modalities) if card is not None else None,
    }


def _several(values: Sequence[Any]) -> str:
    """Up to three values, else from the least to the greatest."""
    if all(isinstance(value, int | float) for value in values):
        ordered = sorted(values)
        if len(ordered) > 3:
            return f"{_plain(ordered[0])} to {_plain(ordered[-1])}"
        return "; ".join(map(_plain, ordered))
    return "; ".join(map(str, values[:3])) + ("; ..." if len(values) > 3 else "")


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _stage_of(study: Study, record: TrialRecord) -> str:
    """The stage that a pretraining run is: the last of the chain that its point names."""
    chain = study.spec.inits.get(str(record.point.get("init")), ())
    if chain:
        return chain[-1]
    return next((name for name in study.spec.stages if record.id.startswith(f"{name}-")), "")


# ---------------------------------------------------------------------------------------------------------
# Table 7


def demographics_table(name: str, manifest: Manifest) -> Table | None:
    """Table 7 of a cohort, small counts hidden; None where its manifest knows nobody's age or sex."""
    counted = demographics.tabulate(demographics.people(manifest))
    if not counted.people.sections:
        return None
    ukb = manifest.meta.cohort == "ukb"
    theirs = (paper.ENTIRE, paper.COHORT) if ukb else ()
    printed = {title: _figures("7") for title in theirs}
    cells = []
    for section, line in counted.lines():
        row = f"{counted.people.age_kind if section == 'age' else section}: {line}"
        for column in counted.columns:
            title = f"{counted.titles[column]} (n = {counted.size(column):,})"
            cells.append(Cell(row=row, column=title, measured=counted.text(section, line, column)))
        for title in theirs:
            figure = printed[title].get((demographics.PAPER_ROWS.get((section, line), ""), title))
            text = f"{_grouped(figure.text)} ({figure.note})" if figure else ""
            cells.append(Cell(row=row, column=f"paper: {title}", published=text))
    notes = [
        f"Counts of 1 to {THRESHOLD - 1} are shown as {SMALL}; others are hidden where they would give one "
        "away."
    ]
    notes += [*(TABLE_NOTES.get("7", ()) if ukb else ()), *counted.people.notes]
    return table_of(
        f"table7-{name}",
        f"Table 7: demographics of {_COHORTS.get(manifest.meta.cohort, name)}",
        cells,
        notes=tuple(notes),
        published_columns=tuple(f"paper: {title}" for title in theirs),
    )
