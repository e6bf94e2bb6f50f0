"""A study from its command line to its records: what is refused and planned, and kills without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from brainfoundry.core.job import run_job
from brainfoundry.experiments.demo import demo_cohorts, is_demo
from brainfoundry.experiments.records import read_records
from brainfoundry.experiments.spec import load_study
from brainfoundry.experiments.study_job import StudyConfig, study_job
from brainfoundry.training.checkpoint import list_steps
from tests.cluster.job_cluster import JobCluster, local_state
from tests.experiments.driven import content

JOB = Path(__file__).resolve().parents[2] / "jobs" / "study.py"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_job(
                StudyConfig, study_job, description="",
                argv=[str(a) for a in argv],
            )  # fmt: skip
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "mini.yaml"
    file.write_text(yaml.safe_dump(content(**changes)))
    return file


def test_a_dry_run_tells_the_cost_and_starts_nothing(labelled_shards: str, tmp_path: Path, run: Run) -> None:
    file = write(tmp_path, presets={"more": {"grid": [{**content()["grid"][0], "seed": [0, 1, 2]}]}})
    storage = tmp_path / "studies"
    options = ("--cohorts", f"tiny={labelled_shards}", "--storage", storage, "--devices", "1,4", "--dry-run")
    status, out, _ = run(file, *options)
    assert status == 0 and "A study in miniature" in out and "nothing was started" in out
    assert "on 1 A100(s)" in out and "on 4 A100(s)" in out and not storage.exists()
    status, out, _ = run(file, *options, "--only", "init=scratch")
    assert status == 0 and "ancestors" not in out
    both = content()["grid"][0] | {"init": ["scratch"], "seed": [1]}
    apart = write(tmp_path, grid=[content()["grid"][0], both])
    status, _, err = run(apart, *options, "--only", "init=stage2", "seed=1")
    assert status == 2 and "no trial of study mini has all of --only init=stage2 seed=1" in err
    file = write(tmp_path, presets={"more": {"grid": [{**content()["grid"][0], "seed": [0, 1, 2]}]}})
    status, out, _ = run(file, *options, "--preset", "more", "--only", "seed=0,2")  # the commas are not lost
    assert status == 0 and "study mini-more in" in out and "seed 2" in out and "seed 1 " not in out


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("tabel9",), 2, "unknown study 'tabel9'. Fix: did you mean table9"),
        (("table9", "--preset", "papre"), 2, "no preset 'papre'"),
        (("table9",), 2, "study table9 needs cohort"),
        (("table9", "--cohorts", "brats"), 2, "--cohorts 'brats' is not NAME=VALUE"),
        (("table4", "--weights", "CT=a.pt"), 2, "starts from weights 'CT'. Fix: name ct"),
        (("table9", "--weights", "ct=a.pt"), 2, "starts from weights 'ct'. Fix: name stage1"),
        (("table4", "--weights", "ct=/no/a.pt"), 1, "there are no such weights [file /no/a.pt]"),
        (("table9", "--cohorts", "a=1", "a=2"), 2, "--cohorts 'a=2' is not NAME=VALUE. Fix: name each once"),
        (("table9", "--cohorts", "brats=/no/where"), 1, "/no/where"),
        (("--dry-run",), 1, "the demo cohorts are not made yet"),
        (("table9", "--retries", "-1"), 2, "--retries -1. Fix: give 0 or more"),
        (("--retrys", "3"), 2, "unknown option --retrys. Fix: did you mean --retries?"),
    ],
)
def test_bad_input_is_one_line(run: Run, argv: tuple[str, ...], status: int, message: str) -> None:
    got, _, err = run(*argv)
    assert got == status and message in err and len(err.splitlines()) == 1


def test_an_unknown_value_of_an_axis(labelled_shards: str, tmp_path: Path, run: Run) -> None:
    named = ("--cohorts", f"tiny={labelled_shards}", "--dry-run")
    status, _, err = run(write(tmp_path), *named, "--only", "init=stage3")
    assert status == 2 and "no trial of the study has init 'stage3'" in err
    status, _, err = run(write(tmp_path, grid=[{"size": "nana"}]), *named)
    assert status == 2 and "unknown size 'nana'" in err and "did you mean nano" in err


def test_a_file_of_ones_own_is_never_run_on_demo_cohorts(tmp_path: Path, run: Run) -> None:
    """They would be other people under the names of one's own: a control that is none, say."""
    status, _, err = run(write(tmp_path), "--dry-run")
    assert status == 2 and "needs cohort tiny; named are: none" in err


