"""What is refused, what is let pass, and what is only noted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainfoundry.cohorts.rows import Scan
from brainfoundry.core.errors import DataError
from brainfoundry.inference.geometry import load_case
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.checks import check_claims, check_volume, choose_scans, feed_notes, grid_notes
from brainfoundry.prediction.models import space_of
from tests.prediction.builders import card, put
from tests.quality.builders import AFFINE as MNI_4MM
from tests.quality.builders import SHAPE as MNI_SHAPE
from tests.quality.builders import brain as mni_brain


def scan(modality: str, uri: str = "") -> Scan:
    return Scan(
        modality=modality, uri=uri or f"{modality}.nii.gz", shape=(4, 4, 4), spacing=(1.0, 1.0, 1.0),
        orientation="RAS", dtype="int16", size=1,
    )  # fmt: skip


def case(*modalities: str, **about: object) -> Case:
    return Case(subject="p1", session="", scans=tuple(map(scan, modalities)), **about)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# Which scans


def test_scans_are_chosen_by_modality() -> None:
    space = space_of(card())
    found = choose_scans(case("T2w", "T1w", "PD", "FLAIR", "T1ce"), space)
    assert list(found) == ["FLAIR", "T1ce", "T1w", "T2w"] and found["T2w"].uri == "T2w.nii.gz"


def test_a_missing_modality_names_those_there_and_wanted() -> None:
    wrong = case("T1w", "T2w", problem="FLAIR: not a NIfTI file")
    with pytest.raises(DataError) as error:
        choose_scans(wrong, space_of(card()))
    line = error.value.line()
    assert "no FLAIR and no T1ce: the network wants FLAIR, T1ce, T1w, T2w, there is T1w, T2w" in line
    assert "FLAIR: not a NIfTI file" in line and "subject p1" in line


def test_what_is_wrong_with_other_scans_does_not_matter() -> None:
    choose_scans(case("T1w", problem="T2w is damaged"), space_of(card(modalities=("T1w",))))


def test_a_channel_that_training_fed_another_scan_is_fed_it_again() -> None:
    space = space_of(card(modalities=("FLAIR", "T1w"), feeds={"FLAIR": "T1w"}))
    assert list(choose_scans(case("T1w"), space)) == ["T1w"]
    assert feed_notes(space) == ["channel FLAIR is fed the T1w, as in training"]
    with pytest.raises(DataError, match="no T1w"):
        choose_scans(case("FLAIR"), space)


def test_two_scans_of_a_modality_are_no_choice() -> None:
    twice = Case(subject="p1", session="", scans=(scan("T1w", "a.nii.gz"), scan("T1w", "b.nii.gz")))
    with pytest.raises(DataError, match=r"2 scans of T1w: a.nii.gz, b.nii.gz.*--run"):
        choose_scans(twice, space_of(card(modalities=("T1w",))))


# ---------------------------------------------------------------------------------------------------------
# What the source says


@pytest.mark.parametrize(
    ("claimed", "trained", "refused"),
    [
        ("MNI152NLin6Asym", "MNI152", False),
        ("SRI24", "SRI24", False),
        ("", "MNI152", False),
        ("MNI152", "", False),
        ("MNI152", "SRI24", True),
        ("OASIS30", "MNI152", True),
    ],
)
def test_template_space_by_name(claimed: str, trained: str, refused: bool) -> None:
    one, space = case("T1w", space=claimed), space_of(card(space=trained))
    if not refused:
        assert check_claims(one, space, ()) == []
        return
    with pytest.raises(
        DataError, match=f"in {claimed} space, the network was trained in {trained}.*--allow space"
    ):
        check_claims(one, space, ("skull",))
    (note,) = check_claims(one, space, ("space",))
    assert note.endswith("(--allow space)")


def test_whole_heads_by_their_source() -> None:
    stripped = space_of(card(skull_stripped=True))
    assert check_claims(case("T1w", skull_stripped=None), stripped, ()) == []
    assert check_claims(case("T1w", skull_stripped=True), space_of(card()), ()) == []
    with pytest.raises(DataError, match=r"whole heads by their source.*--preprocess.*--allow skull"):
        check_claims(case("T1w", skull_stripped=False), stripped, ())


# ---------------------------------------------------------------------------------------------------------
# What the voxels show


def judge(
    tmp_path: Path,
    data: np.ndarray,
    affine: np.ndarray = MNI_4MM,
    allow: tuple[str, ...] = (),
    **header: object,
) -> list[str]:
    space = space_of(card(modalities=("T1w",), space="MNI152", skull_stripped=True))
    uri = str(put(tmp_path / "t1.nii.gz", data, affine, **header))
    volume = load_case({"T1w": uri}, space, subject="p1", assume_orientation="RAS")
    return check_volume(volume, {"T1w": uri}, space, allow)


def test_a_brain_in_template_space_passes(tmp_path: Path) -> None:
    assert judge(tmp_path, mni_brain(1)) == []


def test_a_brain_elsewhere_is_refused(tmp_path: Path) -> None:
    away = MNI_4MM + np.array([[0, 0, 0, 70], [0] * 4, [0, 0, 0, 40], [0] * 4])
    with pytest.raises(
        DataError, match=r"T1w: Dice with the template brain 0\.\d+.*subject p1.*--allow space"
    ):
        judge(tmp_path, mni_brain(1), away)
    (note,) = judge(tmp_path, mni_brain(1), away, ("space",))
    assert note.startswith("T1w: Dice with the template brain") and note.endswith("(--allow space)")


def test_a_whole_head_is_refused_where_brains_are_expected(tmp_path: Path) -> None:
    head = np.random.default_rng(0).integers(100, 900, MNI_SHAPE).astype(np.int16)
    with pytest.raises(DataError, match=r"T1w: foreground of .* ml: more than a brain.*--allow skull"):
        judge(tmp_path, head, allow=("space",))
    notes = judge(tmp_path, head, allow=("skull", "space"))
    assert any("more than a brain" in note for note in notes)


def test_a_scan_without_orientation_is_not_held_against_the_template(tmp_path: Path) -> None:
    notes = judge(tmp_path, mni_brain(1), qform_code=0, sform_code=0)
    assert notes == ["T1w: not held against MNI152, its header has no orientation"]


# ---------------------------------------------------------------------------------------------------------
# The grid


@pytest.mark.parametrize(
    ("spacing_mm", "spacing", "shape", "words"),
    [
        (None, (1.0, 1.0, 1.09), (64, 64, 64), []),
        (None, (1.0, 1.0, 1.2), (64, 64, 64), ["voxels of 1 x 1 x 1.2 mm, and nothing was resampled"]),
        (2.0, (2.0, 2.0, 2.0), (64, 64, 64), []),
        (
            None,
            (1.0, 1.0, 1.0),
            (64, 31, 64),
            ["volume of 64 x 31 x 64 is smaller than the window of 64 x 32 x 32"],
        ),
    ],
)
def test_grid(
    spacing_mm: float | None, spacing: tuple[float, ...], shape: tuple[int, ...], words: list[str]
) -> None:
    notes = grid_notes(shape, spacing, space_of(card(spacing_mm=spacing_mm)), (64, 32, 32))
    assert len(notes) == len(words)
    assert all(note.startswith(start) for note, start in zip(notes, words, strict=True))


# ---------------------------------------------------------------------------------------------------------
# Notes where nothing can be refused


def test_a_brain_where_heads_were_trained_on_is_noted_in_any_space(tmp_path: Path) -> None:
    space = space_of(card(modalities=("T1w",), space="", skull_stripped=False))
    uri = str(put(tmp_path / "t1.nii.gz", mni_brain(1), MNI_4MM))
    volume = load_case({"T1w": uri}, space, subject="p1")
    (note,) = check_volume(volume, {"T1w": uri}, space, ())
    assert note.startswith("T1w: foreground of") and "exactly background" in note


def test_a_scan_the_intake_refused_is_told_with_its_own_fix() -> None:
    bad = Case(
        subject="p1", session="", scans=(), problem="T1w: image is 4D [a.nii.gz]. Fix: take one volume"
    )
    with pytest.raises(DataError) as error:
        choose_scans(bad, space_of(card(modalities=("T1w",))))
    assert "no T1w" in error.value.line() and error.value.line().count("Fix: ") == 1
    assert error.value.line().endswith("Fix: take one volume")
