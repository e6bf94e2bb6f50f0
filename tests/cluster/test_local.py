"""The local cluster: its parts without starting one, then (slow) up twice, seen from outside, down twice."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from brainfoundry.core.errors import ClusterError
from tests.cluster.job_cluster import (
    ROOT,
    JobCluster,
    local_state,
    remains,
    script,
    shell_env,
    sourced_env,
)

import local_env  # isort: skip  (found once job_cluster has put cluster/local on the path)


def a_cluster(**changes: object) -> local_state.Cluster:
    fields: dict[str, object] = {
        "id": "none-such",
        "home": "/tmp/bf-none",
        "temp_dir": "/tmp/bf-none/t",
        "ray_port": 1,
        "dashboard_port": 2,
        "tracking_uri": "http://127.0.0.1:3",
        "mlflow_port": 3,
        "started": 0.0,
        **changes,
    }
    return local_state.Cluster(**fields)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# Without a cluster


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_is_loopback(address: str, loopback: bool) -> None:
    assert local_state.is_loopback(address) is loopback


def test_state_survives_saving(tmp_path: Path) -> None:
    cluster = a_cluster(processes=[(12, 3.5)])
    local_state.save(cluster, tmp_path)
    assert local_state.load(tmp_path) == cluster
    assert local_state.load(tmp_path / "elsewhere") is None


def test_a_broken_state_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ClusterError, match=r"cannot be read \[file .*state.json\]. Fix: ") as caught:
        local_state.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """A process of somebody else."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def test_members_are_found_by_their_mark(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '300'], env={}); print(1, flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(300)"],
        env={**os.environ, local_state.MARK: "test-mark"},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None and process.stdout.readline()
        cluster = a_cluster(id="test-mark", temp_dir=str(tmp_path / "t"), home=str(tmp_path))
        found = local_state.members(cluster)
        # The child has no mark in its environment, as a Ray worker has none; it is found as a descendant.
        assert sorted(p.name() for p in found) == sorted(["sleep", psutil.Process(process.pid).name()])
        assert local_state.end(cluster, tmp_path) == 2
        assert local_state.members(cluster) == []
        process.wait(10)
    finally:
        process.kill()


def test_a_reused_process_number_is_not_ours(sleeper: psutil.Process) -> None:
    born = sleeper.create_time()
    assert local_state.members(a_cluster(processes=[(sleeper.pid, born)])) == [sleeper]
    assert local_state.members(a_cluster(processes=[(sleeper.pid, born - 100)])) == []


def test_down_never_ends_the_shell_it_is_called_from(monkeypatch: pytest.MonkeyPatch) -> None:
    me = psutil.Process()
    own = [(p.pid, p.create_time()) for p in (me, *me.parents())]
    assert {p.pid for p in local_state.members(a_cluster(processes=own))}.isdisjoint(pid for pid, _ in own)


