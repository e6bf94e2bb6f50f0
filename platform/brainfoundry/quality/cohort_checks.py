"""Rules that need the whole cohort: who differs from the others, and who is there twice. Pure functions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from brainfoundry.cohorts import fingerprint
from brainfoundry.cohorts.labels import require_one_scheme
from brainfoundry.core.errors import DataError
from brainfoundry.quality.expect import Expectation
from brainfoundry.quality.facts import ScanFacts
from brainfoundry.quality.findings import Finding, finding
from brainfoundry.quality.scan_checks import place, sizes

FEWEST = 8
"""Scans of a modality from which on there is something to differ from."""
MAJORITY = 0.8
"""A cohort has a grid, voxel size or orientation of its own where this share of its scans has it."""
FAR = 6.0
"""Robust standard deviations (1.4826 times the median absolute deviation) at which a scan is an outlier."""
_LEAST_SPREAD = 0.1
"""Of logarithms: a cohort more uniform than 10 % is taken as spread by 10 %."""
_TURNED_LIMIT = 2_000
"""Scans up to which duplicates are also looked for with their axes renamed, at 48 times the work."""


def check_cohort(facts: Sequence[ScanFacts], expect: Expectation) -> Iterator[Finding]:
    """Findings about scans among their like; scans that are empty or not finite are left aside."""
    usable = [f for f in facts if f.finite and f.distinct]
    yield from minorities(usable)
    yield from outliers(usable)
    yield from duplicates(usable)


def minorities(facts: Sequence[ScanFacts]) -> Iterator[Finding]:
    """Scans whose grid, voxel size or stored orientation is not that of nearly all others of the modality."""
    rules: tuple[tuple[str, Callable[[ScanFacts], object], Callable[[ScanFacts], str], str], ...] = (
        ("shape", lambda f: f.shape, lambda f: f"grid {sizes(f.shape)}", "resample it to the cohort's grid"),
        (
            "spacing",
            lambda f: tuple(round(mm, 2) for mm in f.spacing),
            lambda f: f"voxels of {sizes(f.spacing)} mm",
            "check pixdim in the header, or resample it",
        ),
        (
            "orientation",
            lambda f: f.orientation,
            lambda f: f"stored {f.orientation}",
            "harmless here (axes are brought to RAS), but check that the header is right",
        ),
    )
    for same in _by_modality(facts).values():
        if len(same) < FEWEST:
            continue
        for code, of, shown, fix in rules:
            counts = Counter(of(f) for f in same)
            usual, n = counts.most_common(1)[0]
            if n < MAJORITY * len(same) or n == len(same):
                continue
            example = next(f for f in same if of(f) == usual)
            for one in same:
                if of(one) != usual:
                    detail = (
                        f"{shown(one)}; {n:,} of {len(same):,} {one.modality} scans have {shown(example)}"
                    )
                    yield finding(code, detail, fix, **place(one))


def outliers(facts: Sequence[ScanFacts]) -> Iterator[Finding]:
    """Scans whose intensities or foreground volume are far from the others of the modality.

    Compared are logarithms: mean, spread and 99th percentile differ between scanners by factors.
    """
    rules: tuple[tuple[str, str, Callable[[ScanFacts], float]], ...] = (
        ("intensity_outlier", "mean", lambda f: abs(f.mean)),
        ("intensity_outlier", "standard deviation / mean", lambda f: f.sd / max(abs(f.mean), 1e-12)),
        ("intensity_outlier", "99th percentile / median", lambda f: f.p99 / max(abs(f.median), 1e-12)),
        ("volume_outlier", "foreground, ml", lambda f: f.foreground_ml),
    )
    for same in _by_modality(facts).values():
        if len(same) < FEWEST:
            continue
        worst: dict[tuple[int, str], tuple[float, str]] = {}
        for code, name, of in rules:
            values = np.array([of(f) for f in same])
            logs = np.log(np.maximum(values, 1e-12))
            middle = float(np.median(logs))
            spread = max(1.4826 * float(np.median(np.abs(logs - middle))), _LEAST_SPREAD)
            for i in map(int, np.flatnonzero(np.abs(logs - middle) > FAR * spread)):
                z = float(abs(logs[i] - middle) / spread)
                detail = f"{name} {values[i]:.4g}, {np.exp(middle):.4g} is usual ({z:.0f} deviations away)"
                if z > worst.get((i, code), (0.0, ""))[0]:
                    worst[i, code] = z, detail
        for (i, code), (_, detail) in sorted(worst.items()):
            yield finding(code, detail, "look at the scan; rescale it, or leave it out", **place(same[i]))


def duplicates(facts: Sequence[ScanFacts]) -> Iterator[Finding]:
    """The same image twice, by fingerprint: under two subjects, or for two visits or modalities of one.

    Each repetition is told once, at the later scan in order of subject, session and modality.
    """
    ordered = sorted(facts, key=lambda f: (f.subject, f.session, f.modality, f.file))
    prints = fingerprint.stack(bytes.fromhex(f.print) for f in ordered)
    turned = len(ordered) <= _TURNED_LIMIT
    told: set[int] = set()
    pairs = fingerprint.close_pairs(prints, any_orientation=turned)
    for i, j, distance in sorted(pairs, key=lambda p: (p[1], p[0])):
        if j in told:
            continue
        told.add(j)
        first, again = ordered[i], ordered[j]
        other = first.subject != again.subject
        same_bytes = bool(first.sha256) and first.sha256 == again.sha256
        how = "the same file" if same_bytes else f"{distance:.1%} of the fingerprint's bits differ"
        whose = " ".join(part for part in (first.subject, first.session, first.modality) if part)
        detail = f"same image as {whose} [{first.file}]: {how}"
        fix = "find out whose scan it is; keep one, and never on both sides of a split"
        yield finding("duplicate_subjects" if other else "duplicate", detail, fix, **place(again))


def one_scheme(
    found: Iterable[tuple[str, Sequence[int]]], expect: Expectation, *, file: str
) -> Iterator[Finding]:
    """Masks of two label schemes in one cohort.

    Args:
        found: (subject, labels in the mask) of every mask.
    """
    if not expect.labels:
        return
    try:
        require_one_scheme(found, expect.labels, file=file)
    except DataError as error:
        yield finding("label_schemes", error.problem, error.fix or "", subject=error.subject or "", file=file)


def _by_modality(facts: Sequence[ScanFacts]) -> dict[str, list[ScanFacts]]:
    groups: dict[str, list[ScanFacts]] = defaultdict(list)
    for one in facts:
        groups[one.modality].append(one)
    return groups
