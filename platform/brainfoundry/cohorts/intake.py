"""From the sessions a reader found to the intake manifest: headers are read, every session gets a verdict.

A reader (`brats`, `atlas`, `bids`) knows names and folders only. Here its `Found` records are judged, many at
a time; rows stream to the manifest, so that what grows with the cohort is the list of file names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from brainfoundry.cohorts.exclusions import (
    REASONS,
    ExclusionLine,
    ScanError,
    exclusion_table,
    first_reason,
)
from brainfoundry.cohorts.folder import Folder, HeaderReader, Probe
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta, ManifestWriter, Row, Scan, read_manifest
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.progress import progress

LABEL = "label"
"""The name under which the mask stands beside the modalities."""

Labels = Literal["required", "optional", "ignore"]
Problem = tuple[str, str]
"""(reason code, a sentence)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One session as a reader finds it, before any file is opened.

    Args:
        session: "" where the cohort has none.
        images: modality -> URIs; several are a duplicate.
        labels: URIs of masks; several are a duplicate.
    """

    subject: str
    session: str
    images: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] = ()
    age: float | None = None
    sex: str | None = None
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class IntakeRules:
    """What to ask of a session's headers.

    Args:
        modalities: names in channel order; all but the optional ones are required.
        labels: "required" excludes sessions without a mask, "optional" keeps them (a mask that is there must
            still be sound), "ignore" looks for none.
        min_slices: fewest axial slices of the grid (paper Fig. 3: at least 100).
        grid_tolerance_mm: largest distance between corresponding corners of two scans of a session.
        optional: of the modalities, those a session may lack as long as it has one at all; a scan that is
            there must still be sound.

    Raises:
        ConfigError: no or repeated modality, an optional one that is none of them, negative rule.
    """

    modalities: tuple[str, ...]
    labels: Labels = "required"
    min_slices: int = 100
    grid_tolerance_mm: float = 0.01
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ConfigError(f"modalities is empty or repeats one: {self.modalities}", fix="name each once")
        if LABEL in self.modalities:
            raise ConfigError(f"{LABEL!r} is no modality", fix="masks are asked for with labels")
        check_optional(self.optional, self.modalities)
        if self.min_slices < 0 or self.grid_tolerance_mm < 0:
            raise ConfigError("min_slices and grid_tolerance_mm cannot be negative", fix="correct them")

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "labels": self.labels,
            "min_slices_header": self.min_slices,
            "grid_tolerance_mm": self.grid_tolerance_mm,
            **optional_rule(self.optional),
        }


def check_optional(optional: Sequence[str], modalities: Sequence[str]) -> None:
    """Refuse optional modalities that repeat one or are not among the cohort's (ConfigError)."""
    if len(set(optional)) != len(optional) or not set(optional) <= set(modalities):
        raise ConfigError(
            f"optional modalities {', '.join(optional)} are not some of {', '.join(modalities)}",
            fix="name each once, in --modalities and in --optional-modalities",
        )


def optional_rule(optional: Sequence[str]) -> dict[str, Any]:
    """What the manifest's rules say of optional modalities; nothing where there are none."""
    return {"optional_modalities": list(optional)} if optional else {}


def optional_of(meta: ManifestMeta) -> tuple[str, ...]:
    """The modalities that included sessions of a manifest may lack."""
    return tuple(meta.rules.get("optional_modalities", ()))


class Lacking:
    """Counts the included sessions without a scan of an optional modality."""

    def __init__(self, optional: Sequence[str]) -> None:
        self._optional = optional
        self._without: Counter[str] = Counter()
        self._included = 0

    def count(self, row: Row) -> None:
        """A judged session."""
        if row.included and self._optional:
            self._included += 1
            self._without.update(set(self._optional) - {scan.modality for scan in row.scans})

    def notes(self) -> tuple[str, ...]:
        """One line for each optional modality."""
        return tuple(
            f"{name} is optional: {self._without[name]:,} of the {self._included:,} included sessions lack it"
            for name in self._optional
        )


