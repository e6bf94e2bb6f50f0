"""A server or a storage that is away stops nothing and loses nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from brainfoundry.training.tracking.delivery import deliver
from tests.training.tracking.mlflow_view import history, the_run
from tests.training.tracking.steps import MakeTracker, log_steps, wait_for_spool, wait_until


def test_a_storage_that_cannot_be_written_stops_nothing(make_tracker: MakeTracker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    tracker = make_tracker("http://127.0.0.1:9", run_dir=str(tmp_path / "file" / "run"))
    log_steps(tracker, range(1, 50))
    assert tracker.history() == []
    assert not tracker.close("FINISHED", timeout_s=1.5)


# Servers that are away.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_refuses(make_tracker: MakeTracker, database: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    tracker = make_tracker(f"http://user:secret@127.0.0.1:{free_port()}")
    log_steps(tracker, range(1, 101))
    wait_for_spool(run_dir, 100)
    wait_until(lambda: bool(tracker._delivery.problem))
    assert not tracker.close("FINISHED", timeout_s=1)
    assert "Connection refused" in tracker.where()
    assert "sync_tracking.py " + run_dir in tracker.where()
    assert "secret" not in tracker.where()
    assert not any(b"secret" in p.read_bytes() for p in Path(run_dir).rglob("*") if p.is_file())
    assert deliver(run_dir, database, timeout_s=60).accepted == 200
    assert history(database, "train/total") == [(s, float(s)) for s in range(1, 101)]
    assert the_run(database).info.status == "FINISHED"


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Takes requests and never answers. Yields its address, and events: a request came; one ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked, ended, held = threading.Event(), threading.Event(), []

    def hold(connection: socket.socket) -> None:
        while data := connection.recv(4096):
            if data:
                asked.set()
        ended.set()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            threading.Thread(target=hold, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked, ended
    finally:
        listener.close()
        for connection in held:
            connection.close()


def test_a_server_that_never_answers_holds_up_nobody(
    make_tracker: MakeTracker, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # far longer than this test may take
    with silent_server() as (uri, asked, ended):
        tracker = make_tracker(uri)
        assert asked.wait(60), "no request came"
        log_steps(tracker, range(1, 1001))
        tracker.artifact_bytes(b"x" * 100_000, "a.bin")
        wait_for_spool(str(tmp_path / "run"), 1000)
        # All calls have returned and all metrics are on disk, while the first request still hangs.
        assert not ended.is_set()
        assert tracker._sender.is_alive() and tracker._delivery.run_id is None
        assert not tracker.close("FINISHED", timeout_s=0.5)
        assert not ended.is_set()
        # The hanging thread has no claim on the spool any more.
        assert deliver(str(tmp_path / "run"), database, timeout_s=60).accepted == 2000
    assert history(database, "train/total") == [(s, float(s)) for s in range(1, 1001)]
