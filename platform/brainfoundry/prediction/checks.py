"""What a case must be to be predicted: complete, and of the kind of scans that the network was trained on.

A refusal is a `DataError`; what is odd but can be predicted is a note in the case's file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from brainfoundry.cohorts.rows import Scan
from brainfoundry.core.errors import DataError
from brainfoundry.inference.geometry import CaseVolume, Space
from brainfoundry.inference.nifti_out import raw_header
from brainfoundry.prediction.cases import Case
from brainfoundry.quality.expect import Expectation
from brainfoundry.quality.facts import ScanFacts, measure
from brainfoundry.quality.scan_checks import check_scan, sizes
from brainfoundry.quality.session import where
from brainfoundry.quality.template import SPACES
from brainfoundry.store.volume import Volume

REFUSALS: Mapping[str, str] = {"not_in_template": "space", "not_stripped": "skull"}
"""Findings of `quality.scan_checks` that refuse a scan -> the value of --allow that lets it pass."""
_NOTED = ("off_template", "looks_stripped", "spacing")
_USUAL_MM = 1.0
"""BraTS, ATLAS and UK Biobank are all of 1 mm: what networks trained on scans as they came have seen."""
_OTHER_SIZE = 0.1
"""A voxel size is another one from 10 % on."""


def choose_scans(case: Case, space: Space) -> dict[str, Scan]:
    """The scan of every modality that the network is fed.

    Raises:
        DataError: a modality is missing, or there are several scans of one.
    """
    there: dict[str, list[Scan]] = defaultdict(list)
    for scan in case.scans:
        there[scan.modality].append(scan)
    wanted = tuple(dict.fromkeys(space.sources))
    missing = [name for name in wanted if name not in there]
    if missing:
        have = ", ".join(sorted(there)) or "nothing"
        said, _, mend = case.problem.partition(". Fix: ")
        why = f" (the intake says: {said})" if said else ""
        raise DataError(
            f"no {' and no '.join(missing)}: the network wants {', '.join(wanted)}, there is {have}{why}",
            subject=case.name,
            fix=mend or "deliver it, or predict with a checkpoint that was trained without",
        )
    for name in wanted:
        if len(there[name]) > 1:
            uris = ", ".join(map(where, there[name]))
            raise DataError(
                f"{len(there[name])} scans of {name}: {uris}", subject=case.name,
                fix="keep one of them, or choose with --run or --entities (BIDS)",
            )  # fmt: skip
    return {name: there[name][0] for name in wanted}


def check_claims(case: Case, space: Space, allow: Collection[str]) -> list[str]:
    """Notes on what the case's source says of its scans, against what the network was trained on.

    Raises:
        DataError: another template space, or whole heads where brains are expected.
    """
    found = []
    if case.space and space.template and not _same(case.space, space.template):
        problem = f"scans are in {case.space} space, the network was trained in {space.template}"
        found.append(("space", problem, f"register them to {space.template}"))
    if case.skull_stripped is False and space.skull_stripped:
        problem = "scans are whole heads by their source, the network was trained on skull-stripped ones"
        found.append(("skull", problem, "strip the skulls"))
    return [_refuse_or_note(*one, allow=allow, subject=case.name, file=None) for one in found]


def check_volume(
    volume: CaseVolume, scans: Mapping[str, str], space: Space, allow: Collection[str]
) -> list[str]:
    """Notes on what the voxels show of template space and skull.

    Args:
        scans: modality -> file, for the messages.

    Raises:
        DataError: a brain elsewhere than the template's, or a skull where none is expected.
    """
    notes = []
    for modality, one in volume.volumes.items():
        placed = _has_orientation(one)
        if not placed and space.template in SPACES:
            notes.append(f"{modality}: not held against {space.template}, its header has no orientation")
        expect = Expectation(
            modalities=(modality,), space=space.template if placed else "", labels="", min_slices=0,
            skull_stripped=space.skull_stripped,
        )  # fmt: skip
        facts = ScanFacts(
            subject=volume.subject, session="", modality=modality, file=scans[modality], sha256="",
            shape=one.header.shape, spacing=one.header.spacing, orientation=one.header.orientation,
            **measure(volume.values(modality), one.affine),
        )  # fmt: skip
        for finding in check_scan(facts, expect):
            text = f"{modality}: {finding.detail}"
            if finding.code in REFUSALS:
                kind = REFUSALS[finding.code]
                notes.append(
                    _refuse_or_note(
                        kind, text, finding.fix, allow=allow, subject=volume.subject, file=scans[modality]
                    )
                )  # fmt: skip
            elif finding.code in _NOTED:
                notes.append(text)
    return notes


def grid_notes(
    shape: Sequence[int], spacing: Sequence[float], space: Space, window: Sequence[int]
) -> list[str]:
    """Notes on voxel size and extent.

    Args:
        shape, spacing: of the grid that the network sees.
    """
    notes = []
    apart = max(abs(mm / _USUAL_MM - 1) for mm in spacing)
    if space.spacing_mm is None and apart > _OTHER_SIZE:
        notes.append(
            f"voxels of {sizes(spacing)} mm, and nothing was resampled: the network was trained on scans as "
            f"they came, of a size that its card does not name (usually {_USUAL_MM:g} mm)"
        )
    if any(side < least for side, least in zip(shape, window, strict=True)):
        notes.append(
            f"volume of {sizes(shape)} is smaller than the window of {sizes(window)}: padded with background"
        )
    return notes


def feed_notes(space: Space) -> list[str]:
    """Notes on channels that another modality feeds, as the card declares."""
    return [
        f"channel {channel} is fed the {source}, as in training" for channel, source in space.feeds.items()
    ]


def _same(one: str, two: str) -> bool:
    return one == two or (one in SPACES and two in SPACES)


def _has_orientation(volume: Volume) -> bool:
    header = raw_header(volume.prefix, volume.header.version)
    return bool(header["qform_code"] or header["sform_code"])


def _refuse_or_note(
    kind: str, problem: str, fix: str, *, allow: Collection[str], subject: str, file: str | None
) -> str:
    if kind in allow:
        return f"{problem} (--allow {kind})"
    raise DataError(
        problem, subject=subject, file=file,
        fix=f"{fix} (--preprocess runs a command on every scan), or let it pass with --allow {kind}",
    )  # fmt: skip
