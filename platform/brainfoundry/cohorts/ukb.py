"""The UK Biobank reader: from a folder of bulk zips, or the same unpacked, to the intake manifest.

Reads headers only, many files at once. What grows with the cohort is the list of file names (about 0.3 kB
a file); rows stream to the manifest in batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from brainfoundry.cohorts.exclusions import REASONS, ScanError
from brainfoundry.cohorts.intake import (
    Lacking,
    check_optional,
    describe,
    optional_rule,
    require_eligible,
    with_problems,
)
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta, ManifestWriter, Row, read_manifest
from brainfoundry.cohorts.participants import Participants, read_participants
from brainfoundry.cohorts.ukb_files import FIELDS, BulkFile, BulkFolder, Probe
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.progress import progress

__all__ = ["UKB_GRID", "UKBRules", "read_ukb", "require_eligible"]

# FSL's MNI152 1 mm grid, on which UK Biobank delivers everything "to_MNI".
UKB_GRID = (182, 218, 182)


@dataclass(frozen=True, kw_only=True)
class UKBRules:
    """What to take and what to leave out.

    Args:
        modalities: names in channel order, of `FIELDS`.
        instances: imaging visits; 2 is the first, 3 the first repeat (UK Biobank showcase).
        min_slices: fewest voxels along the third axis of the stored header (paper Fig. 3: at least 100
            slices in both modalities).
        grid_tolerance_mm: largest difference between the affines of a session's modalities.
        optional: of the modalities, those a session may lack as long as it has one at all.

    Raises:
        ConfigError: unknown or repeated modality, an optional one that is not taken, no or repeated instance,
            negative rule.
    """

    modalities: tuple[str, ...] = ("T1w", "FLAIR")
    instances: tuple[int, ...] = (2,)
    min_slices: int = 100
    grid_tolerance_mm: float = 1e-3
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.modalities:
            if name not in FIELDS:
                raise ConfigError(f"unknown modality {name!r}", fix=f"choose of {', '.join(FIELDS)}")
        for what, values in (("modalities", self.modalities), ("instances", self.instances)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{what} is empty or repeats one: {values}", fix="name each once")
        check_optional(self.optional, self.modalities)
        if min(self.instances) < 0 or self.min_slices < 0 or self.grid_tolerance_mm < 0:
            raise ConfigError("instances, min_slices and grid_tolerance_mm cannot be negative")


@dataclass(frozen=True)
class _Session:
    """The bulk files of one subject and instance, of the wanted fields."""

    eid: str
    instance: int
    found: Sequence[BulkFile]


@dataclass
class _HeaderRule:
    """How many sessions met the header rule, to say whether it could have excluded anybody."""

    judged: int = 0
    on_ukb_grid: int = 0
    excluded: int = 0

    def note(self, min_slices: int) -> str:
        grid = "x".join(map(str, UKB_GRID))
        text = (
            f"header rule (third axis at least {min_slices}): {self.on_ukb_grid:,} of the {self.judged:,} "
            f"sessions that came to it lie on UK Biobank's {grid} grid, "
        )
        if min_slices > UKB_GRID[2]:
            return text + f"where it excludes everybody; it excluded {self.excluded:,} in all"
        return (
            f"{text}where it can exclude nobody; it excluded {self.excluded:,} of the other "
            f"{self.judged - self.on_ukb_grid:,}. Slices with brain are counted at conversion (content rule)"
        )


def read_ukb(
    root: str,
    manifest_uri: str,
    rules: UKBRules | None = None,
    *,
    participants: str | None = None,
    left_out: LeftOut | None = None,
    threads: int = 16,
    batch: int = 256,
) -> Manifest:
    """Judge every session below `root` by its headers and write the intake manifest.

    Args:
        root: folder (any storage) with `{eid}_{field}_{instance}_{array}.zip`, or folders of that name with
            what the zips hold, in any subfolders.
        manifest_uri: where the manifest goes.
        participants: optional table with age, sex and site (see `read_participants`).
        left_out: the user's lists of participants to leave out.
        threads: files read at once; storage latency, not the processor, is what they hide.
        batch: sessions in flight, and so in memory, at a time.

    Raises:
        DataError: no such folder, or nothing of UK Biobank in it. One bad file only costs its row.
    """
    rules, left_out = rules or UKBRules(), left_out or LeftOut()
    folder = BulkFolder(root)
    sessions, other_visits = _sessions(folder, rules)
    table = read_participants(participants, {s.eid for s in sessions}) if participants else None
    if table is not None:  # a wrong cell is told now, not an hour into the headers
        for session in sessions:
            table.of(session.eid, session.instance)
    meta = ManifestMeta(
        cohort="ukb",
        modalities=rules.modalities,
        template_space="MNI152",
        skull_stripped=True,
        source=folder.uri,
        rules={
            "instances": list(rules.instances),
            "min_slices_header": rules.min_slices,
            "grid_tolerance_mm": rules.grid_tolerance_mm,
            **optional_rule(rules.optional),
            **left_out.rules(),
        },
    )
    rule, unknown, lacking = _HeaderRule(), 0, Lacking(rules.optional)
    with (
        ManifestWriter(manifest_uri, meta) as writer,
        ThreadPoolExecutor(threads, thread_name_prefix="intake") as pool,
        progress("reading headers", len(sessions), "sessions") as bar,
    ):
        for part in _batches(sessions, batch):
            for row in pool.map(lambda s: _judge(folder, s, rules, table, left_out), part):
                writer.write(row)
                _count_header_rule(rule, row)
                lacking.count(row)
                known = table is None or row.subject in table or row.reason == "withdrawn"
                unknown += not known
            bar.advance(len(part))
        writer.note(rule.note(rules.min_slices))
        writer.note(*left_out.notes({s.eid for s in sessions}), *lacking.notes())
        if other_visits:
            which = ", ".join(f"{n:,} of instance {i}" for i, n in sorted(other_visits.items()))
            writer.note(f"bulk files of other instances were left out: {which}")
        if unknown:
            writer.note(f"{unknown:,} sessions are of subjects whom the participants table does not know")
    return read_manifest(manifest_uri)


def _sessions(folder: BulkFolder, rules: UKBRules) -> tuple[list[_Session], dict[int, int]]:
    """Sessions in the manifest's order, and the number of files left out by instance."""
    fields = {FIELDS[name].field for name in rules.modalities}
    grouped: dict[tuple[str, int], list[BulkFile]] = {}
    other_visits: dict[int, int] = {}
    others: set[int] = set()
    for found in folder.find():
        if found.field not in fields:
            others.add(found.field)
        elif found.instance not in rules.instances:
            other_visits[found.instance] = other_visits.get(found.instance, 0) + 1
        else:
            grouped.setdefault((found.eid, found.instance), []).append(found)
    if not grouped:
        wanted = " or ".join(
            f"EID_{FIELDS[name].field}_{rules.instances[0]}_0.zip" for name in rules.modalities
        )
        if other_visits:
            seen = f"only those of instance {', '.join(map(str, sorted(other_visits)))}"
        else:
            seen = f"only fields {', '.join(map(str, sorted(others)))}" if others else "no bulk file at all"
        raise DataError(
            f"no UK Biobank scan of instance {', '.join(map(str, rules.instances))} found: {seen}",
            file=folder.uri,
            fix=f"give the folder that holds {wanted}, or choose other --modalities or --instances",
        )
    ordered = sorted(grouped, key=lambda key: (key[0], str(key[1])))
    by_path = [_Session(eid, i, sorted(grouped[eid, i], key=lambda found: found.path)) for eid, i in ordered]
    return by_path, other_visits


