"""What a prediction leaves behind: a BIDS derivative, where a case's JSON, written last, says it is whole.

OUT/dataset_description.json                  checkpoints and options; written before the first case
OUT/dseg.tsv                                  what the labels mean
OUT/sub-01[/ses-1]/anat/
    sub-01[_ses-1]_desc-brainfoundry_dseg.nii.gz    several regions: a label map
    sub-01[_ses-1]_label-lesion_mask.nii.gz         or one region: a mask
    sub-01[_ses-1]_label-WT_probseg.nii.gz          a region's probability, on demand
    sub-01[_ses-1]_desc-entropy_map.nii.gz          uncertainty, on demand
    sub-01[_ses-1]_lesions.tsv
    sub-01[_ses-1]_desc-brainfoundry_dseg.json      the mask's side-car, and the commit mark
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

import brainfoundry
from brainfoundry.cohorts.labels import check_scheme
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.config import Options
from brainfoundry.prediction.models import Model
from brainfoundry.quality.session import where
from brainfoundry.store.restore import write_nifti
from brainfoundry.tasks import load_task
from brainfoundry.tasks.lesions import Lesion
from brainfoundry.training.tracking.tags import git_tags

BIDS_VERSION = "1.10.0"
_TOOL = "BrainFoundry"
_DESCRIPTION = "dataset_description.json"
_ID = "[A-Za-z0-9]+"
_OURS = re.compile(
    rf"sub-{_ID}/(?:ses-{_ID}/)?anat/\.?sub-{_ID}(?:_ses-{_ID})?_"
    rf"(?:desc-brainfoundry_dseg|label-{_ID}_(?:mask|probseg)|desc-entropy_map|lesions)\.(?:nii\.gz|json|tsv)"
    r"(?:\.[0-9a-f]{8}\.tmp)?"  # what a writer that was killed leaves
)
_IGNORED = "lesions.tsv\n*_lesions.tsv\n*_map.nii.gz\npredictions.jsonl\n"
"""For .bidsignore: what BIDS has no name for."""
_RECORD = {"subject", "session", "scans", "identity", "lesions", "volume_mm3", "files", "checkpoints",
           "options", "notes", "seconds"}  # fmt: skip
"""What is read again of a case's JSON."""


