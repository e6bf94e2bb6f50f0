"""The demo cohort: made-up participants in UK Biobank's own files, with what a real intake has wrong with it.

Participant ids begin at 9,900,001. Real ones have seven digits and lie between 1,000,000 and about
6,100,000, so that no demo file can be taken for a participant's.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from brainfoundry.cohorts.demo_files import complete, nifti_bytes
from brainfoundry.cohorts.phantom import HEALTHY, MNI_AFFINE, Draws, make_anatomy, render
from brainfoundry.cohorts.ukb_files import FIELDS
from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError

FIRST_EID = 9_900_001
MAX_SUBJECTS = 99_999
PARTICIPANTS = "participants.tsv"
# Raised whenever the same spec would give other voxels or files, so that nobody reuses an older cohort.
GENERATOR = 1

# Ages at imaging and the four imaging centres (UK Biobank showcase, fields 21003 and 54: Cheadle 11025,
# Reading 11026, Newcastle 11027, Bristol 11028).
_AGES = (45.0, 82.0)
_SITES = ("11025", "11026", "11027", "11028")
_YEARS_TO_REPEAT = 2.5
_TRUNCATED = (45, 135)  # 90 slices: fewer than the 100 of the header rule
_WITH_BRAIN = (60, 120)  # 60 slices: fewer than the 100 of the content rule
_FIRST_VISIT, _REPEAT_VISIT = 2, 3


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """How many participants of each kind. All but the first two kinds are excluded by an intake.

    Args:
        n_healthy: with both scans, whole.
        n_repeat: how many of those came back (instance 3).
        n_no_flair: T1w only.
        n_truncated_grid: both scans cut to 90 slices, header and all.
        n_few_slices: full grid, brain on 60 slices only.
        n_cut_zip: T1w zip cut short at six tenths of its bytes.
        n_damaged: FLAIR damaged inside the gzip stream, in a zip that is whole.
        seed: of everything random.

    Raises:
        ConfigError: negative or impossible numbers.
    """

    n_healthy: int = 12
    n_repeat: int = 1
    n_no_flair: int = 1
    n_truncated_grid: int = 1
    n_few_slices: int = 1
    n_cut_zip: int = 1
    n_damaged: int = 1
    seed: int = 2024

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if name.startswith("n_")}
        for name, value in numbers.items():
            if value < 0:
                raise ConfigError(f"{name} is {value}", fix="give 0 or more")
        if self.n_repeat > self.n_healthy:
            raise ConfigError(
                f"n_repeat {self.n_repeat} is more than n_healthy {self.n_healthy}",
                fix="only healthy participants come back: lower n_repeat",
            )
        if not 0 < self.n_subjects <= MAX_SUBJECTS:
            raise ConfigError(f"{self.n_subjects} participants", fix=f"ask for 1 to {MAX_SUBJECTS:,}")

    @property
    def n_subjects(self) -> int:
        """Participants of all kinds."""
        return sum(n for _, n in self._kinds())

    def _kinds(self) -> tuple[tuple[str, int], ...]:
        return (
            ("healthy", self.n_healthy),
            ("no_flair", self.n_no_flair),
            ("truncated_grid", self.n_truncated_grid),
            ("few_slices", self.n_few_slices),
            ("cut_zip", self.n_cut_zip),
            ("damaged", self.n_damaged),
        )

    def subjects(self) -> Iterator[DemoSubject]:
        """Every participant, in order of eid."""
        index = 0
        for kind, count in self._kinds():
            for i in range(count):
                yield DemoSubject.of(self.seed, index, kind, repeat=kind == "healthy" and i < self.n_repeat)
                index += 1


@dataclass(frozen=True, kw_only=True)
class DemoSubject:
    """One made-up participant: a pure function of (seed, index, kind).

    Args:
        index: place in the cohort; eid is `FIRST_EID` + index.
        kind: "healthy" or what is wrong.
        instances: imaging visits.
        age: years at instance 2.
    """

    index: int
    eid: str
    kind: str
    instances: tuple[int, ...]
    age: float
    sex: str
    site: str

    @staticmethod
    def of(seed: int, index: int, kind: str, *, repeat: bool = False) -> DemoSubject:
        """The participant."""
        draws = Draws(seed, index)
        return DemoSubject(
            index=index,
            eid=str(FIRST_EID + index),
            kind=kind,
            instances=(_FIRST_VISIT, _REPEAT_VISIT) if repeat else (_FIRST_VISIT,),
            age=round(draws.between("age", _AGES), 1),
            sex="FM"[draws.key("sex") % 2],
            site=_SITES[draws.key("site") % len(_SITES)],
        )

    def zips(self) -> dict[str, tuple[str, int]]:
        """File name -> (modality, instance) of what this participant delivers."""
        names = [name for name in FIELDS if not (self.kind == "no_flair" and name == "FLAIR")]
        return {
            f"{self.eid}_{FIELDS[name].field}_{instance}_0.zip": (name, instance)
            for instance in self.instances
            for name in names
        }

    def paths(self) -> list[str]:
        """Where the zips lie, relative to the cohort's folder."""
        return list(self.zips())


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What there is: kinds -> participants, zips in all and made by this call, bytes of all zips."""

    root: str
    kinds: dict[str, int]
    sessions: int
    zips: int
    made: int
    bytes: int


def default_root() -> str:
    """Where the demo cohort lies when nobody says otherwise."""
    return str(paths.home() / "demo" / "ukb")


def make_demo_cohort(root: str, spec: DemoSpec | None = None, *, workers: int | None = None) -> DemoSummary:
    """Make the cohort, or what is missing of it; a finished one of the same spec is reused.

    Args:
        root: folder on any storage, its own: empty, missing, or an earlier demo cohort.
        workers: processes, about 1.3 GB each; default one a core, at most 8.

    Raises:
        DataError: the folder holds another cohort or other files, or cannot be written.
    """
    spec, root = spec or DemoSpec(), files.absolute(root)
    subjects = list(spec.subjects())
    done = complete(
        root,
        {"generator": GENERATOR, "spec": asdict(spec)},
        subjects,
        _make_subject,
        seed=spec.seed,
        extra={PARTICIPANTS: lambda: _participants(subjects)},
        noun="participants",
        workers=workers,
    )
    kinds: dict[str, int] = {}
    for subject in subjects:
        kinds[subject.kind] = kinds.get(subject.kind, 0) + 1
    return DemoSummary(
        root=root,
        kinds=kinds,
        sessions=sum(len(subject.instances) for subject in subjects),
        zips=done.files,
        made=done.made,
        bytes=done.bytes,
    )


def _participants(subjects: list[DemoSubject]) -> bytes:
    rows = [f"{s.eid}\t{s.age}\t{s.sex}\t{s.site}" for s in subjects]
    return ("\n".join(["eid\tage\tsex\tsite", *rows]) + "\n").encode()


def _make_subject(root: str, seed: int, subject: DemoSubject, missing: set[str]) -> None:
    """Write those of a participant's zips that are missing."""
    wanted = {name: what for name, what in subject.zips().items() if name in missing}
    for instance in sorted({instance for _, instance in wanted.values()}):
        years = _YEARS_TO_REPEAT * (instance - _FIRST_VISIT)
        anatomy = make_anatomy(HEALTHY, seed, subject.index, subject.age + years)
        for name, (modality, of_instance) in wanted.items():
            if of_instance == instance:
                image = render(anatomy, HEALTHY, modality, seed, subject.index, instance)
                files.write_bytes(files.join(root, name), _bulk_zip(image, modality, subject.kind))


def _bulk_zip(image: np.ndarray, modality: str, kind: str) -> bytes:
    """A bulk zip of an int16 image (182, 218, 182), with what `kind` does to it."""
    affine = MNI_AFFINE.copy()
    if kind == "truncated_grid":
        first, stop = _TRUNCATED
        image = image[:, :, first:stop]
        affine[2, 3] += first
    if kind == "few_slices":
        first, stop = _WITH_BRAIN
        kept = np.zeros_like(image)
        kept[:, :, first:stop] = image[:, :, first:stop]
        image = kept
    packed = gzip.compress(nifti_bytes(image, affine), compresslevel=6, mtime=0)
    if kind == "damaged" and modality == "FLAIR":
        middle = len(packed) // 2
        packed = (
            packed[:middle] + bytes(b ^ 0xFF for b in packed[middle : middle + 64]) + packed[middle + 64 :]
        )
    data = zip_bytes({FIELDS[modality].member: packed})
    return data[: len(data) * 6 // 10] if kind == "cut_zip" and modality == "T1w" else data


def zip_bytes(members: Mapping[str, bytes]) -> bytes:
    """A zip as UK Biobank packs them (deflated), the same bytes for the same members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()