def _batches(sessions: Iterable[_Session], size: int) -> Iterator[list[_Session]]:
    source = iter(sessions)
    while part := list(islice(source, size)):
        yield part


def _judge(
    folder: BulkFolder, session: _Session, rules: UKBRules, table: Participants | None, left_out: LeftOut
) -> Row:
    """The manifest row of one session."""
    row = Row(subject=session.eid, session=str(session.instance), cohort="ukb")
    listed = left_out.reason(session.eid)
    if listed == "withdrawn":  # nothing of them is kept, and none of their files opened
        return row.excluded("withdrawn", REASONS["withdrawn"])
    probes, problems = _probe_all(folder, session, rules)
    if not problems:
        problems += _grid_problems([probes[name][0] for name in rules.modalities if probes[name]], rules)
    if listed:
        problems.append((listed, REASONS[listed]))
    row = replace(row, scans=tuple(probe.scan for name in rules.modalities for probe in probes[name]))
    if table is not None:
        known = table.of(session.eid, session.instance)
        row = replace(row, age=known.age, sex=known.sex, site=known.site)
    return with_problems(row, problems)


def _probe_all(
    folder: BulkFolder, session: _Session, rules: UKBRules
) -> tuple[dict[str, list[Probe]], list[tuple[str, str]]]:
    """Probes by modality, and (reason, detail) of what is wrong with single files."""
    probes: dict[str, list[Probe]] = {name: [] for name in rules.modalities}
    problems: list[tuple[str, str]] = []
    for name in rules.modalities:
        field = FIELDS[name]
        copies = [f for f in session.found if f.field == field.field]
        if not copies and name not in rules.optional:
            problems.append(("missing_modality", f"{name}: no file of field {field.field} ({field.title})"))
        for found in copies:
            try:
                probes[name].append(folder.probe(found, name))
            except ScanError as error:
                problems.append((error.reason, f"{name}: {describe(error)}"))
        if len(copies) > 1:
            problems.append(("duplicate", f"{name}: {_describe_copies(copies, probes[name])}"))
    return probes, problems


