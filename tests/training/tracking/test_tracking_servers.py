"""A real MLflow server killed and brought back, a killed training, runs racing for one new database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brainfoundry.training.tracking import spool
from brainfoundry.training.tracking.tracker import Tracker
from tests.training.tracking.mlflow_view import history, the_run

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


class Server:
    """An MLflow server on loopback that can be killed and started again on the same port and database."""

    def __init__(self, folder: Path, database: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri, self._database, self._folder = f"http://127.0.0.1:{self.port}", database, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self._database]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(900):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
                time.sleep(0.2)
        raise AssertionError("the server did not come up")

    def kill(self) -> None:
        if self._process is not None:
            # The server and its worker are a process group of their own: both go, with no time to tidy up.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator[Server]:
    made = Server(tmp_path, database)
    yield made
    made.kill()


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1800):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("three minutes have gone by")


def test_a_server_killed_and_brought_back(
    server: Server, make_tracker: Callable[..., Tracker], database: str, tmp_path: Path
) -> None:
    server.start()
    tracker = make_tracker(server.uri)
    step = 0

    def train(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            step += 1
            tracker.metrics(step, {"train/total": 1.0 / step, "train/lr": float(step)})
            time.sleep(0.002)

    train(300)
    wait_until(lambda: tracker._delivery.accepted > 0)
    train(100)
    server.kill()  # perhaps in the middle of a request, perhaps between carrying it out and answering
    train(400)
    wait_until(lambda: tracker._delivery.problem is not None)
    tracker.artifact_bytes(b"drawn meanwhile", "note.txt", "notes")
    server.start()
    train(100)
    assert tracker.close("FINISHED", timeout_s=150)
    assert step == 900
    assert history(database, "train/total") == [(s, 1.0 / s) for s in range(1, step + 1)]
    assert history(database, "train/lr") == [(s, float(s)) for s in range(1, step + 1)]
    run = the_run(database)
    assert run.info.status == "FINISHED"
    assert f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in tracker.where()
    kept = {p.name: p.read_text() for p in (tmp_path / "artifacts").rglob("*.txt")}
    assert kept == {"note.txt": "drawn meanwhile"}


TRAINING = textwrap.dedent(
    """
    import sys, time
    from brainfoundry.training.tracking.tracker import Tracker
    run_dir, uri, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tracker = Tracker(run_dir=run_dir, uri=uri, experiment="test", run_name="demo", run_key="k", tags={},
                      params={"size": "nano"}, every_s=0.2)
    for step in range(first, 10**9):
        tracker.metrics(step, {"train/total": step + first / 1000})
        time.sleep(0.005)
    """
)


def start_training(run_dir: str, uri: str, first: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRAINING, run_dir, uri, str(first)], cwd="/")


def sync(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "sync_tracking.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")


def last_step(run_dir: str) -> int:
    rows = spool.read_history(run_dir)
    return int(rows[-1]["step"]) if rows else 0


def test_a_killed_training_is_delivered_by_the_job(database: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    first = start_training(run_dir, database, 1)
    # Killed with part of it delivered: the marker exists, and more has been spooled since.
    marker = tmp_path / "run" / "spool" / "delivered.json"
    wait_until(lambda: marker.exists() and '"events"' in marker.read_text() and last_step(run_dir) > 200)
    first.kill()
    first.wait()
    end_1 = last_step(run_dir)
    # A second process resumes from step 100, against a server that is away, and is killed too.
    second = start_training(run_dir, "http://127.0.0.1:9", 101)
    wait_until(lambda: last_step(run_dir) > end_1 + 100)
    second.kill()
    second.wait()
    end_2 = last_step(run_dir)

    done = sync("--uri", database, "--end-status", "KILLED", run_dir)
    assert done.returncode == 0, done.stderr
    assert "nothing left" in done.stdout
    assert history(database, "train/total") == [
        *((s, s + 1 / 1000) for s in range(1, end_1 + 1)),
        *((s, s + 101 / 1000) for s in range(end_1 + 1, end_2 + 1)),
    ]
    assert the_run(database).info.status == "KILLED"

    again = sync("--uri", database, run_dir, str(tmp_path / "no-run"))
    assert again.returncode == 1
    assert f"{run_dir}: 0 metrics sent" in again.stdout
    assert again.stderr.splitlines()[-1].startswith("error: not a run folder")
    assert "Traceback" not in again.stderr
    away = sync("--timeout-s", "1", "--uri", "http://127.0.0.1:9", run_dir)
    assert away.returncode == 1
    [line] = [row for row in away.stderr.splitlines() if row.startswith("error:")]
    assert "Connection refused" in line and "nothing is lost" in line


def test_processes_that_race_for_a_new_database(tmp_path: Path) -> None:
    """Nobody has made the tables or the experiment yet; three runs start at once."""
    uri = f"sqlite:///{tmp_path}/home/mlflow.db"
    code = TRAINING.replace("10**9", "first + 20") + 'sys.exit(0 if tracker.close("FINISHED", 150) else 3)\n'
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"run{i}"), uri, "1"], cwd="/")
        for i in range(3)
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0, 0]
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["mlflow.db"]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    assert experiment.artifact_location == f"file://{tmp_path}/home/mlartifacts"
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 3
    for run in found:
        points = client.get_metric_history(run.info.run_id, "train/total")
        assert sorted(p.step for p in points) == list(range(1, 21))