class Gathering:
    """Puts files together to sessions while a reader walks a cohort; sessions come out in manifest order."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], dict[str, list[str]]] = {}

    def __len__(self) -> int:
        return len(self._files)

    def add(self, subject: str, session: str, name: str, uri: str) -> None:
        """A file of a session; `name` is a modality or `LABEL`."""
        self._files.setdefault((subject, session), {}).setdefault(name, []).append(uri)

    def found(self) -> Iterator[Found]:
        """The sessions, ascending by subject and session, each file list sorted."""
        for subject, session in sorted(self._files):
            names = {name: tuple(sorted(uris)) for name, uris in self._files[subject, session].items()}
            labels = names.pop(LABEL, ())
            yield Found(subject=subject, session=session, images=names, labels=labels)


def judge_cohort(
    found: Iterable[Found],
    manifest_uri: str,
    meta: ManifestMeta,
    rules: IntakeRules,
    *,
    left_out: LeftOut | None = None,
    threads: int = 16,
    batch: int = 256,
) -> Manifest:
    """Read the headers of every session found, judge it, and write the intake manifest.

    Args:
        found: sessions, in any order, each once.
        meta: of the manifest; the rules are added to its own, and its label scheme is dropped where masks are
            optional and there is not one.
        left_out: the user's lists.
        threads: files read at once; storage latency, not the processor, is what they hide.
        batch: sessions in flight, and so in memory, at a time.

    Raises:
        DataError: the manifest cannot be written. One bad file only costs its row.
    """
    left_out = left_out or LeftOut()
    sessions = sorted(found, key=lambda f: (f.subject, f.session))
    unmasked = rules.labels == "optional" and not any(session.labels for session in sessions)
    if unmasked:
        meta = replace(meta, labels="")
    meta = replace(meta, rules={**meta.rules, **rules.to_dict(), **left_out.rules()})
    reader, without_mask, lacking = HeaderReader(meta.source), 0, Lacking(rules.optional)
    with (
        ManifestWriter(manifest_uri, meta) as writer,
        ThreadPoolExecutor(threads, thread_name_prefix="intake") as pool,
        progress("reading headers", len(sessions), "sessions") as bar,
    ):
        source = iter(sessions)
        while part := list(islice(source, batch)):
            for row in pool.map(lambda s: _judge(reader, s, meta.cohort, rules, left_out), part):
                writer.write(row)
                without_mask += row.included and row.label is None
                lacking.count(row)
            bar.advance(len(part))
        writer.note(*left_out.notes({f.subject for f in sessions}), *lacking.notes())
        if unmasked:
            writer.note("no session has a lesion mask: the cohort is read as one without labels")
        elif rules.labels == "optional" and without_mask:
            writer.note(f"{without_mask:,} of the included sessions have no lesion mask")
    return read_manifest(manifest_uri)


def _judge(reader: HeaderReader, session: Found, cohort: str, rules: IntakeRules, left_out: LeftOut) -> Row:
    """The manifest row of one session."""
    row = Row(subject=session.subject, session=session.session, cohort=cohort)
    listed = left_out.reason(session.subject)
    if listed == "withdrawn":  # nothing of them is kept, and none of their files opened
        return row.excluded("withdrawn", REASONS["withdrawn"])
    problems: list[Problem] = [(listed, REASONS[listed])] if listed else []
    probes: dict[str, list[Probe]] = {}
    for name in rules.modalities:
        uris = session.images.get(name, ())
        if not uris and name not in rules.optional:
            problems.append(("missing_modality", f"{name}: no file"))
        probes[name] = _probe_copies(reader, name, uris, session.subject, problems)
    problems += nothing_at_all(session.images, rules.modalities, rules.optional)
    if rules.labels != "ignore":
        if not session.labels and rules.labels == "required":
            problems.append(("missing_label", "the session has no lesion mask"))
        probes[LABEL] = _probe_copies(reader, LABEL, session.labels, session.subject, problems)
    single = {name: found[0] for name, found in probes.items() if len(found) == 1}
    problems += _grid_problems(list(single.values()), rules)
    row = replace(
        row,
        age=session.age,
        sex=session.sex,
        site=session.site,
        label=single[LABEL].scan if LABEL in single else None,
        scans=tuple(probe.scan for name in rules.modalities for probe in probes[name]),
    )
    return with_problems(row, problems)


def nothing_at_all(there: Iterable[str], modalities: Sequence[str], optional: Sequence[str]) -> list[Problem]:
    """The problem of a session without a single scan, in a cohort that requires no particular one."""
    if set(modalities) == set(optional) and not set(there) & set(modalities):
        return [("missing_modality", f"no file of any modality ({', '.join(modalities)})")]
    return []


def with_problems(row: Row, problems: Sequence[Problem]) -> Row:
    """The row, excluded for the first of its problems in CONSORT order, if it has any.

    All that is wrong stands in its detail, so that nobody mends one thing to be told of the next.
    """
    if not problems:
        return row
    reason = first_reason(reason for reason, _ in problems)
    details = sorted(problems, key=lambda problem: problem[0] != reason)  # what counts comes first
    return row.excluded(reason, "; ".join(detail for _, detail in details))


def describe(error: ScanError) -> str:
    """Problem, file and fix of an error in one sentence; the row names the subject."""
    return f"{error.problem} [{error.file}]" + (f". Fix: {error.fix}" if error.fix else "")


def _probe_copies(
    reader: HeaderReader, name: str, uris: Sequence[str], subject: str, problems: list[Problem]
) -> list[Probe]:
    """The readable ones of a scan's copies; adds what is wrong with them to `problems`."""
    probes = []
    for uri in uris:
        try:
            probes.append(reader.probe(uri, name, subject))
        except ScanError as error:
            problems.append((error.reason, f"{name}: {describe(error)}"))
    if len(uris) > 1:
        how = "not all readable" if len(probes) < len(uris) else "of equal size"
        if len({probe.scan.size for probe in probes}) > 1:
            how = "which differ"
        detail = f"{name}: {len(uris)} files, {how} [{', '.join(uris)}]. Fix: keep one of them"
        problems.append(("duplicate", detail))
    return probes


