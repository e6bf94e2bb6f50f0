"""What the network sees of a session at inference is what it saw in training, bit for bit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from brainfoundry.inference import load_case
from brainfoundry.pretext.intensity import RULES, normalise
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.stream.batch import CropBatch, read_batch
from brainfoundry.stream.plan import CROP_METADATA, PLAN_SCHEMA
from tests.inference.builders import space
from tests.store.builders import brain, intake, nifti, nifti_file, put

OBLIQUE = np.array([[0.1, -1.2, 0, 30], [1.0, 0.1, 0, -40], [0, 0.1, 1.5, -20], [0, 0, 0, 1.0]])


def floats(seed: int) -> np.ndarray:
    """Many different numbers, some below zero, in an empty volume."""
    noise = np.random.default_rng(seed).normal(40, 30, (40, 44, 38))
    return noise * (brain(seed) > 0)


SCANS = {
    "int16 and float32": lambda: (nifti(brain(1)), nifti(floats(2).astype(np.float32))),
    "scaled uint8 and wide int32": lambda: (
        nifti_file(brain(1, dtype="uint8", top=250), OBLIQUE, scaling=(0.0311, 0.0)),
        nifti_file((floats(2) * 9_000).astype(np.int32), OBLIQUE, big_endian=True),
    ),
    "shifted int16 and float64": lambda: (
        nifti_file(brain(1), OBLIQUE, scaling=(2.0, -10.0)),
        nifti_file(floats(2), OBLIQUE, version=2),
    ),
}


def whole_volume(shards: ShardSet) -> CropBatch:
    """The only session of a set as one crop, read as the stream reads."""
    index = shards.index.to_pylist()[0]
    row = {"step": 0, "group": 0, "slot": 0, "subject": index["subject"], "session": index["session"],
           "shard": 0, "row": 0, "crop_seed": 0, "corner": [0, 0, 0]}  # fmt: skip
    schema = PLAN_SCHEMA.with_metadata({CROP_METADATA: json.dumps(index["shape"])})
    return read_batch(shards, pa.Table.from_pylist([row], schema=schema), (0, 1))


@pytest.mark.parametrize("spacing_mm", [None, 1.3])
@pytest.mark.parametrize("float_mode", ["quantize", "lossless"])
@pytest.mark.parametrize("kind", list(SCANS))
def test_a_session_in_a_shard_set(
    tmp_path: Path, kind: str, float_mode: str, spacing_mm: float | None
) -> None:
    files = dict(zip(("T1w", "FLAIR"), SCANS[kind](), strict=True))
    put(tmp_path / "ukb", 9_900_001, files)
    spec = ConvertSpec(float_mode=float_mode, spacing_mm=spacing_mm, min_slices=10, rows_per_shard=1)  # type: ignore[arg-type]
    convert(intake(tmp_path / "ukb", min_slices=10), str(tmp_path / "out"), spec, executor=inline)
    shards = ShardSet.open(str(tmp_path / "out"))
    assert len(shards) == 1
    uris = {}
    for name, data in files.items():
        uris[name] = str(tmp_path / f"{name}.nii.gz")
        Path(uris[name]).write_bytes(gzip.compress(data, 1))
    batch = whole_volume(shards)
    (index,) = shards.index.to_pylist()
    for rule in RULES:
        card = space(*shards.meta.modalities, intensity=rule, spacing_mm=spacing_mm, float_mode=float_mode)
        case = load_case(uris, card, subject="9900001")
        expected, _ = normalise(batch, rule)
        assert case.x_CDHW.dtype == expected.dtype
        np.testing.assert_array_equal(case.x_CDHW.numpy(), expected[0].numpy())
        assert (case.x_CDHW.std() > 0.1) or rule == "ct_window"
        assert [list(corner) for corner in case.box] == [index["box_lo"], index["box_hi"]]
        np.testing.assert_array_equal(case.affine, shards.affine(0, 0))
        assert list(case.spacing) == index["spacing"]
