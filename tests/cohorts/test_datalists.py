"""MONAI datalists and nnU-Net splits: read, written, read again, matched to a manifest's subjects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.datalists import (
    PathIndex,
    datalist_of,
    read_datalist,
    read_parts,
    write_datalist,
)
from brainfoundry.cohorts.manifest import Manifest, Row, read_manifest, write_manifest
from brainfoundry.cohorts.nnunet import case_of, parts_of_nnunet, read_nnunet, write_nnunet
from brainfoundry.cohorts.splits import SplitSpec, placed, split_subjects
from brainfoundry.cohorts.strata import people_of
from brainfoundry.core.errors import DataError

from .builders import meta, scan
from .people import in_manifest

NAMES = {"FLAIR": "flair", "T1ce": "t1ce", "T1w": "t1", "T2w": "t2"}
ROOT = "/data/brats"


def case_path(case: str, name: str, root: str = ROOT) -> str:
    return f"{root}/TrainingData/{case}/{case}_{name}.nii.gz"


def brats(n: int, visits: int = 1) -> list[Row]:
    """n subjects in BraTS layout, with masks."""
    made = []
    for i in range(n):
        for visit in range(visits):
            case = f"BraTS2021_{i:05d}" if visits == 1 else f"BraTS-GLI-{i:05d}-{visit:03d}"
            scans = [scan(m, uri=case_path(case, name), member="", crc32=None) for m, name in NAMES.items()]
            label = scan("label", uri=case_path(case, "seg"), member="", crc32=None)
            subject = case if visits == 1 else f"BraTS-GLI-{i:05d}"
            session = "" if visits == 1 else f"{visit:03d}"
            made.append(
                Row(subject=subject, session=session, cohort="brats", scans=tuple(scans), label=label)
            )
    return made


def manifest_of(folder: Path, rows: list[Row]) -> Manifest:
    uri = str(folder / "brats.parquet")
    write_manifest(uri, rows, meta(modalities=tuple(NAMES)))
    return read_manifest(uri)


def in_file(folder: Path, value: object, name: str = "list.json") -> str:
    path = folder / name
    path.write_text(json.dumps(value))
    return str(path)


def entry(case: str, fold: object = None, root: str = "TrainingData") -> dict:
    paths = [f"{root}/{case}/{case}_{name}.nii.gz" for name in NAMES.values()]
    value: dict = {"image": paths, "label": f"{root}/{case}/{case}_seg.nii.gz"}
    return value if fold is None else {"fold": fold, **value}


# ---------------------------------------------------------------------------------------------------------
# MONAI


def test_the_baselines_form_of_a_datalist(tmp_path) -> None:
    """`{"training": [{"fold": k, "image": [...], "label": ...}]}`, paths relative to a folder."""
    manifest = manifest_of(tmp_path, brats(3))
    uri = in_file(tmp_path, {"training": [entry(f"BraTS2021_{i:05d}", i) for i in (0, 1, 2)]})
    found = read_parts(uri, manifest)
    assert dict(found.parts) == {f"BraTS2021_{i:05d}": ("train", i) for i in range(3)}
    assert not found.notes() and found.record["method"] == "datalist"


def test_sections_are_splits_and_bare_paths_are_entries(tmp_path) -> None:
    manifest = manifest_of(tmp_path, brats(4))
    flair = [f"./imagesTr/BraTS2021_{i:05d}_flair.nii.gz" for i in range(4)]
    value = {
        "name": "x", "numTraining": 2, "training": [{"image": flair[0], "label": "l"}],
        "validation": [{"image": [flair[1]]}], "test": [flair[2]],
    }  # fmt: skip
    found = read_parts(in_file(tmp_path, value), manifest)
    assert [part for part, _ in found.parts.values()] == ["train", "val", "test", ""]
    assert found.unlisted == ("BraTS2021_00003",)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda x: st.lists(x, max_size=2))
PATHS = st.text("ab/_.", min_size=1, max_size=8)
ENTRIES = st.fixed_dictionaries(
    {"image": PATHS | st.lists(PATHS, min_size=1, max_size=4)},
    optional={"label": PATHS, "fold": st.integers(0, 4), "subject": PATHS, "weight": JSON.filter(bool)},
)


@settings(max_examples=60, deadline=None)
@given(
    value=st.fixed_dictionaries(
        {"training": st.lists(ENTRIES, min_size=1, max_size=4)},
        optional={
            "validation": st.lists(ENTRIES, min_size=1, max_size=2),
            "test": st.lists(ENTRIES, min_size=1, max_size=2),
            "name": st.text(max_size=4),
            "labels": JSON,
        },
    )
)
def test_what_was_read_is_written_again(tmp_path_factory, value) -> None:
    folder = tmp_path_factory.mktemp("d")
    uri = in_file(folder, value)
    again = str(folder / "again.json")
    write_datalist(again, read_datalist(uri))
    assert json.loads(Path(again).read_text()) == value
    assert read_datalist(again) == read_datalist(uri)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 12), visits=st.integers(1, 3), seed=st.integers(0, 99), data=st.data())
def test_a_split_survives_the_way_out_and_back(tmp_path_factory, n, visits, seed, data) -> None:
    folder = tmp_path_factory.mktemp("d")
    rows = brats(n, visits)
    folds = data.draw(st.sampled_from([0, 2]))
    split = split_subjects(rows, SplitSpec(seed=seed, test=1, val=1, folds=folds))
    manifest = manifest_of(folder, [placed(row, split.parts) for row in rows])
    whole, bare = str(folder / "whole.json"), str(folder / "bare.json")
    datalist = datalist_of(manifest, root=data.draw(st.sampled_from(["", ROOT, "/elsewhere"])))
    write_datalist(whole, datalist)
    # Without our own keys, as another tool would have written it: by the paths alone.
    write_datalist(bare, replace(datalist, entries=tuple(replace(e, extra={}) for e in datalist.entries)))
    for uri in (whole, bare):
        assert read_parts(uri, manifest).parts == split.parts


def test_monai_reads_what_is_written(tmp_path) -> None:
    from monai.data import load_decathlon_datalist

    split = split_subjects(brats(6), SplitSpec(test=1, folds=2))
    manifest = manifest_of(tmp_path, [placed(row, split.parts) for row in brats(6)])
    uri = str(tmp_path / "d.json")
    write_datalist(uri, datalist_of(manifest, root=ROOT))
    training = load_decathlon_datalist(uri, True, "training", base_dir="/base")
    assert len(training) == 5 and all(len(item["image"]) == 4 for item in training)
    first = training[0]
    case = first["subject"]
    assert first["image"][0] == f"/base/TrainingData/{case}/{case}_flair.nii.gz"
    assert (first["label"], first["fold"]) == (
        f"/base/TrainingData/{case}/{case}_seg.nii.gz",
        split.parts[case][1],
    )
    assert len(load_decathlon_datalist(uri, True, "test", base_dir="/base")) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "holds no named sections"),
        ({"train_set": []}, "no entry in training, validation or test"),
        ({"training": [{"label": "x"}]}, "entry 0 of 'training' names no image"),
        ({"training": [{"image": []}]}, "names no image"),
        ({"training": [{"image": [1]}]}, "names no image"),
        ({"training": [3]}, "names no image"),
    ],
)
def test_files_that_are_no_datalist(tmp_path, value, words) -> None:
    with pytest.raises(DataError, match=rf"{words}.*list.json.*Fix"):
        read_datalist(in_file(tmp_path, value))


def test_files_that_are_no_json(tmp_path) -> None:
    (tmp_path / "list.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_parts(str(tmp_path / "list.json"), manifest_of(tmp_path, brats(1)))
    with pytest.raises(DataError, match="no such file"):
        read_parts(str(tmp_path / "none.json"), manifest_of(tmp_path, brats(1)))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            [entry("BraTS2021_00000", 5)],
            r"fold '5': the 5 folds are 0 to 4 \[subject BraTS2021_00000; file .*json",
        ),
        (
            [entry("BraTS2021_00000", 1), entry("BraTS2021_00000", 2)],
            r"two folds or splits: fold 1 and fold 2 \[subject BraTS2021_00000; file .*json\]. Fix",
        ),
        (
            [entry("BraTS2021_00000", 1), entry("BraTS2021_00009", 2)],
            r"does not have: TrainingData/.*list.json.*Fix",
        ),
    ],
)
def test_datalists_that_are_wrong(tmp_path, entries, words) -> None:
    with pytest.raises(DataError, match=words):
        read_parts(in_file(tmp_path, {"training": entries}), manifest_of(tmp_path, brats(2)))


def test_two_visits_of_one_patient_in_two_folds_are_refused(tmp_path) -> None:
    manifest = manifest_of(tmp_path, brats(2, visits=2))
    value = {"training": [entry("BraTS-GLI-00000-000", 0), entry("BraTS-GLI-00000-001", 1)]}
    with pytest.raises(
        DataError, match=r"two folds.*\[subject BraTS-GLI-00000; file .*list.json\]. Fix: keep all"
    ):
        read_parts(in_file(tmp_path, value), manifest)


def test_an_entry_of_two_subjects_is_refused(tmp_path) -> None:
    mixed = entry("BraTS2021_00000", 0)
    mixed["image"][2] = entry("BraTS2021_00001")["image"][2]
    with pytest.raises(DataError, match=r"entry 0 \(training\) mixes files of several subjects.*list.json"):
        read_parts(in_file(tmp_path, {"training": [mixed]}), manifest_of(tmp_path, brats(2)))


def test_scans_in_archives_are_in_no_datalist(tmp_path) -> None:
    row = Row(subject="1", session="2", cohort="ukb", split="train", scans=(scan(),))
    with pytest.raises(
        DataError, match=r"inside an archive \[subject 1; file /data/1_20252_2_0.zip\]. Fix: unpack"
    ):
        datalist_of(in_manifest(tmp_path, [row]))
    with pytest.raises(DataError, match="no session is in a split"):
        datalist_of(in_manifest(tmp_path, [replace(row, split="")]))


def test_a_session_with_a_gap_is_in_no_datalist(tmp_path) -> None:
    there = scan(modality="FLAIR", uri="/data/flair.nii.gz", member="")
    row = Row(subject="1", session="", cohort="c", split="train", scans=(there,))
    two = in_manifest(tmp_path, [row])
    two = replace(two, meta=replace(two.meta, modalities=("T1w", "FLAIR")))
    with pytest.raises(DataError, match=r"session has no T1w: .* missing channel \[subject 1;"):
        datalist_of(two)


def folder_rows(paths: dict[str, str]) -> list[Row]:
    """Subject -> its only scan's path."""
    return [
        Row(subject=s, session="", cohort="c", scans=(scan(uri=uri, member=""),))
        for s, uri in sorted(paths.items())
    ]


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("/other/root/p1/t1.nii.gz", "p1"),
        ("p1/t1.nii.gz", "p1"),
        ("file:///data/p2/t1.nii.gz", "p2"),
        ("./x/p2/t1.nii.gz", "p2"),
        ("C:\\scans\\p2\\t1.nii.gz", "p2"),
        ("t1.nii.gz", None),  # everybody's name
        ("/data/p3/t1.nii.gz", None),  # nobody's folder: not the first that has a t1.nii.gz
        ("sub-p1/anat/sub-p1_T1w.nii.gz", "p1"),
        ("p1_vs_p2.nii.gz", None),
        ("", None),
    ],
)
def test_paths_find_their_subject_or_nobody(tmp_path, path, subject) -> None:
    rows = folder_rows({"p1": "/data/p1/t1.nii.gz", "p2": "/data/p2/t1.nii.gz"})
    assert PathIndex(in_manifest(tmp_path, rows)).subject(path) == subject