def test_studies_with_demo_cohorts_of_their_own() -> None:
    for name in ("demo", "tune_model_size", "tune_few_shot"):
        assert is_demo(load_study(name)), name
    for name in ("tune_model_size", "tune_few_shot"):
        assert not is_demo(load_study(name, "paper")), name
    assert not is_demo(load_study("table9"))


def test_the_demo_cohort_of_studies_is_a_copy_with_a_split(
    labelled_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainfoundry.cohorts.splits import SplitSpec
    from brainfoundry.experiments import demo
    from brainfoundry.experiments.cohort import cohort_info
    from brainfoundry.store.reader import ShardSet

    before = ShardSet.open(labelled_shards).meta.manifest_hash
    monkeypatch.setitem(demo._LABELLED, "brats", lambda folder: labelled_shards)
    monkeypatch.setattr(demo, "SPLIT", SplitSpec(test=2, val=2, folds=2))
    monkeypatch.setattr(demo, "ensure_demo_shards", lambda folder, make: "healthy")
    made = demo_cohorts(load_study("tune_few_shot"), tmp_path)
    assert made["ukb"] == "healthy" and made["brats"] == str(tmp_path / "study-brats-shards")
    info = cohort_info(ShardSet.open(made["brats"]))
    assert info.has_split("test") and info.has_split("val") and info.folds == (0, 1)
    info.check_share(50, 4)
    assert ShardSet.open(labelled_shards).meta.manifest_hash == before
    assert demo_cohorts(load_study("tune_few_shot"), tmp_path, make=False) == made


# --- over Ray


class Study:
    """A miniature study on the job cluster, in a folder of its own."""

    def __init__(self, cluster: JobCluster, shards: str, folder: Path) -> None:
        self.folder = folder / "studies" / "mini"
        self.cluster = cluster
        self.command = [
            sys.executable, str(JOB), str(write(folder)), "--cohorts", f"tiny={shards}",
            "--storage", str(folder / "studies"),
        ]  # fmt: skip

    def submit(self) -> subprocess.CompletedProcess[str]:
        done = self.cluster.run(self.command, timeout=800)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def kill_when(self, due: Callable[[], bool], log: Path) -> None:
        """Submit, and SIGKILL the driver once it is due."""
        with log.open("w") as out:
            driver = subprocess.Popen(
                self.command,
                env=self.cluster.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 400
        while not due() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
        assert driver.wait(timeout=60) == -signal.SIGKILL, log.read_text()[-3000:]

    def steps(self, prefix: str) -> int:
        """Newest checkpoint of a run."""
        found = [0]
        for run_dir in (self.folder / "runs").glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                found += list_steps(str(run_dir / "checkpoints"))
        return max(found)

    def table(self) -> dict[str, dict[str, Any]]:
        """All that a report would make of it, but for times and where it ran."""
        rows: dict[str, dict[str, Any]] = {}
        for name, record in read_records(str(self.folder)).items():
            files = {
                what: pq.read_table(self.folder / str(path)).to_pydict()
                for what, path in (("scores", record.scores), ("losses", record.losses))
                if path
            }
            rows[name] = {
                "state": record.state, "metrics": dict(record.metrics), "validation": dict(record.validation),
                "steps": record.steps, "checkpoint": str(record.checkpoint).rpartition("/")[2],
                "chosen_on": record.chosen_on, "test": record.test, **files,
            }  # fmt: skip
        return rows


def leftovers(cluster: JobCluster) -> list[str]:
    """Trials and workers of jobs that have ended."""
    found = []
    for process in local_state.members(cluster.state):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if line.startswith(("ray::RayTrainWorker", "ray::Trial", "ray::TrainController")):
                found.append(line)
    return found


@pytest.fixture(scope="module")
def uninterrupted(
    job_cluster: JobCluster, labelled_shards: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Study, str]:
    study = Study(job_cluster, labelled_shards, tmp_path_factory.mktemp("straight"))
    return study, study.submit().stdout


@pytest.mark.slow
def test_a_study_runs_to_its_end(uninterrupted: tuple[Study, str]) -> None:
    study, out = uninterrupted
    table = study.table()
    assert {name.rpartition("-")[0] for name in table} == {"stage2-nano", "ft-nano-scratch", "ft-nano-stage2"}
    assert all(row["state"] == "finished" and row["steps"] == 6 for row in table.values())
    trials = {name: row for name, row in table.items() if name.startswith("ft-")}
    for row in trials.values():
        assert row["test"]["subjects"] == 1 and 0 <= row["metrics"]["dice_wt"] <= 1
        assert row["scores"]["subject"] == ["BraTS2021_00009"] and row["chosen_on"] == "val"
        assert {"train/total", "val/dice_mean"} <= set(row["losses"]["name"])
    assert "[3/3]" in out and f"jobs/report_study.py {study.folder}" in out and "3 to do" in out
    # The tracking server has the trials below the study, under the names that all share.
    from mlflow.tracking import MlflowClient

    client = MlflowClient(study.cluster.mlflow_uri)
    records = read_records(str(study.folder))
    parents = set()
    for name, row in trials.items():
        found = client.get_run(str(records[name].mlflow_run))
        parents.add(found.data.tags["mlflow.parentRunId"])
        assert (
            found.data.metrics["dice_wt"] == row["metrics"]["dice_wt"] and "crops_per_s" in found.data.metrics
        )
    (parent,) = parents
    assert client.get_run(parent).info.status == "FINISHED"
    # Submitted once more, there is nothing to do, and nothing is done.
    before = {p: p.stat().st_mtime_ns for p in (study.folder / "records").iterdir()}
    assert "0 to do" in study.submit().stdout
    assert {p: p.stat().st_mtime_ns for p in (study.folder / "records").iterdir()} == before


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_table(
    uninterrupted: tuple[Study, str],
    job_cluster: JobCluster,
    labelled_shards: str,
    tmp_path: Path,
) -> None:
    straight, _ = uninterrupted
    study = Study(job_cluster, labelled_shards, tmp_path)
    seed = time.time_ns() % 10_000
    dice = random.Random(seed)
    print(f"kills of seed {seed}")  # shown where the test fails

    # Somewhere in the first wave, and somewhere in the second: in training, in evaluation, or between.
    first = dice.randint(1, 5)
    study.kill_when(lambda: study.steps("stage2-nano") >= first, tmp_path / "first.log")
    killed_at = study.steps("stage2-nano")
    second, wait = dice.randint(0, 6), dice.uniform(0, 5)

    def later() -> bool:
        if study.steps("ft-nano-stage2") < second:
            return False
        time.sleep(wait)
        return True

    study.kill_when(later, tmp_path / "second.log")
    before = read_records(str(study.folder))
    out = study.submit().stdout
    assert study.table() == straight.table()
    # What was done stayed as it was, and what was begun went on.
    after = read_records(str(study.folder))
    assert {name: after[name] for name in before} == before
    stage2 = next(r for n, r in after.items() if n.startswith("stage2-nano"))
    assert stage2.attempts >= 2 or killed_at == 6
    assert f"{3 - len(before)} to do" in out

    deadline = time.monotonic() + 60
    while leftovers(job_cluster) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not leftovers(job_cluster)
    assert json.loads(_placement_groups(job_cluster)) == []


def _placement_groups(cluster: JobCluster) -> str:
    """Placement groups of the cluster that are not gone, as JSON."""
    code = (
        "import json, ray; ray.init(log_to_driver=False); from ray.util import placement_group_table as t; "
        "print(json.dumps([g['state'] for g in t().values() if g['state'] != 'REMOVED']))"
    )
    return cluster.run([sys.executable, "-c", code]).stdout.strip().splitlines()[-1]
