"""A shard set as a raw data set of nnU-Net v2, with our subjects as its one split.

    FOLDER/export.json            what is exported here; another selection or state of the set is refused
    FOLDER/raw/DatasetNNN_NAME/   imagesTr, labelsTr (training and validation), imagesTs (test), dataset.json
    FOLDER/preprocessed/DatasetNNN_NAME/splits_final.json
    FOLDER/cases.csv              case -> subject, session, part; written last, the commit mark

Images are what our networks are fed before normalisation: the store's voxels in file units, in RAS order of
axes, at the set's voxel size. Each file is written whole or not at all, and one that is there stays.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.progress import progress
from brainfoundry.experiments.axes import safe
from brainfoundry.experiments.nnunet.cases import Case, Selection, select_cases, task_of
from brainfoundry.experiments.nnunet.labels import Numbering
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.restore import write_nifti
from brainfoundry.tasks.base import load_task
from brainfoundry.training.channels import channels_of
from brainfoundry.training.leak_gate import gate_run

VERSION = 1
DATASET_ID = 137
"""nnU-Net's own number of BraTS 2021; any other does as well, in a folder of its own."""
ENDING = ".nii.gz"
_THREADS = 8
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, kw_only=True)
class Export:
    """A raw data set that was made of a shard set."""

    folder: str
    dataset: str
    """DatasetNNN_NAME."""
    dataset_id: int
    shards: str
    manifest_hash: str
    task: str
    scheme: str
    fold: int | None
    test: str
    share: float
    draw: int
    modalities: tuple[str, ...]
    fed_by: tuple[str, ...]
    """The scan that each channel shows."""
    cases: tuple[Case, ...]
    leaks: tuple[Mapping[str, Any], ...] = ()
    """Test subjects that are trained on under another id, as --allow-leak let pass."""

    @classmethod
    def open(cls, folder: str) -> Export:
        """The finished export in a folder.

        Raises:
            DataError: there is none, it was not finished, or it is of another version.
        """
        about, table = Path(folder) / "export.json", Path(folder) / "cases.csv"
        if not about.exists() or not table.exists():
            raise DataError("no finished export here", file=folder, fix="export first, with the same options")
        value = files.read_json(str(about))
        if value.pop("version", None) != VERSION:
            raise DataError("export of another version", file=about, fix="export again into another folder")
        with table.open(newline="") as lines:
            cases = tuple(
                Case(**{**row, "shard": int(row["shard"]), "row": int(row["row"])})  # type: ignore[arg-type]
                for row in csv.DictReader(lines)
            )
        lists = {name: tuple(value[name]) for name in ("modalities", "fed_by", "leaks")}
        return cls(folder=folder, cases=cases, **{**value, **lists})

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return Path(self.folder, "raw", self.dataset)

    @property
    def splits(self) -> Path:
        """`splits_final.json`, where nnU-Net looks for it."""
        return Path(self.folder, "preprocessed", self.dataset, "splits_final.json")

    @property
    def images_test(self) -> Path:
        """What is to be predicted."""
        return self.raw / "imagesTs"

    @property
    def predictions(self) -> Path:
        """Masks of the test cases."""
        return Path(self.folder, "predictions")

    def prediction(self, case: Case) -> Path:
        """Where a test case's mask is, or will be."""
        return self.predictions / f"{case.name}{ENDING}"

    @property
    def numbering(self) -> Numbering:
        """Its labels."""
        return Numbering.of(load_task(self.task), self.scheme)

    def of(self, *parts: str) -> tuple[Case, ...]:
        """The cases of some parts."""
        return tuple(case for case in self.cases if case.part in parts)


def plan_export(
    selection: Selection, folder: str, *, dataset_id: int = DATASET_ID, allow_leak: bool = False
) -> Export:
    """The export that a selection gives; nothing is written.

    Raises:
        ConfigError: a selection that the shard set does not have, a number that is none of nnU-Net's, or a
            folder that is not local.
        DataError: nobody to train or test on, or a test subject that is trained on under another id.
    """
    if not 1 <= dataset_id <= 999:
        raise ConfigError(f"data set number {dataset_id}", fix="give --dataset-id 1 to 999")
    if not files.is_local(folder):
        raise ConfigError(f"nnU-Net reads and writes local files, not {folder}", fix="name a local --out")
    shards = ShardSet.open(selection.shards)
    task = task_of(shards, selection.task)
    names, fed_by = channels_of(selection.modalities, selection.feed, shards)
    cases = select_cases(shards, selection)
    leaks, _ = gate_run(
        shards, sorted(set(fed_by)), run="nnunetv2", stage="nnunetv2", allow=allow_leak,
        fold=selection.fold, share=selection.share, draw=selection.draw,
    )  # fmt: skip
    return Export(
        folder=files.absolute(folder), dataset=f"Dataset{dataset_id:03d}_{safe(shards.meta.cohort)}",
        dataset_id=dataset_id, shards=shards.uri, manifest_hash=shards.meta.manifest_hash, task=task,
        scheme=shards.meta.labels, fold=selection.fold, test=selection.test, share=float(selection.share),
        draw=selection.draw, modalities=names, fed_by=fed_by, cases=cases, leaks=leaks,
    )  # fmt: skip


