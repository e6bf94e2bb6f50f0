"""jobs/verify.py as a user runs it: folders, manifests and shard sets, exit codes, the page in a browser."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest

from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
from tests.browser import render
from tests.jobs.in_process import Run, load_job, runner
from tests.quality.builders import MM, SLICES, Image, brain, cohort, lesion, session

ROOT = Path(__file__).resolve().parents[2]
SCANS = ROOT.parent / "shared" / "scans"
BRATS = {"FLAIR": "flair", "T1ce": "t1ce", "T1w": "t1", "T2w": "t2"}


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("verify")


@pytest.fixture
def run(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> Run:
    """The job in this process: exit status, stdout, stderr."""
    return runner(job, job.VerifyConfig, capsys)


def findings(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "findings.csv").open()))


def brats_case(root: Path, number: int, *, label: int = 4) -> Path:
    """A BraTS case of small volumes, stored LPS as BraTS is."""
    name = f"BraTS2021_{number:05d}"
    affine = np.array([[-MM, 0, 0, 90], [0, -MM, 0, 90], [0, 0, MM, 0], [0, 0, 0, 1.0]])
    (root / name).mkdir(parents=True)
    for modality, suffix in BRATS.items():
        save(brain(number, modality)[::-1, ::-1], affine, root / name / f"{name}_{suffix}.nii.gz")
    save(lesion(number)[::-1, ::-1] * np.uint8(label), affine, root / name / f"{name}_seg.nii.gz")
    return root / name


def save(data: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(np.ascontiguousarray(data), affine).to_bytes(), 1))


def test_a_folder_on_ray(run: Run, ray_local: int, tmp_path: Path) -> None:
    for number in range(90_001, 90_010):
        brats_case(tmp_path / "brats", number)
    argv = ["--source", tmp_path / "brats", "--cohort", "brats", "--min-slices", SLICES]
    code, text, _ = run(*argv, "--out", tmp_path / "out")
    assert code == 0, text
    assert "36 scans of 9 sessions read: no findings." in text and findings(tmp_path / "out") == []

    case = tmp_path / "brats" / "BraTS2021_90003"
    flair = case / "BraTS2021_90003_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:20_000])  # the header is whole: only reading the voxels shows it
    (tmp_path / "brats" / "BraTS2021_90004" / "BraTS2021_90004_t2.nii.gz").unlink()
    (tmp_path / "brats" / "BraTS2021_90005" / "BraTS2021_90005_seg.nii.gz").unlink()
    brats_case(tmp_path / "brats", 90_020, label=3)
    twin = brats_case(tmp_path / "brats", 90_021)
    affine = np.array([[-MM, 0, 0, 90], [0, -MM, 0, 90], [0, 0, MM, 0], [0, 0, 0, 1.0]])
    copy = brain(90_001, "T1ce")[::-1, ::-1].astype(np.float32)
    save(copy, affine, twin / "BraTS2021_90021_t1ce.nii.gz")
    code, text, _ = run(*argv, "--out", tmp_path / "out")
    assert code == 3
    found = {(f["code"], f["subject"], f["modality"]): f for f in findings(tmp_path / "out")}
    assert set(found) == {
        ("unreadable", "BraTS2021_90003", "FLAIR"),
        ("missing_scan", "BraTS2021_90004", ""),
        ("missing_scan", "BraTS2021_90005", "label"),
        ("label_values", "BraTS2021_90020", "label"),
        ("label_schemes", "", ""),
        ("duplicate_subjects", "BraTS2021_90021", "T1ce"),
    }
    for one in found.values():
        assert one["detail"] and one["fix"]
    for words in ("4 errors, 2 warnings", str(flair), "verify.html"):
        assert words in text.replace("\n", "")
    html = (tmp_path / "out" / "verify.html").read_text()
    assert "BraTS2021_90021" in html and html.count("data:image/png") >= 2


def test_a_manifest_and_its_shard_set(run: Run, ray_local: int, tmp_path: Path) -> None:
    sessions = [session(n) for n in range(9)]
    sessions[8].images["T1w"] = Image(brain(2, "T1w"))
    manifest = cohort(tmp_path / "files", sessions)
    convert(
        manifest, str(tmp_path / "shards"), ConvertSpec(min_slices=SLICES, rows_per_shard=4), executor=inline
    )
    for option, where in (("--manifest", "files/manifest.parquet"), ("--shards", "shards")):
        out = tmp_path / option.strip("-")
        code, text, _ = run(option, tmp_path / where, "--out", out, "--cpus", 2)
        assert code == 3 and "18 scans of 9 sessions read" in text
        (one,) = findings(out)
        assert (one["code"], one["subject"], one["modality"]) == ("duplicate_subjects", "s008", "T1w")
    code, text, _ = run(
        "--manifest", tmp_path / "files/manifest.parquet", "--dry-run", "--out", tmp_path / "no"
    )
    assert code == 0 and "nothing was read" in text and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "nothing to verify"),
        (["--source", "."], 2, "--source without --cohort"),
        (["--manifest", "a", "--shards", "b"], 2, "--manifest and --shards"),
        (["--cohort", "adni", "--source", "."], 2, "adni"),
        (["--manifest", "gone.parquet"], 1, "no such manifest"),
        (["--shards", "gone"], 1, "no shard set here"),
        (["--source", "gone", "--cohort", "bids"], 1, "no such folder"),
    ],
)
def test_what_cannot_be_verified_is_told_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    got, _, err = run(*argv)
    assert got == code and words in err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Fix: " in err
    assert list(tmp_path.iterdir()) == []


def test_help_tells_the_exit_codes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "verify.py", "--help"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "3 at least one error" in words and "--thumbnails" in words and "--min-slices" in words


def test_the_page_in_a_browser(run: Run, ray_local: int, tmp_path: Path) -> None:
    sessions = [session(n) for n in range(9)]
    sessions[1].images["FLAIR"].affine[0, 3] += 3
    sessions[2].images["label"].data = np.roll(sessions[2].images["label"].data, -20, 2)
    sessions[3].images["T1w"] = Image(brain(3).astype(np.float32))
    sessions[3].images["T1w"].data[20:24, 25:30, 20:24] = np.nan
    cohort(tmp_path / "files", sessions)
    code, _, _ = run("--manifest", tmp_path / "files/manifest.parquet", "--out", tmp_path / "out")
    assert code == 3
    shown = render(tmp_path / "out" / "verify.html", tmp_path / "page.png", size=(1200, 1600))
    assert shown.requests == () and shown.width <= 1200
    assert len(shown.images) == 3
    assert all(natural > 50 and width > 100 and height > 30 for natural, _, width, height in shown.images)
    for words in ("grid_mismatch", "label_outside", "not_finite", "s001", "Suspects"):
        assert words in shown.dom
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.skipif(not SCANS.is_dir(), reason="real scans are not on this machine: ../shared/scans")
def test_real_scans(run: Run, ray_local: int, tmp_path: Path) -> None:
    """A BraTS case, its copy under another name with an edited header, and one whose T1w is a whole head."""
    names = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}
    for number in (90_001, 90_002):
        case = tmp_path / "brats" / f"BraTS2021_{number}"
        case.mkdir(parents=True)
        for suffix in names:
            source = SCANS / "tumour" / "TCGA-DU-7294" / f"TCGA-DU-7294_{suffix}.nii.gz"
            target = case / f"BraTS2021_{number}_{suffix}.nii.gz"
            if number == 90_002 and suffix == "t2":
                image = nibabel.Nifti1Image.from_filename(source)
                values = np.asarray(image.dataobj) * np.float32(1.7)
                nibabel.save(nibabel.Nifti1Image(values, image.affine), target)
            elif number == 90_001 or suffix == "seg":
                target.symlink_to(source)
            else:
                image = nibabel.Nifti1Image.from_filename(source)
                values = np.asarray(image.dataobj)[
                    ::-1
                ]  # mirrored and noisy: another person's, for a fingerprint
                noise = np.random.default_rng(len(suffix)).normal(0, 40, values.shape) * (values != 0)
                nibabel.save(nibabel.Nifti1Image((values + noise).astype(np.int16), image.affine), target)
    argv = ["--source", tmp_path / "brats", "--cohort", "brats", "--out", tmp_path / "out", "--cpus", 2]
    code, text, _ = run(*argv)
    assert code == 3, text
    (one,) = findings(tmp_path / "out")
    assert (one["code"], one["subject"], one["modality"]) == ("duplicate_subjects", "BraTS2021_90002", "T2w")
    assert "same image as BraTS2021_90001 T2w" in one["detail"]
