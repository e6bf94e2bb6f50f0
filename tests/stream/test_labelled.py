"""Masks beside the codes: the right voxels, read directly or through Ray, and nothing else changed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.stream.batch import BatchReader, CropBatch, batch_of, read_batch
from brainfoundry.stream.crops import ScanTable, read_crops
from brainfoundry.stream.pipeline import FetchOptions, Share, groups_per_chunk
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.ray_train_data import PlanDataConfig
from brainfoundry.stream.steps import iter_steps
from tests.store.builders import brain, brats_intake, lesion, nifti, put_brats
from tests.stream.builders import VOLUME, WitnessReader

SPEC = PlanSpec(seed=3, crop=(16, 12, 20), groups_per_step=2, frame="box", labelled=True)
LABEL = 2


def tensors(batch: CropBatch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def same(a: CropBatch, b: CropBatch) -> None:
    assert (a.step, a.subjects, tensors(a).keys()) == (b.step, b.subjects, tensors(b).keys())
    for name, value in tensors(a).items():
        assert value.dtype == tensors(b)[name].dtype and torch.equal(value, tensors(b)[name]), name


def cut(volume: np.ndarray, corner: list[int], crop: tuple[int, int, int]) -> np.ndarray:
    """Part of a volume, 0 outside."""
    wide = np.pad(volume, 64)
    return wide[tuple(slice(c + 64, c + 64 + s) for c, s in zip(corner, crop, strict=True))]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**62),
    crop=st.tuples(*[st.integers(1, 50)] * 3),
    frame=st.sampled_from(["box", "reference"]),
    foreground=st.sampled_from([0.0, 0.5, 1.0]),
    step=st.integers(0, 10**6),
)
def test_a_crop_holds_its_part_of_the_mask(
    labelled: ShardSet, seed: int, crop: tuple[int, int, int], frame: str, foreground: float, step: int
) -> None:
    spec = replace(SPEC, seed=seed, crop=crop, frame=frame, foreground=foreground)  # type: ignore[arg-type]
    rows = Plan.open(labelled.uri, spec).rows(step, step + 1)
    table = read_crops(labelled, ScanTable(labelled.index, (1, 0), LABEL), rows)
    batch = batch_of([table])
    assert batch.labels_NDHW is not None and batch.labels_NDHW.dtype == torch.uint8
    assert batch.labels_NDHW.shape == (len(batch), *crop) and batch.codes_NCDHW.shape[1] == 2
    for i, row in enumerate(table.to_pylist()):
        where = row["shard"], row["row"]
        mask = cut(labelled.read_volume(*where, "label"), row["corner"], crop)
        np.testing.assert_array_equal(batch.labels_NDHW[i], mask)
        for channel, name in enumerate(("T1w", "FLAIR")):
            codes = cut(labelled.read_volume(*where, name), row["corner"], crop)
            np.testing.assert_array_equal(batch.codes_NCDHW[i, channel], codes)


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_all_else_is_as_without_masks(labelled: ShardSet, foreground: float) -> None:
    spec = replace(SPEC, foreground=foreground)
    rows = Plan.open(labelled.uri, spec).rows(4, 5)
    plain, with_masks = (
        read_crops(labelled, ScanTable(labelled.index, (0, 1), label), rows) for label in (None, LABEL)
    )
    assert with_masks.drop_columns(["mask"]).equals(plain)
    without = read_batch(labelled, rows, (0, 1))
    assert without.labels_NDHW is None
    same(replace(read_batch(labelled, rows, (0, 1), LABEL), labels_NDHW=None), without)


def test_codes_and_labels_are_contiguous_and_not_copied(labelled: ShardSet) -> None:
    rows = Plan.open(labelled.uri, SPEC).rows(0, 1)
    table = read_crops(labelled, ScanTable(labelled.index, (0, 1), LABEL), rows)
    batch = batch_of([table])
    assert batch.labels_NDHW is not None
    for column, tensor in (("voxels", batch.codes_NCDHW), ("mask", batch.labels_NDHW)):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() == table[column].chunk(0).buffers()[2].address
    same(batch_of([table.slice(0, 3), table.slice(3)]), batch)
    same(batch.to("cpu"), batch)
    second = batch.groups(1, 2)
    assert second.labels_NDHW is not None and torch.equal(second.labels_NDHW, batch.labels_NDHW[4:])


def test_float_sets_deliver_whole_labels(tmp_path: Path) -> None:
    for case in (1, 2):
        subject = put_brats(tmp_path / "brats", case, lesion(1, 2, 4))
        path = tmp_path / "brats" / subject / f"{subject}_t1.nii.gz"
        path.write_bytes(gzip.compress(nifti(brain(case) * np.float32(0.37)), mtime=0))
    spec = ConvertSpec(min_slices=10, float_mode="lossless")
    convert(brats_intake(tmp_path / "brats"), str(tmp_path / "set"), spec, executor=inline)
    shards = ShardSet.open(str(tmp_path / "set"))
    plan = Plan.open(shards.uri, replace(SPEC, crop=VOLUME, groups_per_step=1, frame="reference"))
    batch = read_batch(shards, plan.rows(0, 1), (1,), LABEL)
    assert batch.codes_NCDHW.dtype == torch.float32 and batch.labels_NDHW is not None
    np.testing.assert_array_equal(batch.labels_NDHW, np.stack([lesion(1, 2, 4)[::-1]] * 4))


def test_what_is_no_mask_is_refused(labelled: ShardSet, witness_set: str) -> None:
    rows = Plan.open(labelled.uri, SPEC).rows(0, 1)
    for label in (1, 3, -1):
        with pytest.raises(ConfigError, match=rf"scan {label} of the shard set is no mask: .* T1w, label"):
            read_batch(labelled, rows, (0,), label)
    with pytest.raises(ConfigError, match=r"it has T1w, FLAIR.*convert the cohort with its masks"):
        BatchReader(WitnessReader(witness_set), (0,), 1)


def test_a_session_without_a_mask_is_not_taken_for_healthy(labelled: ShardSet) -> None:
    rows = Plan.open(labelled.uri, replace(SPEC, labelled=False)).rows(0, 3)
    rows = rows.filter(pa.compute.equal(rows["subject"], "BraTS2021_00006"))
    with pytest.raises(DataError, match=r"came without a mask \[subject BraTS2021_00006\].*labelled"):
        read_crops(labelled, ScanTable(labelled.index, (0,), LABEL), rows)
    assert read_crops(labelled, ScanTable(labelled.index, (0,)), rows).num_rows == len(rows) > 0


def test_chunks_count_the_masks_bytes() -> None:
    spec = replace(SPEC, crop=(64, 64, 64), groups_per_step=64)
    share = Share(shards="", spec=spec, channels=(0,), start_step=0, stop_step=1)
    # 4 crops of 64^3 take 2 MiB in int16, and 1 MiB more of labels.
    assert groups_per_chunk(share, FetchOptions(chunk_mib=32)) == 16
    assert groups_per_chunk(replace(share, label=LABEL), FetchOptions(chunk_mib=32)) == 8


def steps(shards: ShardSet, spec: PlanSpec, world: int, start: int, stop: int) -> list[Iterator[CropBatch]]:
    config = PlanDataConfig(
        shards=shards.uri,
        spec=spec,
        channels=(1, 0),
        label=shards.label_channel,
        stop_step=stop,
        start_step=lambda: start,
        fetch=FetchOptions(rows_per_chunk=12),
    )
    return [
        iter_steps(
            found["train"],
            rows_per_step=spec.groups_per_step // world * spec.crops_per_group,
            first_step=start,
            crops_per_group=spec.crops_per_group,
            prefetch=1,
            stop_step=stop,
        )
        for found in config.configure({"train": None}, world, None, None)
    ]


def test_through_ray_on_two_workers_and_after_a_resume(ray_local: int, labelled: ShardSet) -> None:
    spec = replace(SPEC, fold=0, foreground=0.5, groups_per_step=4, subjects_per_group=1)
    read, plan = BatchReader(labelled, (1, 0), LABEL), Plan.open(labelled.uri, spec)
    assert plan.n_subjects == 3 and "BraTS2021_00003" in plan.sessions[0]
    for world, start in ((2, 0), (1, 7)):
        for rank, stream in enumerate(steps(labelled, spec, world, start, 12)):
            batches = list(stream)
            assert [b.step for b in batches] == list(range(start, 12))
            for batch in batches:
                same(batch, read(plan.rows(batch.step, batch.step + 1, rank, world)))
                assert batch.labels_NDHW is not None and batch.labels_NDHW.dtype == torch.uint8