# ---------------------------------------------------------------------------------------------------------
# nnU-Net


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(5, 12), visits=st.integers(1, 3), folds=st.sampled_from([0, 2, 5]), seed=st.integers(0, 99)
)
def test_nnunet_splits_there_and_back(tmp_path_factory, n, visits, folds, seed) -> None:
    folder = tmp_path_factory.mktemp("n")
    spec = SplitSpec(seed=seed, folds=folds) if folds else SplitSpec(seed=seed, val=2)
    split = split_subjects(brats(n, visits), spec)
    manifest = manifest_of(folder, [placed(row, split.parts) for row in brats(n, visits)])
    uri = str(folder / "splits_final.json")
    assert write_nnunet(uri, manifest) == (folds or 1)
    for fold in read_nnunet(uri):
        assert len(fold["train"]) + len(fold["val"]) == n * visits and not set(fold["train"]) & set(
            fold["val"]
        )
    found = read_parts(uri, manifest)
    assert found.parts == split.parts and not found.notes()


def test_nnunet_leaves_the_test_set_out(tmp_path) -> None:
    split = split_subjects(brats(9), SplitSpec(test=3, folds=3))
    manifest = manifest_of(tmp_path, [placed(row, split.parts) for row in brats(9)])
    uri = str(tmp_path / "splits_final.json")
    write_nnunet(uri, manifest)
    test = {p.subject for p in people_of(manifest).values() if p.split == "test"}
    assert len(test) == 3 and not any(test & {*fold["train"], *fold["val"]} for fold in read_nnunet(uri))
    with pytest.raises(DataError, match=r"neither folds nor a val split.*Fix"):
        write_nnunet(uri, manifest_of(tmp_path, brats(2)))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "holds no list of folds"),
        ([{"train": ["a"]}], "fold 0 has no lists train and val"),
        ([{"train": ["a"], "val": [1]}], "fold 0 has no lists"),
        ([{"train": ["a"], "val": ["a"]}], "fold 0 both trains and validates on it .subject a"),
    ],
)
def test_files_that_are_no_nnunet_splits(tmp_path, value, words) -> None:
    with pytest.raises(DataError, match=rf"{words}.*list.json.*Fix"):
        read_nnunet(in_file(tmp_path, value))


