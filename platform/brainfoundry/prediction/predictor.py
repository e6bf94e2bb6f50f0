"""One case from its files to its masks: fetched, checked, predicted, written. Networks are loaded once."""

from __future__ import annotations

import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brainfoundry.cohorts.rows import Scan
from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, ConfigError, DataError
from brainfoundry.inference.geometry import CaseVolume, Space, load_case
from brainfoundry.inference.volume import entropy, predict_probabilities, window_box
from brainfoundry.inference.windows import WindowSpec, window_starts
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.checks import check_claims, check_volume, choose_scans, feed_notes, grid_notes
from brainfoundry.prediction.config import Options, command_of
from brainfoundry.prediction.models import Model, space_of
from brainfoundry.prediction.outputs import Outputs
from brainfoundry.prediction.preprocess import preprocess
from brainfoundry.quality.session import open_shards, where
from brainfoundry.store.source import read_scan
from brainfoundry.tasks import load_task
from brainfoundry.training.volumes import load_segmenter

_GPU_BATCH = 4
"""Windows at once on a GPU (released validation: sw_batch_size 4); on a CPU more than one gains nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker is told.

    Args:
        allow: refusals to let pass.
        batch: windows at once; None: what suits the device.
        out: the derivative's folder, absolute.
    """

    models: tuple[Model, ...]
    options: Options
    out: str
    allow: tuple[str, ...] = ()
    preprocess_timeout_s: float = 1_800.0
    batch: int | None = None

    @property
    def space(self) -> Space:
        """What the networks demand of a scan; they all demand the same."""
        return space_of(self.models[0].card)

    def window_spec(self, batch: int = 1) -> WindowSpec:
        """How volumes are cut into windows."""
        o = self.options
        return WindowSpec(
            window=o.window, overlap=o.overlap, weights=o.weights, mode=o.mode, batch=self.batch or batch
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case: `record` is what its file says; `error` is a line, "" where it was predicted."""

    case: Case
    record: Mapping[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A case that passed its checks: the volume, its scans' files by modality, and notes."""

    volume: CaseVolume
    sources: dict[str, str]
    notes: tuple[str, ...]


def load(case: Case, job: Job, scratch: Path) -> Loaded:
    """Read a case and hold it against what the networks were trained on.

    Args:
        scratch: an empty local folder for copies.

    Raises:
        DataError: it cannot be predicted; says why.
        StorageError: the storage does not answer.
    """
    space, options = job.space, job.options
    chosen = choose_scans(case, space)
    command = command_of(options.preprocess)
    notes = feed_notes(space)
    inputs = {}
    if not command:
        notes += check_claims(case, space, job.allow)
    for modality, scan in chosen.items():
        inputs[modality] = _fetch(case, scan, scratch, local=bool(command))
        if command:
            target = scratch / f"preprocessed_{modality}.nii.gz"
            timeout = job.preprocess_timeout_s
            preprocess(command, Path(inputs[modality]), target, timeout_s=timeout, subject=case.name)
            inputs[modality] = str(target)
    if command:
        notes.append("scans were preprocessed: masks lie on the grid of the command's output")
    volume = load_case(inputs, space, subject=case.name, assume_orientation=options.assume_orientation)
    names = {modality: where(scan) for modality, scan in chosen.items()}
    for modality, uri in inputs.items():  # copies are gone when somebody reads this
        notes += [note.replace(uri, names[modality]) for note in volume.notes if note.startswith(uri)]
    notes += check_volume(volume, names, space, job.allow)
    notes += grid_notes(volume.x_CDHW.shape[1:], volume.spacing, space, options.window)
    return Loaded(volume=volume, sources=names, notes=tuple(notes))


def _fetch(case: Case, scan: Scan, folder: Path, *, local: bool) -> str:
    """URI of a plain NIfTI file: the scan's own; a copy's where it lies in an archive or a shard set, or is
    remote and wanted `local`."""
    if case.stored is not None:
        uri, shard, row = case.stored
        data = open_shards(uri).nifti_bytes(shard, row, scan.modality)
    elif scan.member:
        data = read_scan(scan, case.name)
    elif local and not files.is_local(scan.uri):
        data = files.read_bytes(scan.uri)
    else:
        return files.absolute(scan.uri)
    packed = data[:2] == b"\x1f\x8b"
    copy = folder / f"{scan.modality}.nii{'.gz' if packed else ''}"
    copy.write_bytes(data)
    return str(copy)


def count_windows(volume: CaseVolume, spec: WindowSpec) -> int:
    """Windows that one network computes for a case, without flips."""
    shape = volume.x_CDHW.shape[1:]
    if spec.mode == "box":
        lo, hi = window_box(volume.result_box, shape, spec)
        shape = torch.Size(b - a for a, b in zip(lo, hi, strict=True))
    return len(window_starts(shape, spec))


class Predictor:
    """Predicts cases, any number of threads at a time: files are read and written beside the network's work,
    which one case has at a time.

    Args:
        device: None: a GPU if there is one.
    """

    def __init__(self, job: Job, device: torch.device | None = None) -> None:
        self.job = job
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.networks = [load_segmenter(model.uri, self.device)[0] for model in job.models]
        self.precision = precision_on(job.options.precision, self.device)
        self.outputs = Outputs(job.out, job.models, job.options)
        self._spec = job.window_spec(_GPU_BATCH if self.device.type == "cuda" else 1)
        self._network = threading.Lock()

    def __call__(self, case: Case) -> Outcome:
        """Predict one case and write what was asked for; whatever is wrong with it costs its line alone."""
        began = time.perf_counter()
        try:
            record = self._predict(case, began)
        except BrainFoundryError as error:
            return Outcome(case=case, error=error.line(), seconds=time.perf_counter() - began)
        except Exception as error:  # one case must not cost the others
            traceback.print_exc()
            line = DataError(
                f"prediction failed: {type(error).__name__}: {error}",
                subject=case.name,
                fix="report this; the traceback is in the worker's log",
            ).line()
            return Outcome(case=case, error=line, seconds=time.perf_counter() - began)
        return Outcome(case=case, record=record, seconds=time.perf_counter() - began)

    def _predict(self, case: Case, began: float) -> Mapping[str, Any]:
        card, options = self.job.models[0].card, self.job.options
        task = load_task(card.task["name"])
        with tempfile.TemporaryDirectory(prefix="predict-") as scratch:
            loaded = load(case, self.job, Path(scratch))
        volume = loaded.volume
        with self._network:
            maps_RDHW = predict_probabilities(
                self.networks, volume.x_CDHW, volume.result_box, self._spec, device=self.device,
                precision=self.precision, flips=options.flips,
            )  # fmt: skip
        maps_RDHW = volume.to_scan_grid(maps_RDHW)
        labels = task.to_labels(maps_RDHW > options.threshold, card.task["scheme"])
        named = {"mask": volume.restore_labels(labels)}
        if options.save_probabilities:
            named |= {
                region.name: volume.restore_map(map_DHW)
                for region, map_DHW in zip(task.regions, maps_RDHW, strict=True)
            }
        if options.save_entropy:
            named["entropy"] = volume.restore_map(entropy(maps_RDHW))
        about = {
            "scans": loaded.sources,
            "notes": list(loaded.notes),
            "spacing_mm": list(volume.reference.spacing),
            "device": str(self.device),
            "precision": self.precision,
            "windows": count_windows(volume, self._spec) * len(self.networks) * (8 if options.flips else 1),
        }
        lesions = task.lesion_table(labels, volume.reference.affine, card.task["scheme"])
        return self.outputs.write(case, named, lesions, about, began=began)


def precision_on(asked: str, device: torch.device) -> str:
    """What networks compute in on a device.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked == "fp16" and device.type != "cuda":
        raise ConfigError("--precision fp16 needs a GPU", fix="leave it out, or use bf16 or fp32")
    return asked
