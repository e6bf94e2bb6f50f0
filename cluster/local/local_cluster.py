"""One host's Ray cluster with its dashboard and an MLflow server: started and ended.

`cluster/local/up` and `cluster/local/down` call this file. Its state (addresses, token, processes) is kept in
`$BRAINFOUNDRY_CLUSTER_DIR`, by default `cluster/` below the BrainFoundry home (`$BRAINFOUNDRY_HOME`, else
`runs/`). Ray answers only to whoever can read the token file there (mode 600, in a folder of mode 700).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from brainfoundry.core.errors import BrainFoundryError, ClusterError
from brainfoundry.core.paths import home
from local_env import daemon_env, env_file, free_port, logical_cpus, physical_cpus
from local_state import (
    HOST,
    Cluster,
    check_loopback,
    end,
    load,
    locked,
    members,
    save,
    state_dir,
)

ROOT = Path(__file__).resolve().parents[2]
START_S = 240.0  # a cold start takes 10 s on two quiet cores, 40 s on busy ones
START_ATTEMPTS = 4


class SlowStart(ClusterError):
    """Ray's own patience with itself, a fixed 30 s, was not enough."""


def mlflow_command(home_dir: str, port: int) -> list[str]:
    """The tracking server of a home, on loopback: the same database that a run without a server writes to."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{home_dir}/mlflow.db"]
    return [*command, "--artifacts-destination", f"{home_dir}/mlartifacts"]


def start_mlflow(cluster: Cluster, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the tracking server; its database and artifacts outlive it."""
    assert cluster.mlflow_port is not None
    Path(cluster.home).mkdir(parents=True, exist_ok=True)
    env = daemon_env(cluster, folder)
    env.pop("MLFLOW_TRACKING_URI")
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its job queue is a process pool we have no use for
    with (folder / "mlflow.log").open("wb") as log:
        return subprocess.Popen(
            mlflow_command(cluster.home, cluster.mlflow_port),
            env=env,
            cwd=cluster.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def start_ray(cluster: Cluster, folder: Path, cpus: int, client_port: int, extra: list[str]) -> None:
    """Starts the head in the repository root: entry points run in the folder where `ray start` ran."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    command += [f"--node-ip-address={HOST}", f"--port={cluster.ray_port}", f"--num-cpus={cpus}"]
    command += [
        "--include-dashboard=true",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={cluster.dashboard_port}",
    ]
    command += ["--dashboard-agent-listen-port=0", f"--ray-client-server-port={client_port}"]
    # Any free port for a worker: Ray's default range is the same for every cluster on a host.
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--temp-dir={cluster.temp_dir}", *extra]
    with (folder / "ray.log").open("wb") as log:
        # A session of its own: Ctrl-C in the terminal is meant for the job there, not for the cluster.
        code = subprocess.run(
            command,
            env=daemon_env(cluster, folder),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            timeout=START_S,
        ).returncode
    if code and "timed out during startup" in (folder / "ray.log").read_text(errors="replace"):
        raise SlowStart("Ray did not start, this host is too busy", fix="try again when it is quieter")
    if code:
        raise ClusterError(
            f"`ray start` failed (exit {code}): {_tail(folder / 'ray.log')}", fix="mend what it says"
        )


def _tail(log: Path, lines: int = 3) -> str:
    try:
        return " | ".join(log.read_text(errors="replace").strip().splitlines()[-lines:])
    except OSError:
        return "(no log)"


def answers(url: str, headers: Mapping[str, str] | None = None) -> int | None:
    """HTTP status of a GET without proxies, None if nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_ready(cluster: Cluster, folder: Path, mlflow: subprocess.Popen[bytes] | None) -> None:
    """Returns once the dashboard and MLflow answer.

    Raises:
        ClusterError: if one of them ends, or is silent for too long.
    """
    deadline = time.monotonic() + START_S
    headers = {"Authorization": f"Bearer {(folder / 'token').read_text()}"}
    waiting = {"the dashboard": (f"{cluster.dashboard_url}/api/version", folder / "ray.log")}
    if mlflow is not None:
        waiting["MLflow"] = (f"{cluster.tracking_uri}/health", folder / "mlflow.log")
    while waiting:
        for name, (url, _) in list(waiting.items()):
            if answers(url, headers if name == "the dashboard" else None) == 200:
                del waiting[name]
        if mlflow is not None and mlflow.poll() is not None:
            raise ClusterError(
                f"MLflow ended (exit {mlflow.returncode}): {_tail(folder / 'mlflow.log')}",
                fix="mend what it says",
            )
        if waiting and time.monotonic() > deadline:
            name, (url, log) = next(iter(waiting.items()))
            raise ClusterError(
                f"{name} does not answer after {START_S:.0f} s at {url}: {_tail(log)}",
                fix="look whether the host is out of memory, and try again",
            )
        time.sleep(0.3)


def tell(cluster: Cluster, folder: Path) -> None:
    """Prints where everything is."""
    print(f"  Ray dashboard  {cluster.dashboard_url}  (asks once for the token: cat {folder / 'token'})")
    print(f"  Ray address    {cluster.ray_address}")
    print(f"  MLflow         {cluster.tracking_uri}")
    print("  this shell     source cluster/local/env")
    print("  then           ray job submit jobs/pretrain_ukb.py")
    print("  to end it      cluster/local/down")


def is_up(cluster: Cluster) -> bool:
    """Whether the head's processes live.

    Not asked over HTTP: a busy head that answers late must not be taken for dead.
    """
    names = {process.name() for process in members(cluster)}
    return {"gcs_server", "raylet"} <= names


def up(cpus: int | None, tracking_uri: str | None, extra: list[str]) -> None:
    """Starts the cluster, or says that it is up."""
    folder = state_dir()
    with locked(folder):
        old = load(folder)
        if old is not None and is_up(old):
            if old.mlflow_port is not None and answers(f"{old.tracking_uri}/health") is None:
                print("local cluster: Ray is up, MLflow is not; starting it again")
                wait_ready(old, folder, start_mlflow(old, folder))
                save(replace(old, processes=_identities(old)), folder)
            print("local cluster: already up")
            tell(old, folder)
            return
        if old is not None:
            print("local cluster: the last one ended without cluster/local/down; clearing up after it")
            end(old, folder)
        count = cpus or logical_cpus()
        print(
            f"local cluster: starting Ray ({count} logical CPUs on {physical_cpus()}) and MLflow", flush=True
        )
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                start(folder, count, tracking_uri, extra)
                return
            except SlowStart:
                if attempt == START_ATTEMPTS:
                    raise
                print(
                    "local cluster: this host is busy, Ray gave up waiting for itself; once more", flush=True
                )


def start(folder: Path, cpus: int, tracking_uri: str | None, extra: list[str]) -> None:
    """Starts everything and checks it; on any failure nothing is left running."""
    begin = time.monotonic()
    taken: set[int] = set()
    mlflow_port = None if tracking_uri else free_port(5000, taken)
    cluster = Cluster(
        id=secrets.token_hex(8),
        home=str(home()),
        # Short and not below $TMPDIR: the paths of Ray's sockets may have 107 characters.
        temp_dir=tempfile.mkdtemp(prefix="bf-", dir="/tmp"),
        ray_port=free_port(6379, taken),
        dashboard_port=free_port(8265, taken),
        tracking_uri=tracking_uri or f"http://{HOST}:{mlflow_port}",
        mlflow_port=mlflow_port,
        started=time.time(),
    )
    (Path(cluster.temp_dir) / "t").mkdir()
    save(cluster, folder)  # before anything runs, so that whatever happens `down` knows what to end
    try:
        with os.fdopen(os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as token:
            token.write(secrets.token_hex(32))
        mlflow = start_mlflow(cluster, folder) if mlflow_port else None
        start_ray(cluster, folder, cpus, free_port(10001, taken), extra)
        wait_ready(cluster, folder, mlflow)
        checked = check_loopback(cluster)
        cluster = replace(cluster, processes=_identities(cluster))
        (folder / "env").write_text(env_file(cluster, folder))
        save(cluster, folder)
    except BaseException:
        end(cluster, folder)
        raise
    print(f"local cluster: up in {time.monotonic() - begin:.0f} s, all {checked} listeners on loopback")
    tell(cluster, folder)


def _identities(cluster: Cluster) -> list[tuple[int, float]]:
    found = []
    for process in members(cluster):
        with contextlib.suppress(psutil.Error):
            found.append((process.pid, process.create_time()))
    return found


def mlflow_ui() -> None:
    """Shows past runs without a cluster: MLflow in the foreground, until Ctrl-C."""
    folder = state_dir()
    cluster = load(folder)
    if cluster is not None and answers(f"{cluster.tracking_uri}/health") == 200:
        print(f"MLflow is up already: {cluster.tracking_uri}")
        return
    home().mkdir(parents=True, exist_ok=True)
    port = free_port(5000, set())
    print(f"MLflow: http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.chdir(home())
    os.execve(sys.executable, mlflow_command(str(home()), port), env)


def down() -> None:
    """Ends the cluster, if there is one."""
    folder = state_dir()
    if not folder.exists():
        print("local cluster: not up")
        return
    with locked(folder):
        cluster = load(folder)
        if cluster is None:
            print("local cluster: not up")
        else:
            print(f"local cluster: ended, {end(cluster, folder)} processes; results stay in {cluster.home}")


def main() -> int:
    """Runs the verb on the command line; 0, or 1 with one line on stderr."""
    ours, extra = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, extra = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(prog="cluster/local", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("up", help="start, or say that it is up; what follows `--` goes to `ray start`")
    start.add_argument("--cpus", type=int, help="logical CPUs (default: the CPUs there are, at least 4)")
    start.add_argument("--tracking-uri", help="use this MLflow server and start none")
    verbs.add_parser("down", help="end what `up` started")
    verbs.add_parser("mlflow", help="look at past runs without a cluster")
    arguments = parser.parse_args(ours)
    try:
        if arguments.verb == "up":
            up(arguments.cpus, arguments.tracking_uri, extra)
        elif arguments.verb == "down":
            down()
        else:
            mlflow_ui()
    except BrainFoundryError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
