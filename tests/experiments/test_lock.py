"""One driver a study: who may drive, and who takes over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brainfoundry.core.errors import ClusterError
from brainfoundry.experiments.lock import StudyLock, driving
from brainfoundry.experiments.records import StudyFolder
from tests.experiments.trained import study_folder


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    with (
        driving(study),
        pytest.raises(ClusterError, match=f"is being run by process {os.getpid()} on .*another name"),
        driving(study),
    ):
        pass
    with driving(study) as check:  # given back
        check()


def test_a_dead_driver_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    dead = subprocess.run(
        [sys.executable, "-c", "import psutil; p = psutil.Process(); print(p.pid, p.create_time())"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    leave_lock(study, host=os.uname().nodename, pid=int(dead[0]), started=float(dead[1]), at=time.time())
    with driving(study) as check:
        check()


def test_a_silent_driver_of_another_machine_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_folder(tmp_path)
    leave_lock(study, host="elsewhere", pid=1, started=0.0, at=time.time())
    with driving(study, stale_s=0.5):
        pass
    assert "waiting to see whether it lives" in capsys.readouterr().out


def test_a_driver_of_another_machine_that_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_folder(tmp_path)
    leave_lock(study, host="elsewhere", pid=1, started=0.0, at=time.time())
    beats = iter(range(100))
    monkeypatch.setattr(
        "brainfoundry.experiments.lock.time.sleep",
        lambda _: leave_lock(study, host="elsewhere", pid=1, started=0.0, at=time.time() + next(beats)),
    )
    with pytest.raises(ClusterError, match="is being run by process 1 on elsewhere"), driving(study):
        pass


def test_a_driver_that_was_taken_over_hears_of_it(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    with driving(study, stale_s=0.6) as check:
        leave_lock(study, host="elsewhere", pid=1, started=0.0, at=time.time())
        deadline = time.monotonic() + 30
        with pytest.raises(ClusterError, match="took study s over"):
            while time.monotonic() < deadline:
                check()
                time.sleep(0.02)
    assert StudyLock(study).owner()[0] == "elsewhere", "the other's lock was given back"


def leave_lock(study: StudyFolder, *, host: str, pid: int, started: float, at: float) -> None:
    folder = Path(study.uri)
    folder.mkdir(parents=True, exist_ok=True)
    owner = {"token": "t", "host": host, "pid": pid, "started": started, "time": at}
    (folder / "lock").write_text(json.dumps(owner))
