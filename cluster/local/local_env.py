"""What the local cluster takes of its host (ports, CPUs), and what its servers and clients are told."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from pathlib import Path

from brainfoundry.core.errors import ClusterError
from local_state import HOST, MARK, Cluster


def free_port(preferred: int, taken: set[int]) -> int:
    """`preferred`, or the next port on which nobody listens."""
    for port in range(preferred, preferred + 500):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing connection is no listener
            with contextlib.suppress(OSError):
                if port not in taken:
                    probe.bind((HOST, port))
                    taken.add(port)
                    return port
    raise ClusterError(
        f"no free port from {preferred} to {preferred + 499}", fix="stop a server on this host"
    )


def physical_cpus() -> int:
    """CPUs that this process may use: its affinity and, in a container, the quota (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, round(int(quota) / int(period))))
    return cpus


def logical_cpus() -> int:
    """Tickets Ray hands out: the CPUs there are, and at least 4.

    A ticket is an admission, not a core. Every Train worker holds one for as long as it trains, and its data
    pipeline needs up to one more to read at all; with only two tickets, two workers on a laptop would wait
    for ever for data that nobody is admitted to read.
    """
    return max(physical_cpus(), 4)


def exports(cluster: Cluster, folder: Path) -> dict[str, str]:
    """What the head, its jobs and every client must have in their environment."""
    proxies = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = ",".join(dict.fromkeys([*filter(None, proxies.split(",")), HOST, "localhost"]))
    return {
        "BRAINFOUNDRY_HOME": cluster.home,
        # A host may run several clusters, and Ray's own search among them may find another one.
        "RAY_ADDRESS": cluster.ray_address,
        "RAY_API_SERVER_ADDRESS": cluster.dashboard_url,
        # Explicit on both sides: unset, Ray goes by whether a token file happens to lie in the home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        # Despite its name: with 0, Ray binds every listener to loopback, on Linux as well.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train page
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_TRACKING_URI": cluster.tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "no_proxy": direct,
        "NO_PROXY": direct,
    }


def daemon_env(cluster: Cluster, folder: Path) -> dict[str, str]:
    """The environment of the servers: ours, without another cluster's Ray variables, and marked."""
    foreign = (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_",
        "RAY_JOB_",
        "RAY_RAYLET_",
        "RAY_NAMESPACE",
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env.update(exports(cluster, folder))
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["TMPDIR"] = str(
        Path(cluster.temp_dir) / "t"
    )  # what a killed process leaves there goes with the cluster
    env[MARK] = cluster.id
    return env


def env_file(cluster: Cluster, folder: Path) -> str:
    """A shell script that points a user's shell at the cluster."""
    lines = ["# Written by cluster/local/up; gone with cluster/local/down. Holds no secret, only its place."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in exports(cluster, folder).items()]
    lines.append("unset RAY_AUTH_TOKEN  # would win over the token file")
    bin_dir = shlex.quote(str(Path(sys.executable).parent))
    lines.append(f'case ":$PATH:" in *:{bin_dir}:*) ;; *) export PATH={bin_dir}:"$PATH" ;; esac')
    return "\n".join(lines) + "\n"
