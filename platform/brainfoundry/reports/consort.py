"""The CONSORT flow of a cohort: how many came, which rule left out how many, who remains in which split.

`flow` makes it from a manifest; `brainfoundry.reports.consort_figure` draws it. Counts of people left out
under 5 are hidden by default (`reports.suppress`); who remains at the end, and the splits, are sizes that the
study chose, and always shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from brainfoundry.cohorts.exclusions import CONVERSION_REASONS, INTAKE_REASONS, REASONS, SHOWN_WHEN_USED
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta
from brainfoundry.reports import paper
from brainfoundry.reports.demographics import SPLIT_NAMES, csv_bytes
from brainfoundry.reports.suppress import Shown, Sum, protect, show_all

_OWN_BOX = ("withdrawn", "brain_tumour")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One rule: its reason code, its text, and how many it left out, as shown."""

    code: str
    text: str
    subjects: str
    sessions: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """Who is still in, and the boxes of those left out before the next step.

    Args:
        code: "assessed", a name of what remains, or "included".
        boxes: one or more boxes to the right, each with its lines.
        left_out: (subjects, sessions) before the next step in all, as shown.
    """

    code: str
    text: str
    subjects: str
    sessions: str
    boxes: tuple[tuple[Line, ...], ...] = ()
    left_out: tuple[str, str] = ("0", "0")


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The whole diagram.

    Args:
        steps: from "assessed" to "included".
        splits: boxes at the bottom; empty where the manifest has no split.
        paper: the paper's own steps (Fig. 3), for a UK Biobank cohort: text and participants.
        suppressed: whether small counts were to be hidden.
    """

    title: str
    steps: tuple[Step, ...]
    splits: tuple[Step, ...]
    paper: tuple[tuple[str, int], ...]
    suppressed: bool

    def csv(self) -> bytes:
        """Every box and rule as a line, with the counts as shown; the paper's below."""
        rows = [("kind", "code", "text", "subjects", "sessions", "source")]

        def add(kind: str, entry: Step | Line) -> None:
            numbers = (entry.subjects.replace(",", ""), entry.sessions.replace(",", ""))
            rows.append((kind, entry.code, entry.text, *numbers, "this cohort"))

        for step in self.steps:
            add("remaining", step)
            for line in (line for box in step.boxes for line in box):
                add("excluded", line)
        for split in self.splits:
            add("split", split)
        for text, value in self.paper:
            rows.append(("remaining", "", text, str(value), "", "paper, Fig. 3"))
        return csv_bytes(rows)


def flow(manifest: Manifest, *, show_small_counts: bool = False) -> Flow:
    """The CONSORT flow of an intake or a converted manifest."""
    meta = manifest.meta
    groups, found = _groups(meta), manifest.counts()  # an older manifest does not know the newer rules
    counts = {
        what: {code: found.get(code, {}).get(what, 0) for code in ("assessed", *REASONS, "included")}
        | _split_counts(manifest, what)
        for what in ("subjects", "sessions")
    }
    splits = [code for code in counts["subjects"] if code.startswith("split ")]
    subjects = _protect(counts["subjects"], groups, splits, show=show_small_counts, also=())
    # Who is hidden as a subject is hidden as a session: there are at least as many sessions.
    sessions = _protect(counts["sessions"], groups, splits, show=show_small_counts, also=subjects.hidden)

    def step(code: str, text: str) -> Step:
        return Step(code=code, text=text, subjects=subjects.text(code), sessions=sessions.text(code))

    def box(codes: Iterable[str]) -> tuple[Line, ...]:
        # A rule that left nobody out has no line, unless its zero is needed to keep another count hidden.
        return tuple(
            Line(code=c, text=_rule(c, meta), subjects=subjects.text(c), sessions=sessions.text(c))
            for c in codes
            if subjects.counts[c] or sessions.counts[c] or c in subjects.hidden or c in sessions.hidden
        )

    steps: list[Step] = []
    for group in groups:
        own = [box([code]) for code in group.codes if code in _OWN_BOX]
        rest = box(code for code in group.codes if code not in _OWN_BOX)
        boxes = tuple(lines for lines in (*own, rest) if lines)
        if boxes:
            first = groups[0] if not steps else group
            left_out = (subjects.text(group.out), sessions.text(group.out))
            steps.append(replace(step(first.before, first.text), boxes=boxes, left_out=left_out))
    if not steps:
        steps.append(step(groups[0].before, groups[0].text))
    return Flow(
        title="Flow of participants",
        steps=(*steps, step("included", _INCLUDED[meta.stage])),
        splits=tuple(step(code, SPLIT_NAMES[code.removeprefix("split ")]) for code in splits),
        paper=_paper_steps() if meta.cohort == "ukb" else (),
        suppressed=not show_small_counts,
    )


