"""jobs/predict.py as a user runs it: exit codes, dry run, refusals; killed half-way and run again."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from brainfoundry.training import checkpoint
from tests.cohorts.layouts import needs_real_scans
from tests.jobs.in_process import Run, load_job, runner
from tests.prediction.builders import ATLAS_TASK, BRATS, brain, card, put, put_case, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCANS = ROOT.parent / "shared" / "scans"
JOB = ROOT / "jobs" / "predict.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    return load_job("predict")


@pytest.fixture
def run(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> Run:
    """The job in this process: exit status, stdout, stderr."""
    return runner(job, job.PredictConfig, capsys)


@pytest.fixture(scope="module")
def brats_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a BraTS network."""
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder)
    return folder


def test_a_folder_to_masks_and_again(run: Run, brats_run: Path, tmp_path: Path, ray_local: int) -> None:
    for number in range(3):
        put_case(tmp_path / "in", f"p{number}", seed=number)
    (tmp_path / "in/p1/p1_t2.nii.gz").unlink()
    argv = ["--checkpoint", brats_run, "--input", tmp_path / "in", "--out", tmp_path / "out", "--workers", 4]
    code, text, _ = run(*argv)
    assert code == 3, text
    for words in (
        "folder, 3 cases", "run small, step 10", "predicting 3 cases on", "3 workers, 1 CPU each",
        "failed: no T2w: the network wants FLAIR, T1ce, T1w, T2w, there is FLAIR, T1ce, T1w [subject p1]",
        "predictions.jsonl",
    ):  # fmt: skip
        assert words in text, words
    assert len(list((tmp_path / "out").rglob("*_dseg.nii.gz"))) == 2

    put(tmp_path / "in/p1/p1_t2.nii.gz", brain(13))
    code, text, _ = run(*argv)
    assert code == 0, text
    assert "predicting 1 cases on" in text and len(list((tmp_path / "out").rglob("*_dseg.nii.gz"))) == 3
    code, text, _ = run(*argv)
    assert code == 0 and "predicting" not in text
    code, _, err = run(*argv, "--overlap", 0.25)
    assert code == 2 and "overlap was 0.5 and is 0.25" in err and err.count("\n") == 1


