"""The SLURM batch file: its options and checks, and a run of it on two stand-in nodes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BATCH = ROOT / "cluster" / "slurm" / "pretrain_ukb.sbatch"
STAND_IN = ROOT / "tests" / "cluster" / "stand_in_nodes.sh"


def options() -> dict[str, str]:
    """The active #SBATCH options."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", BATCH.read_text(), re.MULTILINE)
    assert len(found) == len(dict(found)), "an option is given twice"
    return dict(found)


def test_the_allocation_is_the_papers() -> None:
    chosen = options()
    assert int(chosen["nodes"]) * int(chosen["gpus-per-node"]) == 64
    assert chosen["ntasks-per-node"] == "1"  # a task is a Ray node
    assert "exclusive" in chosen  # `ray symmetric-run` ends with `ray stop`


def test_requeue_goes_on_with_the_same_run() -> None:
    chosen, text = options(), BATCH.read_text()
    assert {"requeue", "open-mode", "signal"} <= set(chosen)
    assert chosen["signal"].startswith("B:USR1@")
    assert re.search(r"^trap requeue USR1$", text, re.MULTILINE)
    name = re.search(r"^name=(.*?)\s+#", text, re.MULTILINE)
    assert name and "SLURM" not in name.group(1), "a name with the job's number would start again"


def test_options_are_above_the_first_command() -> None:
    # SLURM stops reading #SBATCH lines at the first command.
    lines = BATCH.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_ray_symmetric_run_knows_the_options(tmp_path: Path) -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    text = BATCH.read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "ray symmetric-run" in line and "srun" in line)
    before = shlex.split(line[line.index("ray symmetric-run") :])
    used = {word.split("=")[0] for word in before[2 : before.index("--")] if word.startswith("--")}
    known = {name for command in (start, symmetric_run) for option in command.params for name in option.opts}
    assert used and used <= known
    assert not used & {"--head", "--node-ip-address", "--port", "--block", "--temp-dir"}


ENVIRONMENT = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "stand-in-[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "2",
    "SLURM_GPUS_ON_NODE": "2",
    "MLFLOW_TRACKING_URI": "http://mlflow.example:5000",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "this is not a SLURM job"),
        ({"BRAINFOUNDRY_SHARDS": ""}, "BRAINFOUNDRY_SHARDS is not set"),
        ({"BRAINFOUNDRY_STORAGE": ""}, "BRAINFOUNDRY_STORAGE is not set"),
        ({"MLFLOW_TRACKING_URI": ""}, "names no server"),
        ({"MLFLOW_TRACKING_URI": "sqlite:///runs/mlflow.db"}, "names no server"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, "means another machine on every node"),
        ({"SLURM_RESTART_COUNT": "21"}, "requeued 21 times"),
        ({"BRAINFOUNDRY_REPO": "nowhere"}, "there is no folder nowhere"),
        ({"SLURM_SUBMIT_DIR": "."}, "has no environment"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    env = {**os.environ, **ENVIRONMENT, "SLURM_SUBMIT_DIR": str(ROOT)}
    env |= {"BRAINFOUNDRY_SHARDS": "s3://bucket/ukb", "BRAINFOUNDRY_STORAGE": "s3://bucket/runs", **change}
    done = subprocess.run([BATCH], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last and ". Fix: " in last
    assert "srun" not in done.stderr, "it got as far as starting something"


PROBE = """
import json, os, sys
import ray
ray.init()
where = ray.remote(num_gpus=1, scheduling_strategy="SPREAD")(ray.util.get_node_ip_address)
hosts = sorted(set(ray.get([where.remote() for _ in range(4)])))
print("PROBE", json.dumps([sys.argv[1:], hosts, ray.cluster_resources()["GPU"], os.environ["RAY_AUTH_MODE"]]))
sys.exit(int(os.environ.get("PROBE_EXIT", 0)))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch job on stand-in nodes, whose jobs/pretrain_ukb.py only looks around."""
    if subprocess.run([STAND_IN, "--can"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make network and process namespaces")
    (tmp_path / "repo" / "jobs").mkdir(parents=True)
    (tmp_path / "repo" / ".venv").symlink_to(sys.prefix)
    (tmp_path / "repo" / "jobs" / "pretrain_ukb.py").write_text(PROBE)
    for name in ("shards", "storage", "home"):
        (tmp_path / name).mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **env,
        **ENVIRONMENT,
        "HOME": str(tmp_path / "home"),
        "SLURM_SUBMIT_DIR": str(tmp_path / "repo"),
        "BRAINFOUNDRY_SHARDS": str(tmp_path / "shards"),
        "BRAINFOUNDRY_STORAGE": str(tmp_path / "storage"),
    }


def run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    # A short path: Ray's sockets lie below it.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="bfn-", dir="/tmp") as scratch:
        return subprocess.run(
            [STAND_IN, scratch, BATCH, *args], env=env, capture_output=True, text=True, timeout=400
        )


@pytest.mark.slow
def test_two_nodes_become_one_cluster_and_run_the_job(stand_in: dict[str, str]) -> None:
    done = run(stand_in, "--optim.steps", "10")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = re.search(r"^PROBE (.*)$", done.stdout, re.MULTILINE)
    assert found, done.stdout[-4000:]
    args, hosts, gpus, auth = json.loads(found.group(1))
    assert args == [
        *("--preset", "paper", "--name", "ukb-paper"),
        *("--storage", stand_in["BRAINFOUNDRY_STORAGE"], "--data.shards", stand_in["BRAINFOUNDRY_SHARDS"]),
        *("--optim.steps", "10"),
    ]
    assert hosts == ["10.77.0.1", "10.77.0.2"] and gpus == 4 and auth == "token"
    assert not (Path(stand_in["HOME"]) / ".ray" / "auth_token").exists()


@pytest.mark.slow
def test_a_failing_job_fails_the_batch(stand_in: dict[str, str]) -> None:
    done = run({**stand_in, "SLURM_JOB_NUM_NODES": "1", "PROBE_EXIT": "7"})
    assert "PROBE" in done.stdout
    assert done.returncode == 7


@pytest.mark.slow
def test_ray_that_does_not_start_fails_the_batch(stand_in: dict[str, str]) -> None:
    # `ray symmetric-run` itself returns 0 here.
    done = run({**stand_in, "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "many"})
    assert done.returncode == 1
    assert "error: Ray did not start on all nodes" in done.stderr


@pytest.mark.slow
def test_nodes_that_do_not_see_the_storage_are_named(stand_in: dict[str, str]) -> None:
    done = run({**stand_in, "BRAINFOUNDRY_SHARDS": "/not/there"})
    assert done.returncode == 1
    assert "does not see /not/there" in done.stderr and "not all nodes see the same folders" in done.stderr
    assert "PROBE" not in done.stdout