_INCLUDED = {"intake": "Eligible by headers (voxels not yet read)", "converted": "Included"}


@dataclass(frozen=True)
class _Group:
    """Rules that follow one another, and what is left of the cohort before them."""

    before: str
    text: str
    codes: tuple[str, ...]

    @property
    def out(self) -> str:
        """Name of the count of all that these rules left out."""
        return f"left out {self.before}"


def _groups(meta: ManifestMeta) -> list[_Group]:
    lists = [_Group("assessed", "Assessed: participants with scans", _OWN_BOX)]
    headers = tuple(code for code in INTAKE_REASONS if code not in _OWN_BOX)
    lists.append(_Group("judged", "Judged by their files and headers", headers))
    if meta.stage == "converted":
        lists.append(_Group("readable", "Judged by their voxels", tuple(CONVERSION_REASONS)))
    return lists


def _split_counts(manifest: Manifest, what: str) -> dict[str, int]:
    """How many included ones there are in "split NAME", where there is any split."""
    found: dict[str, set[tuple[str, str]]] = {}
    columns = manifest.table.select(("subject", "session", "verdict", "split"))
    for row in columns.to_pylist():
        if row["verdict"] == "included":
            key = (row["subject"], "" if what == "subjects" else row["session"])
            found.setdefault(row["split"] or "", set()).add(key)
    if not set(found) - {""}:
        return {}
    return {f"split {name}": len(found[name]) for name in SPLIT_NAMES if name in found}


def _protect(
    counts: dict[str, int], groups: list[_Group], splits: list[str], *, show: bool, also: Collection[str]
) -> Shown[str]:
    """Counts by code, with those of what remains before each group, small ones hidden."""
    left = counts["assessed"]
    sums, totals = [], []
    for group in groups:
        counts[group.before] = left
        counts[group.out] = sum(counts[code] for code in group.codes)
        left -= counts[group.out]
        totals.append(group.before)
    for group, after in zip(groups, [*totals[1:], "included"], strict=True):
        sums += [Sum(group.before, (group.out, after)), Sum(group.out, group.codes)]
    if show:
        return show_all(counts)
    # A rule that this cohort did not have is told by its absence.
    unused = [code for code in SHOWN_WHEN_USED if not counts[code]]
    return protect(counts, sums, always_shown=["included", *splits, *unused], last=totals, also=also)


def _rule(code: str, meta: ManifestMeta) -> str:
    """A rule in words, with its value in this cohort."""
    rules: Mapping[str, Any] = meta.rules
    conversion = rules.get("conversion") or {}
    text = REASONS[code]
    if code == "missing_modality":
        return f"{text} ({', '.join(meta.modalities)})"
    if code == "too_few_slices_header" and "min_slices_header" in rules:
        return f"fewer than {rules['min_slices_header']} slices on the third axis (header)"
    if code == "too_few_slices_content" and "min_slices" in conversion:
        return f"fewer than {conversion['min_slices']} axial slices that show brain (voxels)"
    if code == "grid_mismatch" and "grid_tolerance_mm" in rules:
        return f"{text} (tolerance {rules['grid_tolerance_mm']:g} mm)"
    return text


def _paper_steps() -> tuple[tuple[str, int], ...]:
    return tuple((text, value) for text, value in paper.fig3().items() if text != "volumes")
