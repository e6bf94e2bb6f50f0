"""`jobs/prepare_ukb.py` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.store.reader import ShardSet
from tests.store.builders import brain, nifti, put

JOB = Path(__file__).parents[2] / "jobs" / "prepare_ukb.py"


def run(*options: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, JOB, *map(str, options)], capture_output=True, text=True, timeout=500, env=env
    )


def cohort(folder: Path) -> Path:
    for eid in range(9_900_001, 9_900_005):
        put(folder, eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 9))})
    put(folder, 9_900_005, {"T1w": nifti(brain(1))})
    put(folder, 9_900_006, {"T1w": nifti(brain(1)), "FLAIR": nifti(brain(1) * np.float32(np.nan))})
    return folder


def test_help_and_dry_run(tmp_path: Path) -> None:
    assert os.access(JOB, os.X_OK) and JOB.read_text().startswith("#!/usr/bin/env python\n")
    assert len(JOB.read_text().splitlines()) <= 100
    shown = run("--help").stdout
    for text in ("--slice-rule", "--float-mode", "--spacing-mm", "1,896 of 41,400", "131,070"):
        assert text in shown
    source = cohort(tmp_path / "ukb")
    done = run("--source", source, "--out", tmp_path / "out", "--min-slices", 10, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "excluded: a requested modality is missing" in done.stdout
    assert (
        "5 sessions" in done.stdout and "MB of shards" in done.stdout and "nothing was written" in done.stdout
    )
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for options, words, code in (
        (("--source", tmp_path / "none"), "error: no such folder", 1),
        (("--source", tmp_path / "empty"), "error: no UK Biobank scan of instance 2 found", 1),
        (("--sauce", "x"), "error: unknown option --sauce. Fix: did you mean --source?", 2),
        (("--source", tmp_path / "empty", "--modalities", "T9"), "error: unknown modality 'T9'", 2),
    ):
        done = run(*options, "--out", tmp_path / "out")
        assert done.returncode == code and done.stderr.startswith(words), done.stderr
        assert done.stderr.count("\n") == 1 and "Fix: " in done.stderr


@pytest.mark.slow
def test_it_converts_and_can_be_repeated(tmp_path: Path, ray_env: dict[str, str]) -> None:
    source, out = cohort(tmp_path / "ukb"), tmp_path / "out"
    options = (
        "--source",
        source,
        "--out",
        out,
        "--min-slices",
        10,
        "--rows-per-shard",
        2,
        "--cpus",
        2,
        "--n-val",
        1,
    )
    done = run(*options, env=ray_env)
    assert done.returncode == 0, done.stderr
    assert (
        "4 sessions in 3 shards" in done.stdout and "excluded: voxels that are NaN or infinite" in done.stdout
    )
    shards = ShardSet.open(str(out))
    assert shards.verify() == [] and sorted(shards.index["split"].to_pylist()) == ["train"] * 3 + ["val"]
    assert {p.name for p in out.iterdir()} >= {
        "exclusions.md", "exclusions.json", "exclusions_intake.md", "intake.parquet", "report.json",
    }  # fmt: skip
    again = run(*options, env=ray_env)
    assert again.returncode == 0 and "4 sessions in 3 shards" in again.stdout
    other = run(*options, "--spacing-mm", 2, env=ray_env)
    assert other.returncode == 1 and "error: folder holds a shard set of another spec" in other.stderr
