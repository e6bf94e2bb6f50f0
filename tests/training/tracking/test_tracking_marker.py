"""Notes of what is delivered, the set of steps, and the lock."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core import files
from brainfoundry.training.tracking.lock import DeliveryLock, LockHeld
from brainfoundry.training.tracking.marker import Destination, Marker, StepSet, without_secrets


@given(
    st.lists(st.integers(-(10**7), 10**12), max_size=60), st.lists(st.integers(-(10**7), 10**12), max_size=20)
)
def test_step_set_is_a_set(steps: list[int], others: list[int]) -> None:
    bits = StepSet()
    for step in steps:
        bits.add(step)
    for step in steps + others + [s + 1 for s in steps] + [s - 1 for s in steps]:
        assert (step in bits) == (step in set(steps))


def test_marker_keeps_destinations_apart(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    (tmp_path / "run" / "spool").mkdir(parents=True)
    state = Destination(run_id="r1", experiment_id="7")
    state.advance("00001-a", "events", 12)
    Marker(run_dir).save("http://a:5000", state)
    Marker(run_dir).save("http://b:5000", Destination(run_id="r2"))
    again = Marker(run_dir).load("http://a:5000")
    assert again == state
    assert (again.position("00001-a", "events"), again.position("00001-a", "artifacts")) == (12, 0)
    assert Marker(run_dir).load("http://c:5000") == Destination()


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"http://a:5000": 3}'])
def test_a_damaged_marker_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "delivered.json").write_text(content)
    assert Marker(str(tmp_path)).load("http://a:5000") == Destination()


def test_passwords_are_not_written_down(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    Marker(str(tmp_path)).save("https://user:secret@mlflow.lab:443/x", Destination(run_id="r"))
    assert "secret" not in (tmp_path / "spool" / "delivered.json").read_text()
    assert Marker(str(tmp_path)).load("https://other:word@mlflow.lab:443/x").run_id == "r"
    assert without_secrets("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"


@pytest.fixture(params=["local", "remote"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    run = str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"
    files.make_folder(files.join(run, "spool"))
    return run


def test_one_holder_at_a_time(run_dir: str) -> None:
    first, second = DeliveryLock(run_dir, settle_s=0.0), DeliveryLock(run_dir, settle_s=0.0)
    first.acquire()
    first.acquire()  # its own is no obstacle
    with pytest.raises(LockHeld, match=f"process {os.getpid()} on"):
        second.acquire()
    assert first.beat() and not second.beat()
    second.release()  # not its to give
    assert first.held()
    first.release()
    second.acquire()
    assert second.held() and not first.held()


def test_a_silent_owner_loses_it_and_notices(run_dir: str) -> None:
    now = [1000.0]
    first = DeliveryLock(run_dir, stale_s=100.0, settle_s=0.0, clock=lambda: now[0])
    second = DeliveryLock(run_dir, stale_s=100.0, settle_s=0.0, clock=lambda: now[0])
    first.acquire()
    now[0] += 90
    assert first.beat()
    now[0] += 90
    with pytest.raises(LockHeld):
        second.acquire()
    now[0] += 11
    second.acquire()
    assert not first.beat()
    first.release()
    assert second.held()


def test_a_dead_process_of_this_machine_is_noticed_at_once(run_dir: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    owner = {"token": "x", "host": socket.gethostname(), "pid": dead.pid, "started": 0.0, "time": 4e9}
    files.write_json(files.join(run_dir, "spool", "delivery.lock"), owner)
    DeliveryLock(run_dir, settle_s=0.0).acquire()
    # A living process that merely was given the dead one's number is not the owner either.
    owner |= {"pid": os.getpid(), "started": 1.0}
    files.write_json(files.join(run_dir, "spool", "delivery.lock"), owner)
    DeliveryLock(run_dir, settle_s=0.0).acquire()
    # On another machine nobody can tell: only silence counts.
    files.write_json(files.join(run_dir, "spool", "delivery.lock"), {**owner, "host": "elsewhere"})
    with pytest.raises(LockHeld, match="elsewhere"):
        DeliveryLock(run_dir, settle_s=0.0).acquire()


def test_a_lock_torn_while_it_was_written_expires_by_age(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    path = tmp_path / "spool" / "delivery.lock"
    path.write_text('{"tok')
    with pytest.raises(LockHeld):
        DeliveryLock(str(tmp_path), settle_s=0.0).acquire()
    os.utime(path, (1, 1))
    DeliveryLock(str(tmp_path), settle_s=0.0).acquire()
    assert json.loads(path.read_text())["pid"] == os.getpid()