def _grid_problems(probes: Sequence[Probe], rules: IntakeRules) -> list[Problem]:
    """Scans on other grids than the first, and the rule on slices."""
    problems: list[Problem] = []
    images = [probe for probe in probes if probe.scan.modality != LABEL]
    for other in probes[1:]:
        first = probes[0].scan
        apart = _apart(probes[0], other, rules.grid_tolerance_mm)
        if apart:
            reason = "label_grid_mismatch" if other.scan.modality == LABEL else "grid_mismatch"
            text = f"{first.modality} and {other.scan.modality} lie on different grids: {apart}"
            problems.append((reason, f"{text} [{other.scan.uri}]"))
    if images:
        thin = min(images, key=lambda probe: _axial_slices(probe.scan)).scan
        if _axial_slices(thin) < rules.min_slices:
            few = f"{_axial_slices(thin)} axial slices, fewer than {rules.min_slices}"
            problems.append(("too_few_slices_header", f"{thin.modality}: {few} [{thin.uri}]"))
    return problems


def _axial_slices(scan: Scan) -> int:
    """Voxels along the axis that runs from foot to head."""
    return scan.shape[next(i for i, code in enumerate(scan.orientation) if code in "IS")]


def _apart(one: Probe, two: Probe, tolerance_mm: float) -> str:
    """How two grids differ, once both are in RAS axis order; "" where they do not."""
    (shape_a, affine_a), (shape_b, affine_b) = _canonical(one), _canonical(two)
    if shape_a != shape_b:
        shapes = " and ".join("x".join(map(str, shape)) for shape in (shape_a, shape_b))
        return f"{shapes} voxels"
    ends = [np.array([*np.multiply(corner, np.subtract(shape_a, 1)), 1.0]) for corner in np.ndindex(2, 2, 2)]
    gap = max(float(np.linalg.norm((affine_a - affine_b) @ end)) for end in ends)
    return f"corners up to {gap:.3g} mm apart" if gap > tolerance_mm else ""


def _canonical(probe: Probe) -> tuple[tuple[int, ...], np.ndarray]:
    ornt = axcodes2ornt(nibabel.aff2axcodes(probe.affine))
    order = np.argsort(ornt[:, 0])
    shape = tuple(probe.scan.shape[i] for i in order)
    return shape, probe.affine @ inv_ornt_aff(ornt, probe.scan.shape)


def left_alone(folder: Folder, others: int, cohort: str) -> tuple[str, ...]:
    """Notes on image files that no session was made of: `others` have no name of the cohort."""
    notes = []
    if others:
        notes.append(f"{others:,} image files have no name of {cohort} and were left alone")
    if folder.unreadable_names:
        notes.append(
            f"{folder.unreadable_names:,} image files have no UTF-8 path and were left alone: rename it"
        )
    return tuple(notes)


def require_eligible(manifest: Manifest) -> None:
    """Refuse a manifest in which every session is excluded.

    Raises:
        DataError: naming the most frequent reason.
    """
    counts = manifest.counts()
    if counts["included"]["sessions"]:
        return
    worst = max(REASONS, key=lambda reason: counts[reason]["sessions"])
    example = next(row for row in manifest.rows() if row.reason == worst)
    raise DataError(
        f"no eligible subject: all {counts['assessed']['sessions']:,} sessions are excluded, "
        f"{counts[worst]['sessions']:,} because {REASONS[worst]}; for example {example.detail}",
        file=manifest.meta.source,
        subject=example.subject,
        fix="mend or add scans, or choose other --modalities or rules (see --help)",
    )


def exclusions_of(manifest: Manifest) -> list[ExclusionLine]:
    """The manifest's exclusion table, with a line for each list of the user's, also where it met nobody."""
    lines = exclusion_table(manifest.counts(), stage=manifest.meta.stage)
    shown = {line.reason for line in lines}
    asked = [reason for reason in REASONS if f"{reason}_ids" in manifest.meta.rules and reason not in shown]
    extra = [
        ExclusionLine(reason=reason, label=f"excluded: {REASONS[reason]}", subjects=0, sessions=0)
        for reason in asked
    ]
    rank = {"assessed": -1, **{reason: i for i, reason in enumerate(REASONS)}, "included": len(REASONS)}
    return sorted([*lines, *extra], key=lambda line: rank[line.reason])