def test_a_wildcard_listener_is_refused() -> None:
    code = (
        "import socket, time; s = socket.create_server(('0.0.0.0', 0)); print(1, flush=True); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        born = psutil.Process(process.pid).create_time()
        with pytest.raises(
            ClusterError, match=r"listens on 0\.0\.0\.0:\d+, where other machines can reach it"
        ):
            local_state.check_loopback(a_cluster(processes=[(process.pid, born)]))
    finally:
        process.kill()
        process.wait()


def test_free_port_steps_over_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken: set[int] = set()
        first = local_env.free_port(port, taken)
        assert first > port
        assert local_env.free_port(port, taken) > first  # one start never uses a port twice


def test_there_are_tickets_for_two_workers_and_their_readers() -> None:
    assert local_env.logical_cpus() >= max(4, local_env.physical_cpus())


def test_clients_get_no_mark_and_servers_no_foreign_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-ours")
    monkeypatch.setenv("NO_PROXY", "intranet")
    cluster = a_cluster()
    daemon = local_env.daemon_env(cluster, tmp_path)
    assert daemon["RAY_ADDRESS"] == "127.0.0.1:1" and "RAY_AUTH_TOKEN" not in daemon
    assert daemon[local_state.MARK] == cluster.id
    assert daemon["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert local_state.MARK not in local_env.env_file(cluster, tmp_path)  # or `down` would end users' shells


def test_an_unwritable_home_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = script("up", {**shell_env(tmp_path), "BRAINFOUNDRY_HOME": str(tmp_path / "file")})
    assert done.returncode == 1
    assert done.stderr.startswith("error: the cluster's state cannot be written") and "Fix: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_down_without_up(tmp_path: Path) -> None:
    done = script("down", shell_env(tmp_path))
    assert done.returncode == 0 and "not up" in done.stdout
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------------------------------------------
# With one


def status(url: str, token: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_every_listener_is_on_loopback(job_cluster: JobCluster) -> None:
    found = local_state.listeners(local_state.members(job_cluster.state))
    ports = {port for _, port, _ in found}
    assert {
        job_cluster.state.ray_port,
        job_cluster.state.dashboard_port,
        job_cluster.state.mlflow_port,
    } <= ports
    assert all(local_state.is_loopback(address) for address, _, _ in found), found


@pytest.mark.slow
def test_only_the_token_opens_ray(job_cluster: JobCluster) -> None:
    jobs = f"{job_cluster.dashboard_url}/api/jobs/"
    assert status(jobs) == 401
    assert status(jobs, "wrong") in (401, 403)
    assert status(jobs, job_cluster.token) == 200
    token = Path(job_cluster.env["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    without = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}
    refused = job_cluster.run(
        [Path(sys.executable).parent / "ray", "job", "submit", "--", "echo", "SHOULD-NOT-RUN"], env=without
    )
    assert refused.returncode != 0 and "succeeded" not in refused.stdout


@pytest.mark.slow
def test_mlflow_answers_and_keeps_its_runs_in_the_home(job_cluster: JobCluster) -> None:
    assert status(f"{job_cluster.mlflow_uri}/health") == 200
    assert (job_cluster.home / "mlflow.db").is_file()


@pytest.mark.slow
def test_a_failing_job_gives_its_exit_status_and_output(job_cluster: JobCluster) -> None:
    good = job_cluster.submit(["--", "echo", "hello-from-the-job"])
    assert good.returncode == 0 and "hello-from-the-job" in good.stdout
    bad = job_cluster.submit(["--", "sh", "-c", "'echo broken-job; exit 3'"])
    assert bad.returncode != 0 and "broken-job" in bad.stdout


@pytest.mark.slow
def test_jobs_know_their_cluster_wherever_they_are_submitted_from(
    job_cluster: JobCluster, tmp_path: Path
) -> None:
    names = ("BRAINFOUNDRY_HOME", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE", "RAY_TRAIN_ENABLE_STATE_TRACKING")
    probe = job_cluster.folder / "env_probe.py"
    probe.write_text(
        "#!/usr/bin/env python\nimport json, os\n"
        f"print('ENV', json.dumps([os.getcwd(), *map(os.environ.get, {names})]))\n"
    )
    probe.chmod(0o755)
    done = job_cluster.submit([probe], cwd=tmp_path)  # literally: no --working-dir, and from another folder
    line = next(line for line in done.stdout.splitlines() if line.startswith("ENV "))
    assert json.loads(line[4:]) == [str(ROOT), *(job_cluster.env[name] for name in names)]


@pytest.mark.slow
def test_up_twice_down_twice_beside_another_cluster(job_cluster: JobCluster, tmp_path: Path) -> None:
    env = shell_env(tmp_path)
    first = script("up", env)
    assert first.returncode == 0, first.stderr
    try:
        state = local_state.load(tmp_path / "runs" / "cluster")
        assert state is not None
        # Beside a cluster that holds the usual ports, it found others.
        mine = {state.ray_port, state.dashboard_port, state.mlflow_port}
        theirs = job_cluster.state
        assert mine.isdisjoint({theirs.ray_port, theirs.dashboard_port, theirs.mlflow_port})

        again = script("up", env)
        assert again.returncode == 0 and "already up" in again.stdout
        assert local_state.load(tmp_path / "runs" / "cluster") == state

        # A job is running when the cluster is taken down: its driver must go too.
        shell = sourced_env(env)
        ray = str(Path(sys.executable).parent / "ray")
        submitted = subprocess.run(
            [ray, "job", "submit", "--no-wait", "--", "sleep", "4242"],
            env=shell,
            capture_output=True,
            text=True,
        )
        assert submitted.returncode == 0, submitted.stderr
        deadline = time.monotonic() + 60
        while not any(p.cmdline() == ["sleep", "4242"] for p in local_state.members(state)):
            assert time.monotonic() < deadline, "the job did not start"
            time.sleep(0.5)
    finally:
        down = script("down", env)
    assert down.returncode == 0 and "ended" in down.stdout, down.stderr
    assert remains(state) == []
    assert (tmp_path / "runs" / "mlflow.db").exists()  # results stay
    second = script("down", env)
    assert second.returncode == 0 and "not up" in second.stdout
    assert status(f"{job_cluster.dashboard_url}/api/jobs/", job_cluster.token) == 200  # the other one lives


@pytest.mark.slow
def test_up_clears_up_after_a_head_that_died(tmp_path: Path) -> None:
    env = shell_env(tmp_path)
    assert script("up", env).returncode == 0
    try:
        state = local_state.load(tmp_path / "runs" / "cluster")
        assert state is not None
        for process in local_state.members(state):
            if process.name() in ("raylet", "gcs_server"):
                process.kill()
        again = script("up", env)
        assert again.returncode == 0 and "clearing up" in again.stdout, again.stderr
        assert remains(state)[:-1] == [], "the first cluster's processes and files"
    finally:
        script("down", env)
    assert remains(state) == []