def test_dry_run_writes_nothing(run: Run, brats_run: Path, tmp_path: Path) -> None:
    for number in range(2):
        put_case(tmp_path / "in", f"p{number}", seed=number)
    (tmp_path / "in/p1/p1_flair.nii.gz").unlink()
    (tmp_path / "in/p1/p1_seg.nii.gz").write_bytes(b"")
    code, text, _ = run(
        "--checkpoint", brats_run, "--input", tmp_path / "in", "--out", tmp_path / "out", "--dry-run"
    )
    assert code == 0
    for words in (
        "1 image files have no name of a known modality",
        "p0: 40x44x36 voxels, 4 windows",
        "failed: no FLAIR",
        "1 of 2 cases have what the network wants",
        "about 4 windows a case",
        "dry run: nothing was predicted",
    ):
        assert words in text, words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--input", "in"], 2, "no checkpoint was named"),
        (["--checkpoint", "gone", "--input", "in"], 1, "no whole checkpoint here"),
        (["--checkpoint", "RUN"], 2, "no input was named"),
        (["--checkpoint", "RUN", "--input", "gone"], 1, "no such folder"),
        (["--checkpoint", "RUN", "--input", "in", "--overlap", "1"], 2, "--overlap is 1.0"),
        (["--checkpoint", "RUN", "--input", "in", "--threshold", "-1"], 2, "--threshold is -1.0"),
        (["--checkpoint", "RUN", "--input", "in", "--batch", "0"], 2, "--batch is 0"),
        (["--checkpoint", "RUN", "--input", "in", "--window", "64", "30", "32"], 2, "multiple of 32"),
        (["--checkpoint", "RUN", "--input", "in", "--window", "32", "32", "32"], 2, "needs 2"),
        (["--checkpoint", "RUN", "--input", "in/p1_flair.nii.gz"], 2, "input is a single file"),
        (["--checkpoint", "RUN", "--input", "in", "--allow", "everything"], 2, "everything"),
        (["--checkpoint", "RUN", "--input", "in", "--assume-orientation", "RAR"], 2, "'RAR'"),
        (["--checkpoint", "RUN", "--input", "in", "--preprocess", "bet {input}"], 2, "{output}"),
        (["--checkpoint", "RUN", "--input", "in", "--preprocess-timeout-s", "0"], 2, "timeout-s is 0.0"),
        (["--checkpoint", "RUN", "--input", "in", "--out", "in"], 2, "the folder holds other files"),
        (["--checkpoint", "RUN", "--input", "twins"], 1, "would both be written as sub-p1"),
        (["--checkpoint", "RUN", "pre", "--input", "in"], 1, "stage pretrain-1, which has learnt no masks"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    run: Run,
    brats_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in" / "p1_flair.nii.gz", brain(1))
    for twin in ("p_1", "p-1"):
        put(tmp_path / "twins" / f"{twin}_flair.nii.gz", brain(1))
    checkpoint.save(str(tmp_path / "pre" / "checkpoints"), card(stage="pretrain-1", task={}), {}, {})
    out = [] if "--out" in argv else ["--out", "out"]
    got, _, err = run(*(str(brats_run) if a == "RUN" else a for a in argv), *out)
    assert got == code and words in err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Fix: " in err
    assert not (tmp_path / "out").exists()


def test_help_explains_the_options() -> None:
    done = subprocess.run([sys.executable, JOB, "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    for part in (
        "3 some could not be predicted",
        "--save-probabilities",
        "--preprocess",
        "released validation: 0.5",
    ):
        assert part in words, part


@pytest.mark.slow
def test_killed_half_way_and_run_again(brats_run: Path, tmp_path: Path, ray_env: dict[str, str]) -> None:
    cases = 12
    for number in range(cases):
        put_case(tmp_path / "in", f"p{number:02d}", seed=number)
    out = tmp_path / "out"
    command = [
        sys.executable,
        JOB,
        "--checkpoint",
        brats_run,
        "--input",
        tmp_path / "in",
        "--out",
        out,
        "--cpus",
        "1",
    ]
    marks: list[Path] = []
    process = subprocess.Popen(
        [str(c) for c in command], env=ray_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(marks) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.02)
        marks = list(out.rglob("*_dseg.json"))
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for one in family:  # its private Ray, which would go by itself, but later
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, timeout=60)
    before = {mark: (mark.read_bytes(), mark.stat().st_mtime_ns) for mark in out.rglob("*_dseg.json")}
    assert 2 <= len(before) < cases, "killed too late"
    for mark, (data, _) in before.items():  # what has its mark is whole
        assert all((out / name).is_file() for name in json.loads(data)["files"]), mark

    done = subprocess.run([str(c) for c in command], env=ray_env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == {mark: (mark.read_bytes(), mark.stat().st_mtime_ns) for mark in before}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["predicted"] * cases
    assert f"predicting {cases - len(before)} cases" in done.stdout
    assert len(list(out.rglob("*_dseg.nii.gz"))) == cases and not list(out.rglob("*.tmp"))


@needs_real_scans
def test_real_scans_are_checked(run: Run, tmp_path: Path) -> None:
    """A tumour in BraTS' space, a whole head, and a brain in MNI space, for networks of stripped brains."""
    case = tmp_path / "brats" / "BraTS2021_90001"
    case.mkdir(parents=True)
    for kind in ("t1", "t1ce", "t2", "flair"):
        (case / f"{case.name}_{kind}.nii.gz").symlink_to(
            SCANS / f"tumour/TCGA-DU-7294/TCGA-DU-7294_{kind}.nii.gz"
        )
    save_checkpoint(
        tmp_path / "sri", space="SRI24", skull_stripped=True, modalities=BRATS, crop=(128, 128, 128)
    )
    argv = ["--out", tmp_path / "out", "--dry-run"]
    code, text, _ = run("--checkpoint", tmp_path / "sri", "--input", tmp_path / "brats", *argv)
    assert code == 0 and "BraTS2021_90001: 240x240x155 voxels, 8 windows" in text and "failed" not in text
    assert "no template of SRI24 is at hand" in text

    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "ixi_T1w.nii.gz").symlink_to(SCANS / "healthy/IXI012-HH-1211_T1w.nii.gz")
    (heads / "mni_T1w.nii.gz").symlink_to(SCANS / "template/MNI152_2009_T1w_brain.nii.gz")
    save_checkpoint(
        tmp_path / "mni", space="MNI152", skull_stripped=True, modalities=("T1w",), task=ATLAS_TASK
    )
    code, text, _ = run("--checkpoint", tmp_path / "mni", "--input", heads, *argv)
    assert code == 0
    assert "[subject ixi; file " in text and "more than a brain" in text and "--allow skull" in text
    assert "mni: " in text and text.count("failed: ") == 1