@pytest.mark.parametrize(
    "value",
    [
        [{"train": [], "val": ["BraTS-GLI-00000_000"]}, {"train": [], "val": ["BraTS-GLI-00000_001"]}],
        [{"train": ["BraTS-GLI-00000_000"], "val": ["BraTS-GLI-00000_001"]}],
        [
            {"train": ["BraTS-GLI-00000_000"], "val": ["BraTS-GLI-00000_001"]},
            {"train": [], "val": ["BraTS-GLI-00001_000"]},
        ],
    ],
)
def test_nnunet_splits_that_part_a_patient_are_refused(tmp_path, value) -> None:
    with pytest.raises(DataError, match=r"two folds or splits.*\[subject BraTS-GLI-00000; file .*list.json"):
        read_parts(in_file(tmp_path, value), manifest_of(tmp_path, brats(2, visits=2)))


def test_nnunet_cases_nobody_knows(tmp_path) -> None:
    value = [{"train": ["BraTS2021_00000"], "val": ["who"]}]
    with pytest.raises(DataError, match=r"1 subjects that the cohort does not have: who \[subject who"):
        read_parts(in_file(tmp_path, value), manifest_of(tmp_path, brats(2)))
    found = read_parts(in_file(tmp_path, value), manifest_of(tmp_path, brats(2)), ignore_unknown=True)
    assert found.parts["BraTS2021_00000"] == ("train", None) and found.unknown == ("who",)


def test_nnunet_cases_are_called_as_their_files_are(tmp_path) -> None:
    """BraTS 2023 and BIDS name visits in the file name, and nnU-Net takes its case names from there."""
    rows = [
        Row(subject=s, session=v, cohort="c", split="train", scans=(scan(),))
        for s, v in (("BraTS-GLI-00000", "000"), ("sub-r001s001", "1"))
    ]
    made = in_manifest(tmp_path, rows)
    names = ["BraTS-GLI-00000-000", "sub-r001s001_ses-1"]
    folds = [{"train": names[:1], "val": names[1:]}, {"train": names[1:], "val": names[:1]}]
    parts, unknown = parts_of_nnunet(folds, made, file="splits_final.json")
    assert not unknown and {s: fold for s, (_, fold) in parts.items()} == {
        "sub-r001s001": 0,
        "BraTS-GLI-00000": 1,
    }
    assert [case_of(row) for row in made.rows()] == names
