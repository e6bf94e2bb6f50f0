"""Every kind of input: found out by itself, its sessions as cases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.cohorts.manifest import read_manifest, rewrite_manifest
from brainfoundry.cohorts.rows import Row
from brainfoundry.core.errors import BrainFoundryError, ConfigError, DataError
from brainfoundry.prediction.cases import Case, check_ids
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.sources import Source, find_cases
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
from tests.cohorts.layouts import put_all
from tests.prediction.builders import BRATS
from tests.quality.builders import SLICES, cohort, session


def find(root: Path, wanted: tuple[str, ...] = BRATS, **options: object) -> Source:
    return find_cases(PredictConfig(input=str(root), **options), wanted)  # type: ignore[arg-type]


def shown(source: Source) -> list[tuple[str, str, list[str]]]:
    return [(c.subject, c.session, [scan.modality for scan in c.scans]) for c in source.cases]


def test_a_folder_of_cases_nested_and_flat(tmp_path: Path) -> None:
    put_all(
        tmp_path,
        ["a/p1/p1_flair.nii.gz", "a/p1/p1_t1.nii.gz", "p2_flair.nii.gz", "p3/t2.nii.gz", "p1_seg.nii.gz"],
    )
    source = find(tmp_path)
    assert source.kind == "folder"
    assert shown(source) == [("p1", "", ["FLAIR", "T1w"]), ("p2", "", ["FLAIR"]), ("p3", "", ["T2w"])]
    assert source.notes == ("1 image files have no name of a known modality and were left alone",)
    assert [c.skull_stripped for c in source.cases] == [None] * 3 and source.cases[0].space == ""
    assert len(find(tmp_path, limit=2).cases) == 2


def test_a_folder_by_pattern(tmp_path: Path) -> None:
    put_all(tmp_path, ["x1/day1/mri_flair.nii.gz", "x1/day2/mri_flair.nii.gz"])
    source = find(tmp_path, pattern="{subject}/{session}/mri_{modality}.nii.gz")
    assert shown(source) == [("x1", "day1", ["FLAIR"]), ("x1", "day2", ["FLAIR"])]


def test_one_name_in_two_folders_is_not_made_one_case(tmp_path: Path) -> None:
    """Two people called scan, or one whose modalities lie apart? Nobody but the user knows."""
    put_all(tmp_path, ["anna/scan_flair.nii.gz", "bert/scan_t1.nii.gz"])
    with pytest.raises(
        DataError, match=r"'scan' lie in two folders, .*: one case, or two.*--pattern"
    ) as error:
        find(tmp_path)
    assert {"anna", "bert"} <= set(re.findall(r"\w+", error.value.problem))
    with pytest.raises(DataError, match="lie in two folders"):
        find(tmp_path, pattern="{subject}_{modality}.nii.gz")  # looks at the files' names alone
    two = find(tmp_path, pattern="{subject}/*_{modality}.nii.gz")
    assert shown(two) == [("anna", "", ["FLAIR"]), ("bert", "", ["T1w"])]
    assert shown(find(tmp_path, pattern="*/{subject}_{modality}.nii.gz")) == [("scan", "", ["FLAIR", "T1w"])]


def test_a_single_file_is_no_input(tmp_path: Path) -> None:
    put_all(tmp_path, ["p1_flair.nii.gz"])
    with pytest.raises(ConfigError, match=r"input is a single file.*folder that holds"):
        find(tmp_path / "p1_flair.nii.gz")


def test_nnunet_names_need_their_channels(tmp_path: Path) -> None:
    put_all(tmp_path, ["BRATS_001_0000.nii.gz", "BRATS_001_0001.nii.gz"])
    with pytest.raises(DataError, match=r"no scan of a known modality.*--channels 0000=FLAIR"):
        find(tmp_path)
    assert shown(find(tmp_path, channels=("0000=FLAIR", "0001=T1ce"))) == [
        ("BRATS_001", "", ["FLAIR", "T1ce"])
    ]


def test_a_bad_file_is_kept_with_what_the_intake_said(tmp_path: Path) -> None:
    put_all(tmp_path, {"p1_flair.nii.gz": None, "p1_t1.nii.gz": b"no gzip"})
    (case,) = find(tmp_path).cases
    assert [scan.modality for scan in case.scans] == ["FLAIR"]
    assert "not a NIfTI file" in case.problem and "p1_t1.nii.gz" in case.problem


def test_bids(tmp_path: Path) -> None:
    anat = "sub-01/ses-a/anat/sub-01_ses-a"
    put_all(tmp_path, [f"{anat}_run-1_T1w.nii.gz", f"{anat}_run-2_T1w.nii.gz", f"{anat}_FLAIR.nii.gz"])
    (tmp_path / "dataset_description.json").write_text("{}")
    source = find(tmp_path)
    assert source.kind == "BIDS dataset" and shown(source) == [("sub-01", "a", ["T1w", "T1w", "FLAIR"])]
    assert shown(find(tmp_path, run=2)) == [("sub-01", "a", ["T1w", "FLAIR"])]


def test_bids_names_its_space(tmp_path: Path) -> None:
    put_all(tmp_path, ["sub-01/anat/sub-01_space-MNI152NLin6Asym_T1w.nii.gz"])
    (tmp_path / "dataset_description.json").write_text("{}")
    (case,) = find(tmp_path).cases
    assert case.space == "MNI152NLin6Asym" and case.stem == "sub-01" and case.folder == "sub-01/anat"


def test_trees_of_brats_and_atlas_claim_what_they_are(tmp_path: Path) -> None:
    name = "BraTS2021_00003/BraTS2021_00003"
    put_all(tmp_path / "brats", [f"{name}_{kind}.nii.gz" for kind in ("flair", "t1ce", "t1", "t2", "seg")])
    source = find(tmp_path / "brats")
    assert source.kind == "BraTS tree" and shown(source) == [("BraTS2021_00003", "", list(BRATS))]
    (case,) = source.cases
    assert (case.space, case.skull_stripped, case.stem) == ("SRI24", True, "sub-BraTS202100003")

    anat = "R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym"
    put_all(tmp_path / "atlas", [f"{anat}_T1w.nii.gz", f"{anat}_label-L_desc-T1lesion_mask.nii.gz"])
    (tmp_path / "atlas" / "dataset_description.json").write_text("{}")
    source = find(tmp_path / "atlas", ("T1w",))
    assert source.kind == "ATLAS tree" and shown(source) == [("sub-r001s001", "1", ["T1w"])]
    (case,) = source.cases
    assert (case.space, case.skull_stripped) == ("MNI152NLin2009aSym", False)
    assert case.folder == "sub-r001s001/ses-1/anat"


def test_a_manifest_and_a_shard_set(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "files", [session(n) for n in range(3)])
    splits = {"s000": "train", "s001": "val", "s002": "test"}

    def dealt(row: Row) -> Row:
        if row.subject == "s000":
            return row.excluded("not_finite", "a bad one")
        return Row(**{**row.__dict__, "split": splits[row.subject]})

    uri = str(tmp_path / "m.parquet")
    rewrite_manifest(manifest, uri, dealt)
    source = find(Path(uri))
    assert [c.subject for c in source.cases] == ["s001", "s002"]
    assert source.kind == "cohort manifest of small"
    assert source.cases[0].skull_stripped is True and source.cases[0].space == "MNI152"
    assert [c.subject for c in find(Path(uri), split="test").cases] == ["s002"]

    convert(read_manifest(uri), str(tmp_path / "set"), ConvertSpec(min_slices=SLICES), executor=inline)
    source = find(tmp_path / "set")
    assert source.kind == "shard set of small"
    assert shown(source) == [("s001", "1", ["T1w", "FLAIR"]), ("s002", "1", ["T1w", "FLAIR"])]
    assert source.cases[0].stored == (str(tmp_path / "set"), 0, 0)


def test_a_resampled_shard_set_is_refused(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "files", [session(0), session(1)])
    spec = ConvertSpec(min_slices=SLICES, spacing_mm=6.0)
    convert(manifest, str(tmp_path / "set"), spec, executor=inline)
    with pytest.raises(DataError, match=r"resampled to 6\.0 mm.*intake\.parquet"):
        find(tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ConfigError, "no input was named"),
        ({"input": "gone"}, DataError, "no such folder"),
        ({"input": "gone.parquet"}, DataError, "no such manifest"),
        ({"input": ".", "split": "test"}, ConfigError, "--split needs splits"),
        ({"input": "."}, DataError, "no scan of a known modality among 0 images"),
    ],
)
def test_what_cannot_be_found(
    options: dict[str, str],
    error: type[BrainFoundryError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        find_cases(PredictConfig(**options), BRATS)  # type: ignore[arg-type]


def case(subject: str, session: str = "") -> Case:
    return Case(subject=subject, session=session, scans=())


def test_ids_that_bids_cannot_tell_apart_are_refused() -> None:
    check_ids([case("p-1"), case("p2"), case("p2", "1"), case("sub-01", "ses-1")])
    with pytest.raises(DataError, match="p-1 and p_1 would both be written as sub-p1"):
        check_ids([case("p-1"), case("x"), case("p_1")])
    with pytest.raises(DataError, match="without a letter or digit"):
        check_ids([case("--")])
    with pytest.raises(DataError, match="without a letter or digit"):
        check_ids([case("p", "-")])


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=4)), max_size=6, unique=True))
def test_ids_that_pass_are_valid_and_distinct(ids: list[tuple[str, str]]) -> None:
    some = [case(subject, session) for subject, session in ids]
    try:
        check_ids(some)
    except DataError:
        return
    stems = [one.stem for one in some]
    assert len(set(stems)) == len(stems)
    assert all(re.fullmatch(r"sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?", stem) for stem in stems)
