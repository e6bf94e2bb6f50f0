"""Every shell script and the Makefile, without running what they do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for folder in (ROOT / "cluster", ROOT / ".ci", ROOT / "tests" / "cluster")
    for path in folder.rglob("*")
    if path.is_file()
    and "__pycache__" not in path.parts
    and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)
SOURCED = [ROOT / "cluster" / "local" / "env"]


def test_the_scripts_are_found() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"up", "down", "demo.sh", "install.sh", "run", "pretrain_ukb.sbatch"} <= names


@pytest.mark.parametrize("script", [*SCRIPTS, *SOURCED], ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_stops_at_the_first_failure(script: Path) -> None:
    assert re.search(r"^set -euo pipefail$", script.read_text(), re.MULTILINE)
    assert os.access(script, os.X_OK), "chmod +x"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", "--severity=warning", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_makefile_has_every_target() -> None:
    names = "install demo test test-slow test-torch-min lint bench cluster cluster-down mlflow clean"
    for target in names.split():
        # -o: install counts as done, so that this shows recipes and never runs pip.
        done = subprocess.run(
            ["make", "--dry-run", "-o", ".venv/.installed", "-o", ".venv-torch-min/.installed", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_ci_calls_what_a_developer_calls() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^step make (\S+)$", text, re.MULTILINE) == ["install", "lint", "test", "test-slow"]


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_an_old_python_is_told(python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "cluster" / "install.sh", tmp_path / "venv", ROOT / "requirements.lock"],
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error: Python 3.11 or newer is needed" in done.stderr and "Fix: " in done.stderr
    assert not (tmp_path / "venv").exists()


def test_env_without_a_cluster_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"source {ROOT}/cluster/local/env"],
        env={**os.environ, "BRAINFOUNDRY_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "no local cluster is up" in done.stderr and "Fix: run cluster/local/up" in done.stderr
