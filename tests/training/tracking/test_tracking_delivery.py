"""Every metric arrives once: through resumes, lost notes and answers, refusals, servers that are away."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.training.tracking import spool
from brainfoundry.training.tracking.delivery import Delivery, deliver
from brainfoundry.training.tracking.lock import LockHeld
from brainfoundry.training.tracking.tracker import clean_key
from tests.training.tracking.mlflow_view import history, the_run
from tests.training.tracking.steps import MakeTracker, log_steps, wait_until, write_session


def test_a_run_arrives_whole(make_tracker: MakeTracker, database: str, tmp_path: Path) -> None:
    tracker = make_tracker(database, params={"size": "nano", "long": "x" * 9000})
    log_steps(tracker, range(1, 2501))
    (tmp_path / "config.yaml").write_text("steps: 2500\n")
    tracker.artifact(tmp_path / "config.yaml", "config")
    (tmp_path / "config.yaml").write_text("changed afterwards\n")
    tracker.artifact_bytes(b"\x89PNG", "loss.png", "figures/late")
    assert tracker.close("FINISHED", timeout_s=60)
    assert history(database, "train/total") == [(s, float(s)) for s in range(1, 2501)]
    assert history(database, "train/lr") == [(s, 1e-3 / s) for s in range(1, 2501)]
    run = the_run(database)
    assert run.info.run_id == tracker.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert run.data.tags["stage"] == "pretrain"
    assert run.data.params == {"size": "nano", "long": "x" * 500}
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/mlflow/mlartifacts")
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (kept / "config" / "config.yaml").read_text() == "steps: 2500\n"
    assert (kept / "figures" / "late" / "loss.png").read_bytes() == b"\x89PNG"
    assert "mlflow ui --backend-store-uri " + database in tracker.where()
    assert [row["train/total"] for row in tracker.history()] == [float(s) for s in range(1, 2501)]


def test_a_resume_continues_the_run_and_steps_count_once(make_tracker: MakeTracker, database: str) -> None:
    first = make_tracker(database)
    log_steps(first, range(1, 31))
    assert first.close("FAILED", timeout_s=60)
    assert the_run(database).info.status == "FAILED"
    second = make_tracker(
        database, tags={"stage": "pretrain", "host": "b"}, params={"size": "nano", "steps": 60}
    )
    log_steps(second, range(21, 51), offset=0.5)  # from the checkpoint of step 20
    assert second.close("FINISHED", timeout_s=60)
    assert second.run_id == first.run_id
    expected = [(s, float(s)) for s in range(1, 31)] + [(s, s + 0.5) for s in range(31, 51)]
    assert history(database, "train/total") == expected
    run = the_run(database)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "40"
    assert run.data.tags["params_changed"] == "steps: 40 -> 60"
    assert run.data.tags["host"] == "b"


def test_a_resume_delivers_what_was_left_behind_first(
    make_tracker: MakeTracker, database: str, tmp_path: Path
) -> None:
    write_session(str(tmp_path / "run"), range(1, 31), ended="KILLED")
    tracker = make_tracker(database)
    log_steps(tracker, range(21, 41), offset=0.5)
    assert tracker.close("FINISHED", timeout_s=60)
    expected = [(s, float(s)) for s in range(1, 31)] + [(s, s + 0.5) for s in range(31, 41)]
    assert history(database, "train/total") == expected
    assert the_run(database).info.status == "FINISHED"


@pytest.mark.parametrize("lost", ["all of it", "the positions"])
def test_notes_lost_between_answer_and_marker(database: str, tmp_path: Path, lost: str) -> None:
    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 31))
    marker = tmp_path / "run" / "spool" / "delivered.json"
    done = deliver(run_dir, database, timeout_s=60)
    assert done.accepted == 30
    if lost == "all of it":
        marker.unlink()
    else:
        marker.write_text(f'{{"{database}": {{"run_id": "{done.run_id}"}}}}')
    write_session(run_dir, range(25, 36), offset=0.25)
    again = deliver(run_dir, database, timeout_s=60)
    assert (again.run_id, again.accepted) == (done.run_id, 5)
    expected = [(s, float(s)) for s in range(1, 31)] + [(s, s + 0.25) for s in range(31, 36)]
    assert history(database, "train/total") == expected
    assert deliver(run_dir, database, timeout_s=60).accepted == 0


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_request_without_an_answer(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    """The server may have done what it never answered: it is asked before anything is sent again."""
    from mlflow.tracking import MlflowClient

    real = MlflowClient.log_batch
    sent: list[list[int]] = []

    def unanswered(self: Any, run_id: str, metrics: Any = (), **more: Any) -> None:
        sent.append([m.step for m in metrics])
        broken = len([s for s in sent if s]) == 2 and bool(metrics)
        if not broken or carried_out:
            real(self, run_id, metrics=metrics, **more)
        if broken:
            raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(MlflowClient, "log_batch", unanswered)
    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 2501))
    delivery = Delivery(run_dir, database)
    with pytest.raises(ConnectionResetError):
        delivery.attempt()
    assert delivery.problem == "the answer was lost"
    assert delivery.attempt()
    delivery.close()
    again = [] if carried_out else list(range(1001, 2001))
    steps = [s for s in sent if s]
    assert steps[2:] == ([again] if again else []) + [list(range(2001, 2501))]
    assert history(database, "train/total") == [(s, float(s)) for s in range(1, 2501)]


def test_a_creation_without_an_answer_makes_no_second_run(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    real = MlflowClient.create_run

    def unanswered(self: Any, *args: Any, **more: Any) -> Any:
        real(self, *args, **more)
        monkeypatch.setattr(MlflowClient, "create_run", real)
        raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(MlflowClient, "create_run", unanswered)
    write_session(str(tmp_path / "run"), range(1, 4))
    done = deliver(str(tmp_path / "run"), database, timeout_s=60, pause_s=0.01)
    assert done.run_id == the_run(database).info.run_id
    assert history(database, "train/total") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_what_is_refused_for_good_stops_nothing(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
    from mlflow.tracking import MlflowClient

    real = MlflowClient.log_batch

    def picky(self: Any, run_id: str, metrics: Any = (), **more: Any) -> None:
        if any(m.step in (7, 20) for m in metrics):
            raise MlflowException("not this step", error_code=INVALID_PARAMETER_VALUE)
        real(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", picky)
    write_session(str(tmp_path / "run"), range(1, 31))
    done = deliver(str(tmp_path / "run"), database, timeout_s=60)
    assert [s for s, _ in history(database, "train/total")] == [s for s in range(1, 31) if s not in (7, 20)]
    assert done.accepted == 28
    assert [r["reason"].split(":")[0] for r in done.refused] == [
        "metric train/total at step 7",
        "metric train/total at step 20",
    ]


def test_a_run_deleted_on_the_server_is_delivered_anew(make_tracker: MakeTracker, database: str) -> None:
    from mlflow.tracking import MlflowClient

    first = make_tracker(database)
    log_steps(first, range(1, 11))
    assert first.close("FAILED", timeout_s=60)
    MlflowClient(tracking_uri=database).delete_run(first.run_id)
    second = make_tracker(database)
    log_steps(second, range(8, 21))
    assert second.close("FINISHED", timeout_s=60)
    assert second.run_id != first.run_id
    assert [s for s, _ in history(database, "train/total")] == list(range(1, 21))


def test_a_run_deleted_while_it_is_tracked(make_tracker: MakeTracker, database: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 6))
    delivery = Delivery(run_dir, database)
    assert delivery.attempt()
    first = delivery.run_id
    MlflowClient(tracking_uri=database).delete_run(first)
    write_session(run_dir, range(6, 11))
    with pytest.raises(Exception, match=f"no longer has run {first}"):
        delivery.attempt()
    assert delivery.attempt()
    delivery.close()
    assert delivery.run_id != first
    assert [s for s, _ in history(database, "train/total")] == list(range(1, 11))


def test_a_run_begun_anew_in_an_emptied_folder_is_another_run(
    make_tracker: MakeTracker, database: str, tmp_path: Path
) -> None:
    first = make_tracker(database)
    log_steps(first, range(1, 4))
    assert first.close("FINISHED", timeout_s=60)
    shutil.rmtree(tmp_path / "run")
    second = make_tracker(database)
    log_steps(second, range(1, 4), offset=0.5)
    assert second.close("FINISHED", timeout_s=60)
    assert second.run_id != first.run_id


def test_one_process_delivers_at_a_time(make_tracker: MakeTracker, database: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 4))
    delivery = Delivery(run_dir, database)
    assert delivery.attempt()
    other = Delivery(run_dir, database)
    with pytest.raises(LockHeld):
        other.attempt()
    with pytest.raises(BrainFoundryError, match="is delivering this run's metrics already"):
        deliver(run_dir, database, timeout_s=60)
    # What another process spools meanwhile is delivered by the holder.
    write_session(run_dir, range(4, 7))
    assert delivery.attempt()
    assert [s for s, _ in history(database, "train/total")] == list(range(1, 7))
    delivery.close()
    assert other.attempt() and other.accepted == 0
    other.close()


def test_a_second_server_gets_the_whole_history(database: str, empty_database: Path, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 6), ended="FINISHED")
    deliver(run_dir, database, timeout_s=60)
    shutil.copy(empty_database, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    assert deliver(run_dir, other, timeout_s=60).accepted == 5
    assert history(other, "train/total") == history(database, "train/total")


def test_an_artifact_store_that_is_away_holds_up_no_metric(
    make_tracker: MakeTracker, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    real = MlflowClient.log_artifact

    def away(*_: Any) -> None:
        raise ConnectionRefusedError("no artifact store")

    monkeypatch.setattr(MlflowClient, "log_artifact", away)
    tracker = make_tracker(database)
    tracker.artifact_bytes(b"x", "a.txt")
    log_steps(tracker, range(1, 11))
    wait_until(lambda: tracker._delivery.accepted == 20 and bool(tracker._delivery.problem))
    assert [s for s, _ in history(database, "train/total")] == list(range(1, 11))
    assert not tracker.close("FINISHED", timeout_s=0.5)
    assert "a.txt: no artifact store" in tracker.where() and "sync_tracking.py" in tracker.where()
    monkeypatch.setattr(MlflowClient, "log_artifact", real)
    run_dir = tracker.where().rpartition(" ")[2]
    assert deliver(run_dir, database, timeout_s=60).accepted == 0
    kept = Path(the_run(database).info.artifact_uri.removeprefix("file://"))
    assert (kept / "a.txt").read_bytes() == b"x"


def test_a_lost_copy_of_an_artifact_costs_that_artifact(database: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 4))
    writer = spool.SpoolWriter(run_dir)
    writer.append([{"kind": "artifact", "time": 1, "file": "gone/files/x", "path": "x"}])
    writer.close()
    done = deliver(run_dir, database, timeout_s=60)
    assert done.accepted == 3
    assert "no such file" in done.refused[0]["reason"]


def test_status_of_a_run_cut_short(database: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    write_session(run_dir, range(1, 4))
    deliver(run_dir, database, timeout_s=60)
    assert the_run(database).info.status == "RUNNING"
    deliver(run_dir, database, timeout_s=60, end_status="KILLED")
    assert the_run(database).info.status == "KILLED"
    write_session(run_dir, range(4, 6), ended="FINISHED")
    deliver(run_dir, database, timeout_s=60, end_status="KILLED")
    assert the_run(database).info.status == "FINISHED"


def test_not_a_run(tmp_path: Path, database: str) -> None:
    with pytest.raises(DataError, match=r"not a run folder.*Fix: give STORAGE/NAME"):
        deliver(str(tmp_path / "nothing"), database, timeout_s=1)


def test_storage_that_cannot_append(make_tracker: MakeTracker, database: str) -> None:
    run_dir = f"memory://{uuid.uuid4().hex}/run"
    tracker = make_tracker(database, run_dir=run_dir)
    log_steps(tracker, range(1, 301))
    tracker.artifact_bytes(b"{}", "card.json", "checkpoint")
    assert tracker.close("FINISHED", timeout_s=60)
    assert history(database, "train/total") == [(s, float(s)) for s in range(1, 301)]
    second = make_tracker(database, run_dir=run_dir)
    log_steps(second, range(291, 311), offset=0.5)
    assert second.close("FINISHED", timeout_s=60)
    assert [s for s, _ in history(database, "train/total")] == list(range(1, 311))


def test_nothing_handed_in_can_raise(make_tracker: MakeTracker, database: str, tmp_path: Path) -> None:
    tracker = make_tracker(database)
    tracker.metrics(1, {"good": 1.0, "x": "not a number"})  # type: ignore[dict-item]
    tracker.metrics("one", {"good": 1.0})  # type: ignore[arg-type]
    tracker.metrics(2, None)  # type: ignore[arg-type]
    tracker.artifact(tmp_path / "missing.png", "figures")
    tracker.metrics(3, {"good": 3.0, "loss (sum), %": 4.0, "../../up": 5.0})
    tracker.metrics(4, {"good": float("nan")})
    tracker.metrics(5, {"good": float("-inf")})
    assert tracker.close("FINISHED", timeout_s=60)
    tracker.metrics(6, {"good": 6.0})
    assert tracker.close("FAILED")  # the second close changes nothing
    assert [s for s, _ in history(database, "good")] == [3, 4, 5]
    assert the_run(database).data.metrics["up"] == 5.0
    assert the_run(database).data.metrics["loss _sum__ _"] == 4.0
    assert the_run(database).info.status == "FINISHED"


def test_keys_are_what_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for key in ("train/total", "", "/", "..", "a//b/../c", "ä ö", "x" * 400, "a" * 249 + "/b", "q?&%"):
        cleaned = clean_key(key)
        _validate_metric_name(cleaned)
        assert 0 < len(cleaned) <= 250
    assert clean_key("train/total") == "train/total"