def export_dataset(export: Export) -> Export:
    """Write the raw data set that `plan_export` planned, or what is missing of it.

    Raises:
        ConfigError: the folder holds another export.
        DataError: a damaged shard.
    """
    _claim(export)
    shards, numbering = ShardSet.open(export.shards), export.numbering
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (export.raw / name).mkdir(parents=True, exist_ok=True)

    def write(case: Case) -> None:
        for path, image in _files(export, case, shards, numbering):
            if not path.exists():
                write_nifti(str(path), image().to_bytes())

    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        progress("exporting", len(export.cases), "cases") as bar,
    ):
        for _ in pool.map(write, export.cases):
            bar.advance()
    training = export.of("train", "val")
    about = {
        "channel_names": {str(i): name for i, name in enumerate(export.modalities)},
        **numbering.dataset_json(),
        "numTraining": len(training),
        "file_ending": ENDING,
        # Affines as they are: ITK refuses sheared ones.
        "overwrite_image_reader_writer": "NibabelIO",
    }
    # Not files.write_json: it sorts keys, and the order of regions counts.
    files.write_bytes(str(export.raw / "dataset.json"), json.dumps(about, indent=1).encode())
    split = {part: [case.name for case in export.of(part)] for part in ("train", "val")}
    files.write_json(str(export.splits), [split])
    _write_cases(export)
    return export


def _claim(export: Export) -> None:
    """Say what is exported here, or refuse where it is something else."""
    about = {f.name: getattr(export, f.name) for f in fields(export) if f.name not in ("folder", "cases")}
    now = json.loads(json.dumps({"version": VERSION, **about}))
    where = files.join(export.folder, "export.json")
    then = files.read_json(where) if files.exists(where) else now
    # A set may be moved; what it holds is the hash's.
    for name in sorted((then.keys() | now.keys()) - {"shards"}):
        if then.get(name) != now.get(name):
            raise ConfigError(
                f"this folder holds another export: {name} was {then.get(name)}, now it is {now.get(name)}",
                file=export.folder, fix="name another --out, or delete this folder",
            )  # fmt: skip
    files.write_json(where, now)


def _files(
    export: Export, case: Case, shards: ShardSet, numbering: Numbering
) -> Iterator[tuple[Path, Callable[[], nibabel.Nifti1Image]]]:
    """(path, what makes the image) of a case."""
    images = export.raw / ("imagesTs" if case.part == "test" else "imagesTr")
    for channel, modality in enumerate(export.fed_by):
        yield (
            images / f"{case.name}_{channel:04d}{ENDING}",
            partial(scan_of, shards, case, modality),
        )
    if case.part != "test":
        yield (
            export.raw / "labelsTr" / f"{case.name}{ENDING}",
            partial(_mask, shards, case, numbering),
        )


def scan_of(shards: ShardSet, case: Case, modality: str) -> nibabel.Nifti1Image:
    """A scan in file units: int16 where that holds it, else float32; 0 where the session came without."""
    position = shards.position(case.shard, case.row)
    (scan,) = (s for s in shards.index["scans"][position].as_py() if s["modality"] == modality)
    codes = shards.read_volume(case.shard, case.row, modality)
    values = (codes * scan["slope"] + scan["inter"]).astype(np.float32)
    values[codes == codes.dtype.type(scan["zero_code"])] = 0  # nnU-Net looks for the brain where it is not 0
    if not scan["present"]:
        values[:] = 0
    if _INT16.min <= values.min() and values.max() <= _INT16.max and (values == np.rint(values)).all():
        values = values.astype(np.int16)
    return _image(values, shards, case)


def _mask(shards: ShardSet, case: Case, numbering: Numbering) -> nibabel.Nifti1Image:
    return _image(numbering.encode(labels_of(shards, case)), shards, case)


def labels_of(shards: ShardSet, case: Case) -> np.ndarray:
    """A session's mask, uint8 (D, H, W)."""
    position = shards.position(case.shard, case.row)
    shape = shards.index["shape"][position].as_py()
    assert shards.label_channel is not None
    mask = np.empty((1, *shape), np.uint8)
    shards.read_crop(case.shard, case.row, (0, 0, 0), shape, [shards.label_channel], mask)
    return mask[0]


def read_mask(path: Path, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, as they are, and affine of a mask that nnU-Net wrote.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        image: Any = nibabel.load(path)
        return np.asanyarray(image.dataobj), image.affine
    except (OSError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise DataError(
            f"prediction cannot be read: {error}", file=path, subject=case.subject,
            fix="run nnU-Net again: it predicts what is missing",
        ) from error  # fmt: skip


def _image(data: np.ndarray, shards: ShardSet, case: Case) -> nibabel.Nifti1Image:
    made = nibabel.Nifti1Image(data, shards.affine(case.shard, case.row))
    made.header.set_xyzt_units("mm")
    return made


def _write_cases(export: Export) -> None:
    sink = io.StringIO()
    table = csv.DictWriter(sink, [f.name for f in fields(Case)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(case) for case in export.cases)
    files.write_bytes(files.join(export.folder, "cases.csv"), sink.getvalue().encode())
