"""A shard set as nnU-Net's raw data set: who is in it, under what names, and with what voxels."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.compute as pc
import pytest

from brainfoundry.cohorts.brats import read_brats
from brainfoundry.cohorts.few_shot import few_shot
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.nnunet.cases import Case, Selection, named, select_cases
from brainfoundry.experiments.nnunet.export import Export, export_dataset, plan_export, scan_of
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.stream.folds import few_shot_subset, split_view
from tests.store.builders import brain, nifti, put_brats
from tests.training.labelled import tumour


def case(number: int) -> str:
    return f"BraTS2021_{number:05d}"


def splits(export: Export) -> dict[str, list[str]]:
    (split,) = json.loads(export.splits.read_text())
    assert split.keys() == {"train", "val"}
    return split


def test_the_raw_data_set(exported: Export) -> None:
    about = json.loads((exported.raw / "dataset.json").read_text())
    assert exported.raw.name == "Dataset137_brats"
    assert about["channel_names"] == {"0": "FLAIR", "1": "T1w"}
    assert list(about["labels"]) == ["background", "wt", "tc", "et"]
    assert (about["numTraining"], about["file_ending"]) == (6, ".nii.gz")
    training = [case(n) for n in (1, 2, 4, 5, 7)]
    assert splits(exported) == {"train": training, "val": [case(8)]}
    images = {f"{name}_{i:04d}.nii.gz" for name in [*training, case(8)] for i in (0, 1)}
    assert {path.name for path in (exported.raw / "imagesTr").iterdir()} == images
    labels = {f"{name}.nii.gz" for name in [*training, case(8)]}
    assert {path.name for path in (exported.raw / "labelsTr").iterdir()} == labels
    tested = {f"{case(n)}_{i:04d}.nii.gz" for n in (3, 6) for i in (0, 1)}
    assert {path.name for path in exported.images_test.iterdir()} == tested


@pytest.mark.parametrize(("fold", "share", "draw"), [(None, 100, 0), (0, 50, 0), (0, 50, 1), (2, 100, 0)])
def test_subjects_are_those_of_our_runs(
    shards: str, fold: int | None, share: float, draw: int, tmp_path: Path
) -> None:
    selection = Selection(shards=shards, fold=fold, share=share, draw=draw)
    export = export_dataset(plan_export(selection, str(tmp_path)))
    index, found = ShardSet.open(shards).index, splits(export)
    subset = few_shot_subset(shards, share=share, draw=draw, fold=fold)
    view = split_view(index, fold, subset=subset)
    assert found["train"] == sorted(view.filter(pc.equal(view["split"], "train"))["subject"].to_pylist())
    assert found["val"] == [case(8)]
    assert [c.subject for c in export.of("test")] == [case(9)]
    if share == 50:  # and of the recipe, recomputed from the manifest
        manifest = read_manifest(manifest_uri(shards))
        recipe = manifest.meta.splits["few_shot"]
        assert found["train"] == list(few_shot(manifest, recipe, 50, draw, without_fold=fold))


def test_without_a_val_split_the_fold_held_out_is_validated_on(shards: str) -> None:
    opened = ShardSet.open(shards)
    split = pc.replace_substring(opened.index["split"], "val", "train")
    at = opened.index.column_names.index("split")
    opened.index = opened.index.set_column(at, "split", split)
    cases = select_cases(opened, Selection(shards=shards, fold=1, test="fold"))
    found = {part: [c.name for c in cases if c.part == part] for part in ("val", "test")}
    assert found["val"] == found["test"] == [case(1), case(4), case(7)]
    with pytest.raises(ConfigError, match=r"nobody is held out.*--val 0\.1, or hold a fold out"):
        select_cases(opened, Selection(shards=shards))


def test_voxels_are_the_scans_own(exported: Export, shards: str) -> None:
    opened = ShardSet.open(shards)
    for c in exported.cases:
        folder = exported.raw / ("imagesTs" if c.part == "test" else "imagesTr")
        for channel, modality in enumerate(("FLAIR", "T1w")):
            written = nibabel.load(folder / f"{c.name}_{channel:04d}.nii.gz")
            source = nibabel.as_closest_canonical(opened.to_nifti(c.shard, c.row, modality))
            assert written.get_data_dtype() == np.int16
            assert np.array_equal(written.get_fdata(), source.get_fdata())
            assert np.allclose(written.affine, source.affine)
        if c.part != "test":
            mask = nibabel.load(exported.raw / "labelsTr" / f"{c.name}.nii.gz")
            truth = nibabel.as_closest_canonical(
                nibabel.Nifti1Image(tumour(int(c.name[-1])), np.diag([-1.0, 1, 1, 1]))
            )
            expected = np.array([0, 2, 1, 0, 3])[truth.get_fdata().astype(int)]
            assert np.array_equal(np.asanyarray(mask.dataobj), expected)
            assert np.allclose(mask.affine, written.affine)


def test_channels_by_name_and_fed_by_others(shards: str, tmp_path: Path) -> None:
    selection = Selection(shards=shards, modalities=("T1w", "FLAIR"), feed=("FLAIR=T1w",))
    export = export_dataset(plan_export(selection, str(tmp_path)))
    about = json.loads((export.raw / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "T1w", "1": "FLAIR"}
    first, second = (nibabel.load(export.images_test / f"{case(9)}_{i:04d}.nii.gz") for i in (0, 1))
    assert np.array_equal(first.get_fdata(), second.get_fdata())


def test_an_interrupted_export_goes_on(exported: Export) -> None:
    gone = exported.raw / "imagesTr" / f"{case(1)}_0001.nii.gz"
    kept = exported.raw / "imagesTr" / f"{case(1)}_0000.nii.gz"
    before, age = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    (Path(exported.folder) / "cases.csv").unlink()
    with pytest.raises(DataError, match="no finished export here"):
        Export.open(exported.folder)
    export_dataset(exported)
    assert gone.read_bytes() == before
    assert kept.stat().st_mtime_ns == age
    assert Export.open(exported.folder) == exported


def test_the_table_leads_back(exported: Export) -> None:
    with (Path(exported.folder) / "cases.csv").open(newline="") as lines:
        rows = {row["name"]: row for row in csv.DictReader(lines)}
    assert rows[case(3)]["subject"] == case(3) and rows[case(3)]["part"] == "test"


def test_names_that_nnunet_takes() -> None:
    sessions = [("P1", "", "P1"), ("sub-01", "2", "sub-01_ses-2"), ("a b", "", "a b"), ("P_seg", "", "P_seg"),
                ("x", "1", "X-1"), ("X", "1", "x-1")]  # fmt: skip
    found = named(sessions)
    assert found["P1", ""] == "P1" and found["sub-01", "2"] == "sub-01_ses-2"
    others = [found[key] for key in (("a b", ""), ("P_seg", ""), ("x", "1"), ("X", "1"))]
    assert all(name.startswith("case-") for name in others)
    assert len(set(found.values())) == len(sessions)
    assert named(sessions[2:3])["a b", ""] == found["a b", ""]  # whoever else is there


def test_another_export_in_the_folder_is_refused(exported: Export) -> None:
    with pytest.raises(ConfigError, match=r"holds another export: share was 100\.0, now it is 50\.0"):
        export_dataset(replace(exported, share=50.0))
    moved = replace(exported, shards=exported.shards + "/../shares")
    assert Export.open(export_dataset(moved).folder).shards == moved.shards


def test_bad_input(shards: str, small_unlabelled: str, tmp_path: Path) -> None:
    out = str(tmp_path)
    with pytest.raises(ConfigError, match=r"to be tested, and none is held out.*--fold 0"):
        Selection(shards=shards, test="fold")
    with pytest.raises(ConfigError, match="--dataset-id 1 to 999"):
        plan_export(Selection(shards=shards), out, dataset_id=1000)
    with pytest.raises(ConfigError, match="local files, not s3://b/x"):
        plan_export(Selection(shards=shards), "s3://b/x")
    with pytest.raises(ConfigError, match="nobody outside the test set is in fold 7"):
        plan_export(Selection(shards=shards, fold=7), out)
    with pytest.raises(ConfigError, match="no few-shot subset of 5 %"):
        plan_export(Selection(shards=shards, share=5), out)
    with pytest.raises(ConfigError, match="'T2w' is not in the shard set"):
        plan_export(Selection(shards=shards, modalities=("T2w",)), out)
    with pytest.raises(ConfigError, match="task 'atlas' does not understand"):
        plan_export(Selection(shards=shards, task="atlas"), out)
    with pytest.raises(ConfigError, match="the shard set has no masks"):
        plan_export(Selection(shards=small_unlabelled), out)
    assert not any(tmp_path.iterdir())


def test_floats_keep_their_background_and_what_is_missing_is_zero(tmp_path: Path) -> None:
    subject = put_brats(tmp_path / "brats", 1, tumour(1))
    folder = tmp_path / "brats" / subject
    (folder / f"{subject}_t1.nii.gz").unlink()
    values = brain(3).astype(np.float32) * np.float32(-0.37)
    (folder / f"{subject}_flair.nii.gz").write_bytes(gzip.compress(nifti(values)))
    rules = IntakeRules(modalities=("FLAIR", "T1w"), optional=("T1w",), labels="required", min_slices=10)
    manifest = read_brats(str(tmp_path / "brats"), str(tmp_path / "intake.parquet"), rules)
    convert(manifest, str(tmp_path / "shards"), ConvertSpec(min_slices=10), executor=inline)
    opened = ShardSet.open(str(tmp_path / "shards"))
    session = Case(name="c", part="test", subject=subject, session="", shard=0, row=0)
    flair, t1 = (scan_of(opened, session, modality) for modality in ("FLAIR", "T1w"))
    source = values[::-1]  # R to L stored, RAS written
    assert flair.get_data_dtype() == np.float32
    assert np.array_equal(flair.get_fdata() == 0, source == 0)
    assert np.allclose(flair.get_fdata(), source, atol=0.01)  # quantised to 16 bits
    assert t1.get_data_dtype() == np.int16 and not t1.get_fdata().any()
