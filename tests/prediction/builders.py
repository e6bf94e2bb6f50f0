"""Small fine-tuned checkpoints of a nano network, and brains to predict."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from brainfoundry.models import EncoderSpec
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.models import find_models, window_of
from brainfoundry.prediction.predictor import Job
from brainfoundry.tasks.segmentation import NetworkSpec
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card

WINDOW = (64, 32, 32)
SHAPE = (40, 44, 36)
# Stored LPS, as BraTS is, with an origin that no rounding keeps.
AFFINE = np.array([[-1.0, 0, 0, 20.25], [0, -1.0, 0, 21.5], [0, 0, 1.0, -18.125], [0, 0, 0, 1]])
BRATS = ("FLAIR", "T1ce", "T1w", "T2w")
BRATS_TASK = {"name": "brats", "scheme": "brats2021", "regions": ["tc", "wt", "et"]}
ATLAS_TASK = {"name": "atlas", "scheme": "binary", "regions": ["lesion"]}


def card(**changes: Any) -> Card:
    """Of a BraTS network, unless changed."""
    modalities = changes.get("modalities", BRATS)
    base = Card(
        stage="finetune", size="nano", modalities=modalities, merging="current",
        encoder=EncoderSpec(size="nano", in_channels=len(modalities)).to_dict(), objective="segmentation",
        objective_config={}, intensity="zscore_nonzero", crop=WINDOW, patch=2, frame="box", spacing_mm=None,
        orientation="RAS", space="", skull_stripped=False, manifest_hash="m", plan_hash="p", step=10,
        steps=10, run="small", task=BRATS_TASK,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def save_checkpoint(folder: Path, *, seed: int = 0, **changes: Any) -> str:
    """A run's folder with one checkpoint of a network at random; returns its URI."""
    made = card(**changes)
    torch.manual_seed(seed)
    spec = NetworkSpec(family=made.family, options=made.family_options, crop=made.crop)
    network = spec.build(EncoderSpec.from_dict(made.encoder), len(made.task["regions"]))
    return checkpoint.save(str(folder / "checkpoints"), made, network.state_dict(), {})


def job(tmp_path: Path, uri: str | tuple[str, ...], **options: Any) -> Job:
    """A job as `jobs/predict.py` makes it."""
    models = find_models((uri,) if isinstance(uri, str) else uri)
    config = PredictConfig(**options)
    return Job(
        models=models, options=config.options(window_of(models, config.window)), out=str(tmp_path / "out"),
        allow=config.allow, preprocess_timeout_s=config.preprocess_timeout_s, batch=config.batch,
    )  # fmt: skip


def brain(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """int16 ball of noise, 0 around it."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in grid) < 0.8
    return (inside * rng.integers(200, 900, shape)).astype(np.int16)


def put(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **header: Any) -> Path:
    """Write a scan; `header` are fields to change in what nibabel makes of it."""
    raw = bytearray(nibabel.Nifti1Image(data, affine).to_bytes())
    fields = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        fields[name] = value
    raw[:348] = fields.binaryblock
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 1, mtime=0) if path.name.endswith(".gz") else raw)
    return path


def put_case(
    folder: Path, subject: str, *, seed: int = 0, kinds: tuple[str, ...] = ("flair", "t1ce", "t1", "t2")
) -> Path:
    """A folder with a case's scans, named as BraTS names them."""
    for number, kind in enumerate(kinds):
        put(folder / subject / f"{subject}_{kind}.nii.gz", brain(10 * seed + number))
    return folder / subject
