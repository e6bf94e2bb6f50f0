"""What every test stands on: an environment of its own, and Ray clusters that are started once and shared.

The environment is set here, at import, because Ray reads parts of it when it is imported first; that makes
plain `pytest` behave like `make test`. Two fixtures give Ray:

- `ray_local`: a small Ray session inside this process, for unit tests of Ray Data, tasks and actors.
- `job_cluster`: a real head started by `cluster/local/up`, with dashboard, token and MLflow, for jobs. Slow.

A process can be connected to one Ray cluster only. `ray_local` takes that place for the rest of the test
session, so nothing else may call `ray.init` or `ray.shutdown` in this process; `job_cluster` is used from
subprocesses. A test that needs a Ray session of its own runs it in a subprocess, with `ray_env`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Short, and not below $TMPDIR: the paths of Ray's sockets may have 107 characters.
SCRATCH = Path(tempfile.mkdtemp(prefix="bft-", dir="/tmp"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

for name in [n for n in os.environ if n.startswith(("RAY_", "BRAINFOUNDRY_", "MLFLOW_"))]:
    del os.environ[name]  # the user's cluster, runs and tracking server are not ours to touch
os.environ.update(
    # A local `ray.init()` would otherwise write ~/.ray/auth_token, and the next `ray start` then demand it.
    HOME=str(SCRATCH / "home"),
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # despite its name: every listener on loopback
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    BRAINFOUNDRY_HOME=str(SCRATCH / "runs"),
    OMP_NUM_THREADS="1",  # sums in a fixed order, and no fight for the cores
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(ROOT / ".pytest_cache" / "matplotlib"),  # kept: finding all fonts takes seconds
)
os.environ.pop("OMP_PROC_BIND", None)
(SCRATCH / "home").mkdir()
Path(os.environ["MPLCONFIGDIR"]).mkdir(parents=True, exist_ok=True)
assert "ray" not in sys.modules, "ray was imported before tests/conftest.py could set its environment"

import psutil  # noqa: E402
import pytest  # noqa: E402

from tests.cluster.job_cluster import JobCluster, started_job_cluster  # noqa: E402
from tests.core.s3_server import Proxy, flaky, s3_server  # noqa: E402


@pytest.fixture(scope="session")
def ray_env() -> dict[str, str]:
    """The environment for a subprocess that starts a Ray session of its own (`ray.init(address="local")`)."""
    return {**os.environ, "RAY_TMPDIR": str(SCRATCH)}


@pytest.fixture(scope="session")
def ray_local() -> Iterator[int]:
    """A Ray session in this process: 4 logical CPUs, no dashboard, 512 MB for objects. Yields the CPUs."""
    import ray

    cpus = 4  # admissions, not cores: a Train worker, its read pipeline, and room for a second of each
    before = set(psutil.Process().children(recursive=True))
    for attempt in range(1, 5):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=512 * 2**20,
                _temp_dir=str(SCRATCH / f"r{attempt}"),
                # Functions of test modules travel by reference: workers must find `tests.x.test_y`.
                runtime_env={
                    "env_vars": {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "platform", ROOT)))}
                },
            )
            break
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == 4:
                raise  # Ray gives itself a fixed 30 s, too little on a very busy machine
            ray.shutdown()
    started = set(psutil.Process().children(recursive=True)) - before
    yield cpus
    ray.shutdown()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive, f"Ray left processes behind: {alive}"


@pytest.fixture(scope="session")
def job_cluster() -> Iterator[JobCluster]:
    """A head of its own with dashboard, token and MLflow, for jobs. Mark the test `slow`."""
    with started_job_cluster(SCRATCH / "c") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A real S3-compatible server, host:port; the environment points at it. Mark the test `slow`."""
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    """A proxy in front of `server` that misbehaves on demand."""
    with flaky(server) as found:
        yield found
