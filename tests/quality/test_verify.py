"""Verification finds every kind of fault that was planted, and nothing else."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.core.remote import StorageError
from brainfoundry.quality import session as session_module
from brainfoundry.quality.findings import CODES
from brainfoundry.quality.verify import Verification, of_intake, verify
from tests.quality.builders import (
    AFFINE,
    MM,
    SHAPE,
    SLICES,
    Image,
    Session,
    brain,
    cohort,
    inside,
    lesion,
    session,
)

CLEAN = 12


def verified(folder: Path, sessions: list[Session], **meta: object) -> Verification:
    manifest = cohort(folder, sessions, **meta)
    return verify(of_intake(manifest, str(folder / "manifest.parquet")))


def clean() -> list[Session]:
    return [session(n) for n in range(CLEAN)]


Spoil = Callable[[Session], None]
FAULTS: dict[str, tuple[Spoil, list[tuple[str, str]]]] = {}
"""Name -> what spoils a session, and the (code, modality) that must be found in it."""


def fault(*expected: tuple[str, str]) -> Callable[[Spoil], Spoil]:
    """Marks a function that spoils a session, with what must be found in it."""

    def add(function: Spoil) -> Spoil:
        FAULTS[function.__name__] = function, list(expected)
        return function

    return add


@fault(("unreadable", "FLAIR"))
def gone(s: Session) -> None:
    s.after = lambda paths: paths["FLAIR"].unlink()


@fault(("unreadable", "T1w"))
def damaged_inside(s: Session) -> None:
    def damage(paths: Mapping[str, Path]) -> None:
        data = bytearray(paths["T1w"].read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        paths["T1w"].write_bytes(data)

    s.after = damage


@fault(("changed", "T1w"))
def cut_short(s: Session) -> None:
    s.after = lambda paths: paths["T1w"].write_bytes(paths["T1w"].read_bytes()[:-1000])


@fault(("changed", "FLAIR"))
def other_checksum(s: Session) -> None:
    s.scans["FLAIR"] = {"sha256": "ab" * 32}


@fault(("changed", "T1w"))
def header_edited_since_the_intake(s: Session) -> None:
    s.scans["T1w"] = {"orientation": "LAS"}


@fault(("not_finite", "FLAIR"))
def not_finite(s: Session) -> None:
    s.images["FLAIR"].data = s.images["FLAIR"].data.astype(np.float32)
    s.images["FLAIR"].data[20:23, 20:23, 20] = np.nan


@fault(("empty", "T1w"))
def empty(s: Session) -> None:
    s.images["T1w"].data[:] = 0


@fault(("constant", "T1w"))
def constant(s: Session) -> None:
    s.images["T1w"].data[:] = 7


@fault(("not_nifti", "T1w"))
def not_nifti(s: Session) -> None:
    def replace(paths: Mapping[str, Path]) -> None:
        size = paths["T1w"].stat().st_size
        paths["T1w"].write_bytes(b"x" * size)

    s.after = replace


@fault(("unsupported_image", "FLAIR"))
def four_dimensions(s: Session) -> None:
    data = s.images["FLAIR"].data
    s.images["FLAIR"].data = np.stack([data, data], -1)


@fault(("missing_scan", "FLAIR"))
def missing(s: Session) -> None:
    del s.images["FLAIR"]


@fault(("grid_mismatch", "FLAIR"))
def shifted(s: Session) -> None:
    s.images["FLAIR"].affine[0, 3] += 3


@fault(("label_grid_mismatch", "label"))
def label_shifted(s: Session) -> None:
    s.images["label"].affine[2, 3] -= 3


@fault(("label_values", "label"))
def label_of_another_scheme(s: Session) -> None:
    s.images["label"].data *= 4


@fault(("label_values", "label"))
def label_between_integers(s: Session) -> None:
    s.images["label"].data = s.images["label"].data * np.float32(0.5)


@fault(("label_empty", "label"))
def label_empty(s: Session) -> None:
    s.images["label"].data[:] = 0


@fault(("label_outside", "label"))
def label_outside(s: Session) -> None:
    s.images["label"].data = np.roll(s.images["label"].data, -20, 2)


@fault(("shape", "T1w"), ("shape", "FLAIR"))
def another_grid(s: Session) -> None:
    for image in s.images.values():
        image.data = np.pad(image.data, ((0, 3), (0, 0), (0, 4)))


@fault(("spacing", "T1w"), ("spacing", "FLAIR"))
def another_spacing(s: Session) -> None:
    affine = AFFINE.copy()
    affine[0, 0], affine[0, 3] = 3.5, -79
    for name, image in s.images.items():
        image.affine = affine
        image.data = lesion(3, affine) if name == "label" else brain(77, name, affine)


@fault(("orientation", "T1w"), ("orientation", "FLAIR"))
def another_orientation(s: Session) -> None:
    for image in s.images.values():
        image.data = image.data[::-1]
        image.affine = image.affine @ np.diag([-1.0, 1, 1, 1])
        image.affine[0, 3] = AFFINE[0, 3] + (SHAPE[0] - 1) * MM


@fault(("intensity_outlier", "T1w"))
def forty_times_as_bright(s: Session) -> None:
    s.images["T1w"].slope = 40.0


@fault(("intensity_outlier", "FLAIR"))
def spikes(s: Session) -> None:
    spoilt = np.random.default_rng(0).random(SHAPE) < 0.04
    s.images["FLAIR"].data[spoilt & inside()] = 8_000


@fault(("volume_outlier", "T1w"), ("off_template", "T1w"))
def half_a_brain(s: Session) -> None:
    s.images["T1w"].data[:26] = 0


@fault(("not_in_template", "T1w"), ("not_in_template", "FLAIR"))
def not_registered(s: Session) -> None:
    for image in s.images.values():
        image.affine[1, 3] += 90


@fault(("not_stripped", "T1w"))
def whole_head(s: Session) -> None:
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    head = sum(g**2 for g in grid) < 0.98
    noise = np.random.default_rng(5).normal(700, 60, SHAPE)
    s.images["T1w"].data = np.where(inside(), s.images["T1w"].data, noise * head).astype(np.int16)


@fault(("few_slices", "FLAIR"))
def few_slices(s: Session) -> None:
    shown = np.flatnonzero(s.images["FLAIR"].data.any(axis=(0, 1)))
    s.images["FLAIR"].data[:, :, shown[SLICES - 1] :] = 0


def planted() -> tuple[list[Session], dict[str, list[tuple[str, str]]]]:
    sessions, expected = clean(), {}
    for n, (spoil, codes) in enumerate(FAULTS.values(), 100):
        one = session(n)
        spoil(one)
        sessions.append(one)
        expected[one.subject] = sorted(codes)
    return sessions, expected


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Verification, dict[str, list[tuple[str, str]]]]:
    sessions, expected = planted()
    return verified(tmp_path_factory.mktemp("cohort"), sessions), expected


def test_a_clean_cohort_has_no_finding(tmp_path: Path) -> None:
    done = verified(tmp_path, clean())
    assert done.findings == () and done.errors == 0
    assert (done.sessions, done.scans) == (CLEAN, 2 * CLEAN)


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_found(name: str, everything: tuple[Verification, dict[str, object]]) -> None:
    done, expected = everything
    subject = list(expected)[list(FAULTS).index(name)]
    found = [f for f in done.findings if f.subject == subject]
    assert sorted((f.code, f.modality) for f in found) == expected[subject], found
    for one in found:
        assert one.session == "1" and one.detail and one.fix
        assert one.severity == CODES[one.code][0]
        assert one.code == "missing_scan" or subject in one.file


def test_nothing_else_is_found(everything: tuple[Verification, dict[str, object]]) -> None:
    done, expected = everything
    assert [f for f in done.findings if f.subject not in expected] == []
    order = [f.severity for f in done.findings]
    assert order == sorted(order) and {"error", "warning"} == set(order)


def test_duplicates_are_found_whatever_was_done_to_the_file(tmp_path: Path) -> None:
    sessions = clean()
    again = session(50)
    again.images["T1w"] = Image(brain(3, "T1w").astype(np.float32) * 2.5)  # other dtype, scaling and bytes
    second = session(5, visit="2", labelled=False)  # the same two scans delivered as another visit
    turned = session(51)
    turned.images["FLAIR"] = Image(np.ascontiguousarray(brain(4, "FLAIR")[:, :, ::-1]))
    turned.images["FLAIR"].affine = AFFINE.copy()
    done = verified(tmp_path, [*sessions, again, second, turned])
    found = {(f.code, f.subject, f.session, f.modality): f for f in done.findings if "duplicate" in f.code}
    assert set(found) == {
        ("duplicate_subjects", "s050", "1", "T1w"),
        ("duplicate", "s005", "2", "T1w"),
        ("duplicate", "s005", "2", "FLAIR"),
        ("duplicate_subjects", "s051", "1", "FLAIR"),
    }
    assert "same image as s003 1 T1w" in found["duplicate_subjects", "s050", "1", "T1w"].detail
    assert "the same file" in found["duplicate", "s005", "2", "T1w"].detail
    assert done.errors >= 4


def test_masks_of_two_schemes(tmp_path: Path) -> None:
    sessions = clean()
    for n, one in enumerate(sessions):
        one.images["label"].data *= 3 if n == 7 else 4
    done = verified(tmp_path, sessions, labels="brats2021")
    found = {f.code: f for f in done.findings}
    assert set(found) == {"label_values", "label_schemes"}
    assert found["label_values"].subject == "s007"
    assert "s007" in found["label_schemes"].detail and "s000" in found["label_schemes"].detail


def test_what_the_manifest_left_out_is_a_reminder(tmp_path: Path) -> None:
    sessions = clean()
    sessions[2].row = {"verdict": "excluded", "reason": "grid_mismatch", "detail": "T1w and FLAIR differ"}
    sessions[3].row = {"verdict": "excluded", "reason": "withdrawn", "detail": "consent was withdrawn"}
    manifest = cohort(tmp_path, sessions)
    done = verify(of_intake(manifest, "manifest.parquet"))
    (one,) = done.findings
    assert (one.code, one.severity, one.subject) == ("excluded", "warning", "s002")
    assert "grid_mismatch" in one.detail and done.sessions == CLEAN - 2
    (one,) = verify(of_intake(manifest, "folder", fresh=True)).findings
    assert (one.code, one.severity) == ("grid_mismatch", "error")


def test_a_whole_head_cohort_that_is_stripped(tmp_path: Path) -> None:
    done = verified(tmp_path, clean(), skull_stripped=False)
    assert {(f.code, f.severity) for f in done.findings} == {("looks_stripped", "warning")}
    assert len(done.findings) == 2 * CLEAN and done.errors == 0


def test_scanner_space_is_not_held_against_the_template(tmp_path: Path) -> None:
    sessions = clean()
    for one in sessions:
        for image in one.images.values():
            image.affine[:2, 3] += 55
    assert verified(tmp_path, sessions, template_space="").findings == ()


def test_a_cohort_of_many_scanners_has_no_usual_grid(tmp_path: Path) -> None:
    sessions = clean()
    for n, one in enumerate(sessions[:5]):
        for image in one.images.values():
            image.data = np.pad(image.data, ((0, n), (0, 0), (0, 0)))
    assert verified(tmp_path, sessions).findings == ()


def test_no_sessions_at_all(tmp_path: Path) -> None:
    done = verified(tmp_path, [])
    assert (done.findings, done.sessions, done.scans) == ((), 0, 0)


def test_a_file_that_is_no_gzip_but_plain_nifti(tmp_path: Path) -> None:
    sessions = clean()

    def unpack(paths: Mapping[str, Path]) -> None:
        paths["T1w"].write_bytes(gzip.decompress(paths["T1w"].read_bytes()))

    sessions[0].after = unpack
    (one,) = verified(tmp_path, sessions).findings
    assert (one.code, one.subject, one.modality) == ("changed", "s000", "T1w")


def test_what_nobody_thought_of_costs_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = session_module.measure

    def measure(values: np.ndarray, affine: np.ndarray) -> dict[str, object]:
        if (values == 31_999).any():
            raise RuntimeError("a case nobody thought of")
        return true(values, affine)

    monkeypatch.setattr(session_module, "measure", measure)
    sessions = clean()
    sessions[4].images["T1w"].data[20, 20, 20] = 31_999
    done = verified(tmp_path, sessions)
    (one,) = done.findings
    assert (one.code, one.subject) == ("unreadable", "s004") and "nobody thought of" in one.detail
    assert done.scans == 2 * (CLEAN - 1)


def test_storage_that_is_down_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(scan: object, subject: str) -> None:
        raise StorageError("storage does not answer", file="s3://bucket/scan.nii.gz", fix="try later")

    manifest = cohort(tmp_path, clean())
    monkeypatch.setattr(session_module, "load_scan", load)
    with pytest.raises(StorageError, match="does not answer"):
        verify(of_intake(manifest, "manifest.parquet"))
