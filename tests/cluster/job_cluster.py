"""The local cluster as a test's object: started by `up`, asked by subprocesses, ended without a trace."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
sys.path.append(str(ROOT / "cluster" / "local"))

import local_state  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class JobCluster:
    """A running local cluster and how to reach it.

    `env` is what a user's shell has after `source cluster/local/env`, with a HOME of its own.
    """

    env: dict[str, str]
    folder: Path  # holds HOME, BRAINFOUNDRY_HOME and the state
    state: local_state.Cluster

    @property
    def address(self) -> str:
        """Of Ray's control store, for `ray.init`."""
        return self.env["RAY_ADDRESS"]

    @property
    def dashboard_url(self) -> str:
        return self.env["RAY_API_SERVER_ADDRESS"]

    @property
    def mlflow_uri(self) -> str:
        return self.env["MLFLOW_TRACKING_URI"]

    @property
    def home(self) -> Path:
        """BRAINFOUNDRY_HOME of the cluster's jobs."""
        return Path(self.env["BRAINFOUNDRY_HOME"])

    @property
    def token(self) -> str:
        return Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: Path = ROOT,
        timeout: float = 600,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command in a shell that has sourced the cluster's env; stdout and stderr come back as text."""
        return subprocess.run(
            [os.fspath(part) for part in command],
            cwd=cwd,
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def submit(
        self, args: Sequence[str | os.PathLike[str]], cwd: Path = ROOT, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit ARGS`; returns when the job has ended, with its log in stdout."""
        return self.run([BIN / "ray", "job", "submit", *args], cwd=cwd, timeout=timeout)


def shell_env(folder: Path) -> dict[str, str]:
    """A user's shell before any cluster is up: a HOME and a BrainFoundry home in `folder`."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    keep.pop("BRAINFOUNDRY_CLUSTER_DIR", None)
    (folder / "home").mkdir(parents=True, exist_ok=True)
    return {
        **keep,
        "HOME": str(folder / "home"),
        "BRAINFOUNDRY_HOME": str(folder / "runs"),
        "BRAINFOUNDRY_PYTHON": sys.executable,
    }


def script(name: str, env: Mapping[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """Runs `cluster/local/NAME`."""
    return subprocess.run(
        [str(ROOT / "cluster" / "local" / name), *args],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
    )


def sourced_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment after `source cluster/local/env`."""
    done = subprocess.run(
        ["bash", "-c", f"source '{ROOT}/cluster/local/env' && env -0"],
        env=dict(env),
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (entry.partition("=") for entry in done.stdout.split("\0") if entry)
    return {name: value for name, _, value in pairs if re.fullmatch(r"\w+", name)}


def remains(cluster: local_state.Cluster) -> list[str]:
    """What is left of a cluster that has ended: processes and files. Nothing, if all is well."""
    left = [f"process {process.pid} {process.name()}" for process in local_state.members(cluster)]
    for process in psutil.process_iter(["cmdline"]):
        if cluster.temp_dir in " ".join(process.info["cmdline"] or []):
            left.append(f"process {process.pid} {process.info['cmdline']}")
    left += [str(path) for path in (Path(cluster.temp_dir), Path(cluster.home) / "cluster") if path.exists()]
    return left


@contextlib.contextmanager
def started_job_cluster(folder: Path, *up_args: str) -> Iterator[JobCluster]:
    """A local cluster with everything below `folder`; afterwards nothing of it may be left."""
    env = shell_env(folder)
    started = script("up", env, *up_args)
    assert started.returncode == 0, started.stderr + started.stdout
    state = local_state.load(folder / "runs" / "cluster")
    assert state is not None
    try:
        yield JobCluster(env=sourced_env(env), folder=folder, state=state)
    finally:
        ended = script("down", env)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert not remains(state)
    assert not (folder / "home" / ".ray" / "auth_token").exists(), "a token was written to HOME"