class Outputs:
    """The derivative in a folder, as these networks and options make it.

    Args:
        out: folder or URI, absolute.
    """

    def __init__(self, out: str, models: Sequence[Model], options: Options) -> None:
        self.out, self.models, self.options = out, models, options
        self.scheme = str(models[0].card.task["scheme"])
        self.regions = load_task(models[0].card.task["name"]).regions
        self._single = len(self.regions) == 1

    # --- names

    def end_of(self, kind: str) -> str:
        """How the file's name ends that holds the "mask", the "entropy", or a region's probability."""
        if kind == "mask":
            return f"label-{self.regions[0].name}_mask" if self._single else "desc-brainfoundry_dseg"
        return "desc-entropy_map" if kind == "entropy" else f"label-{self._shown(kind)}_probseg"

    def _shown(self, region: str) -> str:
        """A region as a label; where there are several, their names are abbreviations."""
        return region if self._single else region.upper()

    def _uri(self, case: Case, end: str) -> str:
        return files.join(self.out, case.folder, f"{case.stem}_{end}")

    def _mark(self, case: Case) -> str:
        return self._uri(case, f"{self.end_of('mask')}.json")

    # --- the folder

    def check(self, *, overwrite: bool) -> None:
        """Refuse a folder that is not ours to write to.

        Raises:
            ConfigError: it holds files of somebody else, or masks of other checkpoints or options.
        """
        names = [name for name in files.list_names(self.out) if not name.startswith(".")]
        if not names:
            return
        there: dict[str, Any] = {}
        if _DESCRIPTION in names:
            made = files.read_json(files.join(self.out, _DESCRIPTION)).get("GeneratedBy") or [{}]
            there = made[0] if made[0].get("Name") == _TOOL and "Options" in made[0] else {}
        if not there:
            raise ConfigError(
                f"the folder holds other files, such as {names[0]}", file=self.out,
                fix="give an empty or a new folder with --out",
            )  # fmt: skip
        if not overwrite and (difference := self._difference(there)) and any(self._files()):
            raise ConfigError(
                f"the folder holds masks of another prediction: {difference}",
                file=self.out,
                fix="choose another --out, or replace them with --overwrite",
            )

    def prepare(self, source: str, *, overwrite: bool) -> None:
        """Make the folder ours; under `overwrite` without the masks that it held.

        Args:
            source: URI of the scans.

        Raises:
            ConfigError: as `check`.
            DataError: it cannot be written.
        """
        self.check(overwrite=overwrite)
        files.check_writable(self.out)
        if overwrite:
            for uri in self._files():
                files.delete_file(uri)
        # What makes the folder ours comes first: a run that is killed here can be taken up again.
        files.write_json(files.join(self.out, _DESCRIPTION), self._description(source))
        files.write_bytes(files.join(self.out, ".bidsignore"), _IGNORED.encode())
        files.write_bytes(files.join(self.out, "dseg.tsv"), self._lookup())

    def _difference(self, made: Mapping[str, Any]) -> str:
        """The first thing in which another prediction differs from this one; "" where none does."""
        theirs, mine = ({m["card_sha256"] for m in made["Checkpoints"]}, {m.sha256 for m in self.models})
        if theirs != mine:
            return f"it was made with {', '.join(m['uri'] for m in made['Checkpoints'])}"
        for name, value in self.options.to_dict().items():
            if made["Options"].get(name) != value:
                return f"{name} was {made['Options'].get(name)!r} and is {value!r}"
        return ""

    def _files(self) -> Iterator[str]:
        """The files of every case in the folder, by their names; others are not ours to touch."""
        fs, path = files.filesystem(self.out)
        for info in fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
            inside = info.path.removeprefix(path).strip("/")
            if info.type == pafs.FileType.File and _OURS.fullmatch(inside):
                yield files.join(self.out, inside)

    def _description(self, source: str) -> dict[str, Any]:
        local = files.is_local(source)
        made = {
            "Name": _TOOL,
            "Version": brainfoundry.__version__,
            "GitCommit": git_tags().get("git_commit"),
            "Checkpoints": [model.about() for model in self.models],
            "Options": self.options.to_dict(),
        }
        return {
            "Name": f"Lesion masks by {', '.join(model.card.run for model in self.models)}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [made],
            "SourceDatasets": [{"URL": Path(source).as_uri() if local else source}],
        }

    def labels(self) -> dict[int, str]:
        """What each label means: the regions that it is part of."""
        parts = {
            label: [self._shown(r.name) for r in self.regions if label in r.labels[self.scheme]]
            for label in check_scheme(self.scheme)
        }
        return {label: "+".join(names) for label, names in parts.items() if names}

    def _lookup(self) -> bytes:
        named = {0: "background", **self.labels()}
        return tsv(("index", "name"), [{"index": label, "name": name} for label, name in named.items()])

    # --- a case

    def done(self, case: Case) -> dict[str, Any] | None:
        """What the file of a case says that is already there and whole; None where it is not.

        Raises:
            DataError: it is of other scans, made otherwise, or somebody else's; it is not ours to replace.
        """
        uri = self._mark(case)
        if not files.exists(uri):
            return None
        record = self.read(uri)
        other = self._difference({"Checkpoints": record["checkpoints"], "Options": record["options"]})
        scans = record["scans"]
        same = (record["subject"], record["session"]) == (case.subject, case.session)
        if not same or not scans.items() <= {(scan.modality, where(scan)) for scan in case.scans}:
            told = ", ".join(f"{modality} {scan}" for modality, scan in sorted(scans.items()))
            other = f"it was predicted from {told}"
        elif record["identity"] != _identity(case, scans):
            other = "its scans have changed since"
        if other:
            raise DataError(
                f"{case.stem} is already there, of another prediction: {other}", file=uri, subject=case.name,
                fix="choose another --out, or replace it with --overwrite",
            )  # fmt: skip
        whole = all(files.exists(files.join(self.out, name)) for name in record["files"])
        return record if whole else None

    def others(self, cases: Iterable[Case]) -> list[str]:
        """URIs of what may be the marks of further cases, which an earlier run left in the folder."""
        mine, end = {self._mark(case) for case in cases}, f"_{self.end_of('mask')}.json"
        return [uri for uri in self._files() if uri.endswith(end) and uri not in mine]

    def read(self, uri: str) -> dict[str, Any]:
        """What a case's file says.

        Raises:
            DataError: it is damaged, or not of this job.
        """
        record = files.read_json(uri)
        if not isinstance(record, dict) or not record.keys() >= _RECORD:
            raise DataError("not a file of this job", file=uri, fix="move it away")
        return record

    def write(
        self,
        case: Case,
        images: Mapping[str, bytes],
        lesions: Sequence[Lesion],
        about: Mapping[str, Any],
        *,
        began: float,
    ) -> dict[str, Any]:
        """Write a case's files, the JSON last; returns what it says.

        Args:
            images: decompressed NIfTI files by kind: "mask", "entropy", a region's name.
            about: what else the JSON says: `scans` by modality, notes.
            began: `time.perf_counter()` when work on the case began.

        Raises:
            DataError: it cannot be written.
        """
        folder = files.join(self.out, case.folder)
        files.make_folder(folder)
        for name in files.list_names(folder):
            if name.endswith(".tmp") and _OURS.fullmatch(f"{case.folder}/{name}"):
                files.delete_file(files.join(folder, name))
        ends = {f"{self.end_of(kind)}.nii.gz": data for kind, data in images.items()}
        rows = [_lesion_row(lesion) for lesion in lesions]
        try:
            for end, data in ends.items():
                write_nifti(self._uri(case, end), data)
            files.write_bytes(self._uri(case, "lesions.tsv"), tsv(LESION_COLUMNS, rows))
            record = {
                "Sources": sorted(about["scans"].values()),
                "subject": case.subject,
                "session": case.session,
                **about,
                "identity": _identity(case, about["scans"]),
                "labels": {str(label): name for label, name in self.labels().items()},
                "lesions": rows,
                "volume_mm3": {
                    r.name: sum(row["volume_mm3"] for row in rows if row["region"] == r.name)
                    for r in self.regions
                },
                "files": [f"{case.folder}/{case.stem}_{end}" for end in (*ends, "lesions.tsv")],
                "checkpoints": [model.about() for model in self.models],
                "options": self.options.to_dict(),
                "seconds": round(time.perf_counter() - began, 2),
            }
            files.write_json(self._mark(case), record)
        except OSError as error:
            raise DataError(
                f"outputs cannot be written: {error}", file=self.out, subject=case.name,
                fix="free space, or choose another --out",
            ) from error  # fmt: skip
        return record


def _identity(case: Case, scans: Mapping[str, str]) -> dict[str, list[Any]]:
    """What tells the scans of a case from others of their names, by modality: size, and CRC-32 (zip, shard
    set) or time of change.

    Args:
        scans: those that were predicted from: modality -> where it lies.
    """
    return {
        scan.modality: [scan.size, scan.mtime if scan.crc32 is None else scan.crc32]
        for scan in case.scans
        if scans.get(scan.modality) == where(scan)
    }


LESION_COLUMNS = ("region", "lesion", "voxels", "volume_mm3", "x_mm", "y_mm", "z_mm")
"""Of the lesion tables; x, y, z is the centroid in the world of the scan's header (RAS)."""


def _lesion_row(lesion: Lesion) -> dict[str, Any]:
    """A lesion as a row of the tables."""
    x, y, z = (round(mm, 2) for mm in lesion["centroid_mm"])
    row: dict[str, Any] = {name: lesion[name] for name in ("region", "lesion", "voxels")}
    return {**row, "volume_mm3": round(lesion["volume_mm3"], 3), "x_mm": x, "y_mm": y, "z_mm": z}


def tsv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table as BIDS has them: tabs between, n/a for what is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", restval="n/a")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
