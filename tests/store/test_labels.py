"""Lesion masks in the store: as labels for the stream, bit for bit for whoever wants the file back."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline, plan_shards
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec, ShardTask, convert_shard
from tests.store.builders import AFFINE, SHAPE, brats_intake, lesion, nifti, nifti_file, put_brats

SPEC = ConvertSpec(min_slices=10, rows_per_shard=2)


def reasons(folder: Path, out: Path, spec: ConvertSpec = SPEC, **rules: str) -> dict[str, tuple[str, str]]:
    """Subject -> (reason, detail) after conversion."""
    done = convert(brats_intake(folder, **rules), str(out), spec, executor=inline)
    return {row.subject: (row.reason, row.detail) for row in done.manifest.rows()}


def put_seg(folder: Path, case: int, data: bytes) -> None:
    """A case whose mask file is these bytes."""
    subject = put_brats(folder, case, None)
    (folder / subject / f"{subject}_seg.nii.gz").write_bytes(gzip.compress(data, 6, mtime=0))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardSet]:
    folder = tmp_path_factory.mktemp("labels")
    put_brats(folder / "brats", 1, lesion(1, 2, 4))
    put_brats(folder / "brats", 2, lesion(2, outside=True))
    put_brats(folder / "brats", 3, lesion())  # a mask without a lesion
    put_brats(folder / "brats", 4, None)
    spec = ConvertSpec(min_slices=10, rows_per_shard=2, n_val=1)
    convert(brats_intake(folder / "brats", "optional"), str(folder / "out"), spec, executor=inline)
    return folder / "brats", ShardSet.open(str(folder / "out"))


def test_masks_are_a_channel_of_their_own(masked: tuple[Path, ShardSet]) -> None:
    _, shards = masked
    assert shards.meta.labels == "brats2021" and shards.meta.modalities == ("FLAIR", "T1w")
    assert shards.label_channel == 2 and shards.verify() == []
    rows = shards.index.to_pylist()
    assert [(r["has_label"], r["label_values"]) for r in rows] == [
        (True, [1, 2, 4]), (True, [2]), (True, []), (False, []),
    ]  # fmt: skip
    assert [[s["modality"] for s in r["scans"]] for r in rows] == [["FLAIR", "T1w", "label"]] * 4
    assert rows[1]["box_lo"] != [0, 0, 0] and rows[1]["box_hi"][0] == SHAPE[0]  # RAS: the corner's x is last
    for number, expected in enumerate((lesion(1, 2, 4), lesion(2, outside=True), lesion(), lesion())):
        shard, row = divmod(number, 2)
        assert shards.read_crop(shard, row, (0, 0, 0), SHAPE).shape == (2, *SHAPE)  # never the mask
        crop = shards.read_crop(shard, row, (0, 0, 0), SHAPE, channels=(0, 2))
        assert (crop[1] == expected[::-1]).all()  # LAS file, RAS codes
        assert (crop[0] == shards.read_crop(shard, row, (0, 0, 0), SHAPE)[0]).all()


def test_where_the_lesions_are(masked: tuple[Path, ShardSet]) -> None:
    _, shards = masked
    for number in range(4):
        where = divmod(number, 2)
        mask = shards.read_volume(*where, "label")
        found = shards.mask_voxels(*where)
        assert list(found) == shards.index["label_values"][number].as_py()
        for label, voxels in found.items():
            assert voxels.dtype == np.int32
            assert {tuple(v) for v in voxels.tolist()} == {
                tuple(v) for v in np.argwhere(mask == label).tolist()
            }
            assert len(voxels) == (mask == label).sum()


def test_a_set_without_masks_has_no_lesions(tmp_path: Path) -> None:
    put_brats(tmp_path / "brats", 1, None)
    reasons(tmp_path / "brats", tmp_path / "out", labels="ignore")
    with pytest.raises(DataError, match="no modality 'label' in this shard set"):
        ShardSet.open(str(tmp_path / "out")).mask_voxels(0, 0)


def test_the_stream_delivers_masks_beside_the_scans(masked: tuple[Path, ShardSet]) -> None:
    from brainfoundry.stream.batch import read_batch
    from brainfoundry.stream.plan import Plan, PlanSpec

    _, shards = masked
    spec = PlanSpec(seed=1, crop=(16, 16, 16), groups_per_step=1, frame="box", subjects_per_group=3)
    rows = Plan.open(shards.uri, spec).rows(0, 1)
    channels = (0, shards.label_channel or 0)
    batch = read_batch(shards, rows, channels)
    for crop, row in zip(batch.codes_NCDHW.numpy(), rows.to_pylist(), strict=True):
        expected = shards.read_crop(row["shard"], row["row"], row["corner"], spec.crop, channels)
        assert (crop == expected).all()
    assert (batch.slope_NC[:, 1] == 1).all() and (batch.inter_NC[:, 1] == 0).all()


def test_mask_files_come_back_byte_for_byte(masked: tuple[Path, ShardSet]) -> None:
    folder, shards = masked
    for number, row in enumerate(shards.index.to_pylist()[:3]):
        path = folder / row["subject"] / f"{row['subject']}_seg.nii.gz"
        source = gzip.decompress(path.read_bytes())
        assert shards.nifti_bytes(number // 2, number % 2, "label") == source
        image = shards.to_nifti(number // 2, number % 2, "label")
        assert image.get_data_dtype() == np.uint8 and image.shape == SHAPE
    with pytest.raises(DataError, match="came without a mask"):
        shards.to_nifti(1, 1, "label")


def test_the_manifest_names_the_masks(masked: tuple[Path, ShardSet]) -> None:
    from brainfoundry.cohorts.manifest import read_manifest
    from brainfoundry.store.meta import manifest_uri

    folder, shards = masked
    rows = list(read_manifest(manifest_uri(shards.uri)).rows())
    for row in rows[:3]:
        assert row.label is not None
        raw = gzip.decompress((folder / row.subject / f"{row.subject}_seg.nii.gz").read_bytes())
        assert row.label.sha256 == hashlib.sha256(raw).hexdigest()
    assert rows[3].label is None


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64", "uint16"]),
    scaling=st.sampled_from([None, (1.0, 0.0), (0.5, 0.0), (0.5, -1.0), (0.1, 0.0)]),
    big_endian=st.booleans(),
    noise=st.sampled_from([0.0, 1e-7, -4e-8, 5e-4]),
)
def test_any_way_of_writing_a_mask(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    scaling: tuple[float, float] | None,
    big_endian: bool,
    noise: float,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    values = lesion(1, 2, 4, dtype="float64")
    slope, inter = scaling or (1.0, 0.0)
    stored = (values - inter) / slope
    if dtype.startswith("float"):
        stored = stored + noise * (values != 0) / slope
    source = nifti_file(stored.round(9).astype(dtype), AFFINE, scaling=scaling, big_endian=big_endian)
    put_seg(folder / "brats", 1, source)
    assert reasons(folder / "brats", folder / "out") == {"BraTS2021_00001": ("", "")}
    shards = ShardSet.open(str(folder / "out"))
    assert (shards.read_volume(0, 0, "label") == values[::-1]).all()
    assert shards.nifti_bytes(0, 0, "label") == source


def test_minus_zero_comes_back(tmp_path: Path) -> None:
    mask = lesion(1, dtype="float32")
    mask[0, 0, 0] = mask[20, 20, 20] = -0.0
    put_seg(tmp_path / "brats", 1, nifti(mask))
    reasons(tmp_path / "brats", tmp_path / "out")
    assert ShardSet.open(str(tmp_path / "out")).nifti_bytes(0, 0, "label") == nifti(mask)


def test_bad_masks_cost_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "brats"
    put_brats(folder, 1, lesion(1, 2, 4))
    put_brats(folder, 2, lesion(1, 0.5, dtype="float32"))
    put_brats(folder, 3, lesion(1, 2, 5))
    put_brats(folder, 4, lesion(0.99999997, 2, dtype="float64"))
    put_brats(folder, 5, np.full(SHAPE, np.nan, np.float32))
    put_brats(folder, 6, lesion(-1, dtype="int16"))
    put_seg(folder, 7, nifti(lesion(1)[1:]))
    shifted = AFFINE.copy()
    shifted[0, 3] += 3
    put_seg(folder, 8, nifti(lesion(1), shifted))
    found = reasons(folder, tmp_path / "out")
    assert [reason for reason, _ in found.values()] == [
        "", "label_values", "label_values", "", "not_finite", "label_values",
        "label_grid_mismatch", "label_grid_mismatch",
    ]  # fmt: skip
    _, detail = found["BraTS2021_00003"]
    assert "mask holds 5" in detail and "BraTS2021_00003_seg.nii.gz]" in detail and "Fix: " in detail
    assert "no whole numbers, for example 0.5" in found["BraTS2021_00002"][1]
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.index["subject"].to_pylist() == ["BraTS2021_00001", "BraTS2021_00004"]
    assert shards.index["label_values"].to_pylist() == [[1, 2, 4], [1, 2]]


def test_a_grid_that_only_the_voxels_give_away(tmp_path: Path) -> None:
    """The intake compares headers; whatever gets past it is still held against the images."""
    from brainfoundry.store.mask import read_mask
    from brainfoundry.store.row import encode_row
    from tests.store.builders import brain, volume

    mask = read_mask(volume(nifti(lesion(1)[:, :-1]), "label"), file="seg.nii.gz", subject="9900001")
    with pytest.raises(
        DataError, match="FLAIR and label lie on different grids: 40x44x38 against 40x43x38"
    ) as e:
        encode_row(
            "9900001", "", [volume(nifti(brain(1)), "FLAIR")], files=["f"], float_mode="quantize",
            labelled=True, mask=mask,
        )  # fmt: skip
    assert getattr(e.value, "reason", "") == "label_grid_mismatch" and e.value.file == "seg.nii.gz"


def test_two_schemes_are_refused_at_commit(tmp_path: Path) -> None:
    folder = tmp_path / "brats"
    put_brats(folder, 1, lesion(1, 2, 4))
    put_brats(folder, 2, lesion(1, 2))
    put_brats(folder, 3, lesion(1, 2, 3))
    words = r"schemes are mixed: subject BraTS2021_00001 .*brats2021.*subject BraTS2021_00003 .*brats2023"
    with pytest.raises(DataError, match=words):
        reasons(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "shardset.json").exists()


def test_resampled_masks_take_the_nearest_label(tmp_path: Path) -> None:
    put_brats(tmp_path / "brats", 1, lesion(1, 2, 4))
    spec = ConvertSpec(min_slices=10, spacing_mm=2.0)
    reasons(tmp_path / "brats", tmp_path / "out", spec)
    shards = ShardSet.open(str(tmp_path / "out"))
    found = shards.read_volume(0, 0, "label")
    assert found.shape == shards.read_volume(0, 0, "FLAIR").shape == (20, 22, 19)
    assert set(np.unique(found)) <= {0, 1, 2, 4} and (found > 0).any()
    # where voxel centres of the coarse grid lie between two of the fine one, both neighbours are near
    full = lesion(1, 2, 4)[::-1]
    for d, h, w in np.argwhere(found):
        near = full[2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        assert found[d, h, w] in near
    with pytest.raises(DataError, match="was resampled"):
        shards.to_nifti(0, 0, "label")


def test_float_sets_keep_labels_exact(tmp_path: Path) -> None:
    subject = put_brats(tmp_path / "brats", 1, lesion(1, 2, 4))
    path = tmp_path / "brats" / subject / f"{subject}_t1.nii.gz"
    from tests.store.builders import brain

    path.write_bytes(gzip.compress(nifti(brain(5) * np.float32(0.37)), mtime=0))
    reasons(tmp_path / "brats", tmp_path / "out", ConvertSpec(min_slices=10, float_mode="lossless"))
    shards = ShardSet.open(str(tmp_path / "out"))
    crop = shards.read_crop(0, 0, (0, 0, 0), SHAPE, channels=(1, 2))
    assert crop.dtype == np.float32 and (crop[1] == lesion(1, 2, 4)[::-1]).all()
    assert shards.nifti_bytes(0, 0, "label") == nifti(lesion(1, 2, 4))


def test_a_task_travels_whole(tmp_path: Path) -> None:
    """To Ray's workers and back: with the scheme of its masks, and with whom it is made without."""
    put_brats(tmp_path / "brats", 1, lesion(1))
    (task,) = plan_shards(brats_intake(tmp_path / "brats"), str(tmp_path / "out"), SPEC)
    task = replace(task, withdrawn=("BraTS2021_00001",))
    assert task.labels == "brats2021" and ShardTask.from_json(task.to_json()) == task
    assert replace(task, withdrawn=()).hash() == task.hash() != replace(task, labels="binary").hash()
    assert convert_shard(task)["rows"] == []
