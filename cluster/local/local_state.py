"""What is known of one host's local cluster: its saved state, its processes, their listeners, their end.

Two of the promises of `cluster/local` are kept here: every listener of every process is on loopback, which is
looked at rather than hoped for; and `down` ends exactly the processes that `up` and its jobs started, because
other clusters may share the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from brainfoundry.core.errors import ClusterError
from brainfoundry.core.paths import home

HOST = "127.0.0.1"
MARK = "BRAINFOUNDRY_CLUSTER_ID"  # in the environment of every process of a cluster, and of no user's shell


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What must be known to use a running cluster and to end it; saved as `state.json`."""

    id: str
    home: str
    temp_dir: str
    ray_port: int
    dashboard_port: int
    tracking_uri: str
    mlflow_port: int | None
    started: float
    processes: list[tuple[int, float]] = field(default_factory=list)  # (pid, creation time)

    @property
    def ray_address(self) -> str:
        return f"{HOST}:{self.ray_port}"

    @property
    def dashboard_url(self) -> str:
        return f"http://{HOST}:{self.dashboard_port}"


def state_dir() -> Path:
    """Where the state of the one local cluster of this home is kept."""
    if os.environ.get("BRAINFOUNDRY_CLUSTER_DIR"):
        return Path(os.environ["BRAINFOUNDRY_CLUSTER_DIR"]).expanduser().resolve()
    return home() / "cluster"


def load(folder: Path) -> Cluster | None:
    """The cluster that `folder` tells of, or None."""
    try:
        saved = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ClusterError(
            "the state of the local cluster cannot be read",
            file=folder / "state.json",
            fix="end the cluster's processes by hand, then delete this file",
        ) from error
    saved["processes"] = [(int(pid), float(created)) for pid, created in saved["processes"]]
    return Cluster(**saved)


def save(cluster: Cluster, folder: Path) -> None:
    """Writes the state in one move, so that a reader never sees half of it."""
    part = folder / "state.json.part"
    part.write_text(json.dumps(asdict(cluster), indent=2) + "\n")
    part.replace(folder / "state.json")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time for a state folder, which it makes; emptied, the folder goes again."""
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
                break
            os.close(lock)  # while we waited, a `down` took the folder away
        folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(
            f"the cluster's state cannot be written ({error.strerror})",
            file=folder,
            fix="point BRAINFOUNDRY_HOME to a folder you may write",
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: a cluster is up
            folder.rmdir()
        os.close(lock)


def members(cluster: Cluster) -> list[psutil.Process]:
    """Every living process of the cluster: Ray's daemons, its workers, the jobs' drivers, MLflow.

    Found by the mark in their environment, by what `up` wrote down, and as descendants of those: Ray's
    workers overwrite their title, which on Linux can take the readable environment with it.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == cluster.id:
                found[process.pid] = process
    for pid, created in cluster.processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if (
                abs(process.create_time() - created) < 1.0
            ):  # otherwise the number now belongs to somebody else
                found[pid] = process
    for process in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found.update((child.pid, child) for child in process.children(recursive=True))
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for pid, process in found.items() if pid not in own and _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def listeners(processes: list[psutil.Process]) -> list[tuple[str, int, str]]:
    """(address, port, process name) of every listening TCP socket of these processes."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.append((connection.laddr.ip, connection.laddr.port, process.name()))
    return sorted(set(found))


def is_loopback(address: str) -> bool:
    """Whether only this host can reach the address; `::ffff:127.0.0.1` is IPv4's loopback in IPv6 dress."""
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def check_loopback(cluster: Cluster) -> int:
    """The number of listeners.

    Raises:
        ClusterError: if one of them can be reached from another machine.
    """
    found = listeners(members(cluster))
    for address, port, name in found:
        if not is_loopback(address):
            raise ClusterError(
                f"{name} listens on {address}:{port}, where other machines can reach it",
                fix="do not pass `ray start` an address of the network, and tell us: this should not happen",
            )
    return len(found)


def end(cluster: Cluster, folder: Path, grace_s: float = 4.0) -> int:
    """Ends the cluster's processes and deletes its temporary files; returns how many processes there were."""
    ended: set[int] = set()
    deadline = time.monotonic() + 60.0
    first = time.monotonic()
    while living := members(cluster):
        force = time.monotonic() - first > grace_s
        for process in living:
            if force or process.pid not in ended:
                with contextlib.suppress(psutil.Error):
                    process.kill() if force else process.terminate()
            ended.add(process.pid)
        psutil.wait_procs(living, timeout=1.0)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{len(living)} processes of the local cluster do not end: {[p.pid for p in living]}",
                fix="end them by hand, then run cluster/local/down again",
            )
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    for name in ("env", "token", "ray.log", "mlflow.log", "state.json"):
        (folder / name).unlink(missing_ok=True)
    return len(ended)
