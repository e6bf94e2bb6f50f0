"""Rules for one scan or one session, judged on facts: pure functions that give findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.labels import LabelValues, check_values, label_values
from brainfoundry.quality.expect import Expectation
from brainfoundry.quality.facts import ScanFacts
from brainfoundry.quality.findings import Finding, finding
from brainfoundry.quality.template import SPACES

PLAUSIBLE_MM = (0.1, 12.0)
"""Voxel sizes a brain MRI can have; 8 mm slices are the thickest in clinical use."""
MOST_BRAIN_ML = 2_200.0
"""Foreground larger than this is more than a brain. In template space brains measure 1,750 to 1,880 ml here,
whole heads 2,240 ml (clinical slices) to 4,900 ml."""
LEAST_HEAD_ML = 2_000.0
"""Foreground smaller than this on an exactly flat background is no whole head."""
_FLAT_BACKGROUND = 0.2
"""A skull-stripped volume is exactly one value on more than this share of voxels, however tightly cut."""
DICE = (0.5, 0.85)
"""Overlap with the template brain below which a brain is elsewhere, or off. Brains brought to MNI152 by a
non-linear registration reach 0.94 to 0.98, by a rigid one 0.72, in scanner space 0.39 to 0.69."""
COVER = (0.7, 0.9)
"""Share of the template brain that a whole head in template space must show; registered heads reach 0.99."""

_REASON_CODES = {"damaged_data": "unreadable", "unreadable_archive": "unreadable", "empty_volume": "empty"}
CHANGED = "file has changed since the intake"


def of_error(error: ScanError, *, session: str, modality: str) -> Finding:
    """The finding of a scan that could not be loaded."""
    code = _REASON_CODES.get(error.reason, error.reason)
    if error.problem.startswith(CHANGED):
        code = "changed"
    return finding(
        code,
        error.problem,
        error.fix or "deliver the file again, or leave the session out",
        subject=error.subject or "",
        session=session,
        modality=modality,
        file=error.file or "",
    )


def check_scan(facts: ScanFacts, expect: Expectation) -> Iterator[Finding]:
    """All that one scan alone can show. A volume without content is asked nothing further."""
    at = place(facts)
    if not facts.finite:
        yield finding("not_finite", "voxels are NaN or infinite", "make the volume again", **at)
    if not facts.distinct:
        code, what = ("empty", "zero") if not facts.slices else ("constant", f"{facts.mean:.6g}")
        yield finding(code, f"every voxel is {what}", "deliver the scan again, or leave it out", **at)
        return
    if facts.slices < expect.min_slices:
        detail = f"{facts.slices} axial slices show brain, {expect.min_slices} are asked for"
        yield finding("few_slices", detail, "leave it out, or lower the rule", **at)
    low, high = PLAUSIBLE_MM
    if not all(low <= mm <= high for mm in facts.spacing):
        detail = f"voxels of {sizes(facts.spacing)} mm"
        yield finding("spacing", detail, "check pixdim and the units in the header", **at)
    yield from _skull(facts, expect)
    yield from _place(facts, expect)


def _skull(facts: ScanFacts, expect: Expectation) -> Iterator[Finding]:
    at = place(facts)
    shown = f"foreground of {facts.foreground_ml:,.0f} ml"
    if expect.skull_stripped:
        if facts.foreground_ml > MOST_BRAIN_ML:
            detail = f"{shown}: more than a brain (at most {MOST_BRAIN_ML:,.0f} ml)"
        elif facts.background_share < _FLAT_BACKGROUND:
            detail = f"only {facts.background_share:.0%} of the voxels are plain background"
        else:
            return
        yield finding("not_stripped", detail, "strip the skull, or deliver the stripped file", **at)
    elif facts.foreground_ml < LEAST_HEAD_ML and facts.background_share > 0.5:
        detail = f"{shown}, {facts.background_share:.0%} of the voxels are exactly background"
        yield finding(
            "looks_stripped", detail, "prepare the cohort as skull-stripped, or use whole heads", **at
        )


def _place(facts: ScanFacts, expect: Expectation) -> Iterator[Finding]:
    if expect.space not in SPACES:
        return
    overlap, name, (wrong, low) = facts.dice, "Dice with the template brain", DICE
    if not expect.skull_stripped and facts.foreground_ml >= LEAST_HEAD_ML:
        overlap, name, (wrong, low) = facts.cover, "share of the template brain that is shown", COVER
    if overlap >= low:
        return
    code = "not_in_template" if overlap < wrong else "off_template"
    detail = f"{name} {overlap:.2f}, at least {low} is usual in {expect.space}"
    fix = "register it to the template, or check the header's sform and qform"
    yield finding(code, detail, fix, **place(facts))


def check_labels(
    labels_XYZ: np.ndarray,
    foreground_XYZ: np.ndarray | None,
    expect: Expectation,
    *,
    subject: str,
    session: str,
    file: str,
) -> Iterator[Finding]:
    """A mask's labels against the scheme, and where they lie.

    Args:
        labels_XYZ: uint8, cleaned.
        foreground_XYZ: bool, on the same grid; None where no image of the session could be used.
    """
    at = {"subject": subject, "session": session, "modality": "label", "file": file}
    values = label_values(labels_XYZ)
    if not values:
        yield finding("label_empty", "mask is all 0", "check that the session has no lesion", **at)
        return
    if expect.labels:
        try:
            check_values(values, expect.labels, file=file, subject=subject)
        except LabelValues as error:
            yield of_error(error, session=session, modality="label")
    if foreground_XYZ is not None and foreground_XYZ.shape == labels_XYZ.shape:
        marked = labels_XYZ > 0
        outside = 1 - float(foreground_XYZ[marked].mean())
        if outside > 0.5:
            detail = f"{outside:.0%} of the {int(marked.sum()):,} marked voxels lie on background"
            yield finding("label_outside", detail, "check that the mask belongs to this session", **at)


def check_complete(
    found: Iterable[str], expect: Expectation, *, subject: str, session: str
) -> Iterator[Finding]:
    """Modalities the cohort requires and the session lacks."""
    names = set(found)
    for modality in expect.modalities:
        if modality not in names and modality not in expect.optional:
            detail, fix = f"no {modality} in this session", "deliver it, or train without this session"
            yield finding("missing_scan", detail, fix, subject=subject, session=session, modality=modality)


def place(facts: ScanFacts) -> dict[str, str]:
    """Which scan it is, as findings name it."""
    return {
        "subject": facts.subject,
        "session": facts.session,
        "modality": facts.modality,
        "file": facts.file,
    }


def sizes(values: Iterable[float]) -> str:
    """Numbers as 1 x 1 x 2.5."""
    return " x ".join(f"{value:.4g}" for value in values)
