"""The BIDS reader: T1w, T2w, FLAIR and contrast-enhanced T1w of any BIDS dataset, masks from its derivatives.

Names are taken apart into their entities (`sub-01_ses-2_run-1_T1w` has sub, ses and run) and a suffix, as the
Brain Imaging Data Structure 1.10 defines them; folders must agree with the names in them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from brainfoundry.cohorts.folder import Folder
from brainfoundry.cohorts.intake import LABEL, Gathering, IntakeRules, judge_cohort, left_alone
from brainfoundry.cohorts.labels import check_scheme
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta
from brainfoundry.cohorts.people import People
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError

MODALITIES = ("T1w", "T1ce", "T2w", "FLAIR")
"""What can be asked for. T1ce is a T1w with the entity `ce-gadolinium`."""

MASK_PATTERNS = ("*lesion*", "*_label-L_*", "*tumor*", "*tumour*")
"""Names of masks looked for by default; a dataset's brain masks must not be taken for lesions."""

_MASK_SUFFIXES = ("mask", "dseg", "roi")
_ENTITY = re.compile(r"[A-Za-z]+-[A-Za-z0-9+]+")
_NUMBER = re.compile(r"\d+")
# Folders of other data types and tools, in which no scan or mask lies that we look for.
_SKIPPED = {
    "func", "dwi", "fmap", "perf", "pet", "eeg", "meg", "ieeg", "nirs", "micr", "beh", "motion", "mrs",
    "surf", "mri", "scripts", "stats", "touch", "trash", "tmp", "xfm", "figures", "log", "logs",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BidsChoice:
    """Which files of a dataset to take.

    Args:
        masks: patterns of mask names (of files, * stands for anything, letter case does not matter).
        entities: entity -> value; a file that has the entity with another value is not taken, one without the
            entity only where none has it. Numbers are compared as numbers (run-01 is run-1).
        scheme: label scheme of the masks (`labels.SCHEMES`).
        space: template space of the scans; "" takes it from their `space` entity, and scanner space else.
        skull_stripped: whether the scans are.

    Raises:
        ConfigError: unknown scheme.
    """

    masks: tuple[str, ...] = MASK_PATTERNS
    entities: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "binary"
    space: str = ""
    skull_stripped: bool = False

    def __post_init__(self) -> None:
        check_scheme(self.scheme)


@dataclass(frozen=True)
class BidsName:
    """A file name taken apart: its entities in order, and its suffix, such as "T1w"."""

    entities: Mapping[str, str]
    suffix: str
    strict: bool
    """False where a part is neither an entity nor the suffix, as some masks have it."""


def parse_name(name: str) -> BidsName | None:
    """The parts of a NIfTI file's name, or None where it does not begin with a subject."""
    stem = name.removesuffix(".gz").removesuffix(".nii")
    *parts, suffix = stem.split("_")
    entities = dict(part.split("-", 1) for part in parts if _ENTITY.fullmatch(part))
    if next(iter(entities), "") != "sub" or not parts[0].startswith("sub-"):
        return None
    strict = len(entities) == len(parts) and re.fullmatch(r"[A-Za-z0-9]+", suffix) is not None
    return BidsName(entities, suffix, strict)


def entities_of(texts: Iterable[str], run: int | None = None) -> dict[str, str]:
    """Entities to choose by, from texts such as "acq-mprage", and the run.

    Raises:
        ConfigError: a text that is no entity.
    """
    wanted = {} if run is None else {"run": str(run)}
    for text in texts:
        key, _, value = text.replace("=", "-", 1).partition("-")
        if not key or not value or key in ("sub", "ses"):
            raise ConfigError(
                f"no entity to choose by: {text!r}", fix="write it as in file names: acq-mprage"
            )
        wanted[key] = value
    return wanted


def read_bids(
    root: str,
    manifest_uri: str,
    rules: IntakeRules | None = None,
    choice: BidsChoice | None = None,
    *,
    participants: str | None = None,
    left_out: LeftOut | None = None,
    threads: int = 16,
) -> Manifest:
    """Judge every session of a BIDS dataset by its headers and write the intake manifest.

    Subjects are named as in participants.tsv, "sub-01"; sessions without "ses-".

    Args:
        root: the dataset (any storage), raw or a derivative of its own.
        manifest_uri: where the manifest goes.
        participants: table with age, sex and site; by default the dataset's participants.tsv, if any.
        left_out: the user's lists.

    Raises:
        DataError: no such folder or table, or no scan in it. One bad file only costs its row.
        ConfigError: an unknown modality.
    """
    rules = rules or IntakeRules(modalities=("T1w",))
    choice = choice or BidsChoice()
    for name in rules.modalities:
        if name not in MODALITIES:
            raise ConfigError(f"unknown modality {name!r}", fix=f"choose of {', '.join(MODALITIES)}")
    folder = Folder(root, "the dataset: its sub-01, sub-02 and so on")
    listed = _Listing(rules, choice)
    for parts in folder.images(_enter):
        listed.add(parts, folder.uri_of(parts))
    found = list(listed.gathered().found())
    if not any(name in session.images for session in found for name in rules.modalities):
        raise DataError(
            f"no {' or '.join(rules.modalities)} scan found",
            file=folder.uri,
            fix="give the dataset's root, with sub-01/anat/sub-01_T1w.nii.gz and so on, or choose other "
            "--modalities or --entities",
        )
    people, notes = _people(folder.uri, participants)
    if people is not None:
        notes += people.notes({session.subject for session in found})
        found = [replace(f, **vars(people.of(f.subject))) for f in found]
    meta = ManifestMeta(
        cohort="bids",
        modalities=rules.modalities,
        template_space=choice.space or listed.space(),
        skull_stripped=choice.skull_stripped,
        source=folder.uri,
        labels="" if rules.labels == "ignore" else choice.scheme,
        notes=(*listed.notes(folder), *notes),
    )
    return judge_cohort(found, manifest_uri, meta, rules, left_out=left_out, threads=threads)


def _enter(parts: tuple[str, ...]) -> bool:
    """Which folders to look into: subjects and derivatives, of those no other data types."""
    if len(parts) == 1:
        return parts[0].startswith("sub-") or parts[0] == "derivatives"
    return parts[-1] not in _SKIPPED


@dataclass(frozen=True)
class _Candidate:
    """A file that may be a session's scan or mask; `exact` where it has every entity that was asked for."""

    subject: str
    session: str | None
    uri: str
    exact: bool


class _Listing:
    """Sorts a dataset's files into sessions, and remembers what it left alone and why."""

    def __init__(self, rules: IntakeRules, choice: BidsChoice) -> None:
        self._rules, self._choice = rules, choice
        self._scans: dict[str, list[_Candidate]] = {name: [] for name in MODALITIES}
        self._masks: list[_Candidate] = []
        self._spaces: set[str] = set()
        self._misnamed = self._misplaced = self._not_chosen = 0

    def add(self, parts: tuple[str, ...], uri: str) -> None:
        """One image file."""
        name, derived = parse_name(parts[-1]), parts[0] == "derivatives"
        if name is None:
            self._misnamed += not derived
            return
        modality = None if derived else _modality(name, parts)
        if modality is None and (self._rules.labels == "ignore" or not self._is_mask(name, parts[-1])):
            return
        if not _agrees(name, parts[:-1]):
            self._misplaced += 1
        elif not _chosen(name, self._choice.entities):
            self._not_chosen += 1
        else:
            exact = self._choice.entities.keys() <= name.entities.keys()
            session = name.entities.get("ses")
            one = _Candidate(f"sub-{name.entities['sub']}", session, uri, exact)
            (self._masks if modality is None else self._scans[modality]).append(one)
            if modality in self._rules.modalities:
                self._spaces.add(name.entities.get("space", ""))

    def gathered(self) -> Gathering:
        """The sessions. A mask without a session belongs to its subject's only one."""
        gathering = Gathering()
        sessions: dict[str, set[str]] = {}
        # Also modalities that were not asked for: a session that has only those was assessed all the same.
        for modality, candidates in self._scans.items():
            for one in _preferred(candidates):
                gathering.add(one.subject, one.session or "", modality, one.uri)
                sessions.setdefault(one.subject, set()).add(one.session or "")
        for one in _preferred(self._masks):
            of_subject = sessions.get(one.subject, {one.session or ""})
            session = next(iter(of_subject)) if one.session is None and len(of_subject) == 1 else one.session
            if session is None and "" not in of_subject:
                self._misplaced += 1
            else:
                gathering.add(one.subject, session or "", LABEL, one.uri)
        return gathering

    def space(self) -> str:
        """The template space that all scans name, "" where they name none or several."""
        return next(iter(self._spaces)) if len(self._spaces) == 1 else ""

    def notes(self, folder: Folder) -> list[str]:
        """Sentences on files left alone."""
        notes = list(left_alone(folder, self._misnamed, "BIDS"))
        if self._not_chosen:
            notes.append(f"{self._not_chosen:,} files of other entities than asked for were left alone")
        if self._misplaced:
            notes.append(
                f"{self._misplaced:,} files were left alone because their folder is of another subject or "
                "session than their name, or they are masks without the session of a subject with several"
            )
        return notes

    def _is_mask(self, name: BidsName, file: str) -> bool:
        patterns = (pattern.lower() for pattern in self._choice.masks)
        return name.suffix in _MASK_SUFFIXES and any(fnmatch.fnmatchcase(file.lower(), p) for p in patterns)


def _preferred(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """Of each session's candidates those with every entity asked for, or all where none has them."""
    exact = {(one.subject, one.session) for one in candidates if one.exact}
    return [one for one in candidates if one.exact or (one.subject, one.session) not in exact]


def _modality(name: BidsName, parts: tuple[str, ...]) -> str | None:
    """The modality of an image in an anat folder, or None."""
    entities = name.entities
    if not name.strict or parts[-2:-1] != ("anat",) or entities.get("part", "mag") != "mag":
        return None
    agent = entities.get("ce", "").lower()
    if name.suffix == "T1w" and agent:
        return "T1ce" if agent.startswith("gad") or agent in ("gd", "gbca") else None
    return name.suffix if name.suffix in ("T1w", "T2w", "FLAIR") else None


def _agrees(name: BidsName, folders: Iterable[str]) -> bool:
    """Whether the folders above a file are of the subject and session in its name."""
    named = [(key, folder) for folder in folders for key in ("sub", "ses") if folder.startswith(f"{key}-")]
    return all(folder == f"{key}-{name.entities.get(key)}" for key, folder in named)


def _chosen(name: BidsName, wanted: Mapping[str, str]) -> bool:
    return all(_same(name.entities[key], value) for key, value in wanted.items() if key in name.entities)


def _same(a: str, b: str) -> bool:
    return int(a) == int(b) if _NUMBER.fullmatch(a) and _NUMBER.fullmatch(b) else a == b


def _people(root: str, participants: str | None) -> tuple[People | None, list[str]]:
    """The participants table, and what to say where there is none."""
    if participants is not None:
        return People.read(participants), []
    uri = files.join(root, "participants.tsv")
    if not files.exists(uri):
        return None, ["the dataset has no participants.tsv: age, sex and site are unknown"]
    try:
        return People.read(uri), []
    except DataError as error:  # the dataset's own table was not asked for by name: its faults are told, only
        return None, [f"participants.tsv was not used: {error.problem}"]