def _describe_copies(copies: Sequence[BulkFile], probes: Sequence[Probe]) -> str:
    sizes = {(p.scan.size, p.scan.crc32) for p in probes if p.scan.crc32 is not None}
    sizes_only = {p.scan.size for p in probes}
    if len(probes) < len(copies):
        how = "not all readable"
    elif len(sizes_only) > 1 or len(sizes) > 1:
        how = "which differ"
    else:
        how = "of equal size"
    paths = ", ".join(found.path for found in copies)
    return f"field and instance delivered {len(copies)} times, {how} [{paths}]. Fix: keep one of them"


def _grid_problems(probes: Sequence[Probe], rules: UKBRules) -> list[tuple[str, str]]:
    """Grid mismatch and the header rule, for a session whose scans could all be read."""
    problems = []
    first = probes[0]
    for other in probes[1:]:
        names = f"{first.scan.modality} and {other.scan.modality}"
        if other.scan.shape != first.scan.shape:
            shapes = " and ".join("x".join(map(str, p.scan.shape)) for p in (first, other))
            problems.append(("grid_mismatch", f"{names} lie on different grids: {shapes} voxels"))
        elif not np.allclose(other.affine, first.affine, rtol=0.0, atol=rules.grid_tolerance_mm):
            gap = np.abs(other.affine - first.affine).max()
            detail = f"{names} lie on different grids: their affines differ by up to {gap:.3g} mm"
            problems.append(("grid_mismatch", detail))
    thin = min(probes, key=lambda probe: probe.scan.shape[2]).scan
    if thin.shape[2] < rules.min_slices:
        few = f"{thin.shape[2]} slices on the third axis, fewer than {rules.min_slices}"
        detail = f"{thin.modality}: {few} [{thin.uri}]"
        problems.append(("too_few_slices_header", detail))
    return problems


def _count_header_rule(rule: _HeaderRule, row: Row) -> None:
    if row.reason in ("", "too_few_slices_header"):
        rule.judged += 1
        rule.excluded += bool(row.reason)
        rule.on_ukb_grid += all(scan.shape == UKB_GRID for scan in row.scans)
