"""nnU-Net's commands in an environment of its own: what is asked of it, what goes on, what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brainfoundry.core.errors import ClusterError, ConfigError, DataError
from brainfoundry.experiments.nnunet.environment import Environment, find_environment
from brainfoundry.experiments.nnunet.export import Export
from brainfoundry.experiments.nnunet.run import NnunetRun, RunSpec, alone, trained
from tests.experiments.nnunet.stand_in import VERSION, make_python

SPEC = RunSpec(steps=30, epoch_steps=20)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return find_environment(make_python(tmp_path / "env"))


def calls(export: Export) -> list[str]:
    """The commands that nnU-Net was given, in order."""
    return (Path(export.folder) / "calls.txt").read_text().splitlines()


def test_one_after_the_other(exported: Export, environment: Environment) -> None:
    assert (environment.version, environment.cuda) == (VERSION, False)
    done = NnunetRun(exported, SPEC, environment, processes=2).run()
    plan, train, predict = calls(exported)
    assert plan == (
        "plan -d 137 -pl ExperimentPlanner -c 3d_fullres -np 2 -npfp 2 --verify_dataset_integrity --clean"
    )
    assert train == (
        "train 137 3d_fullres 0 -tr BrainFoundryTrainer -p nnUNetPlans -device cpu --c "
        '{"steps": 30, "epoch_steps": 20}'
    )
    assert "-f 0 -tr BrainFoundryTrainer" in predict and "--continue_prediction" in predict
    assert "--disable_tta" not in predict
    assert (done.summary["steps"], done.attempts) == (30, 1)
    assert done.device and done.checkpoint.read_text() == "weights"
    assert "brainfoundry step 30" in (Path(exported.folder) / "logs" / "nnUNetv2_train.log").read_text()

    NnunetRun(exported, SPEC, environment).run()  # nothing is left to do
    assert len(calls(exported)) == 3
    assert trained(exported) == done


def test_plans_and_flips(exported: Export, environment: Environment) -> None:
    spec = RunSpec(plans="resenc_l", flips=False)
    plan, train, predict = NnunetRun(exported, spec, environment).commands()
    assert plan[plan.index("-pl") + 1] == "nnUNetPlannerResEncL"
    assert train[train.index("-p") + 1] == predict[predict.index("-p") + 1] == "nnUNetResEncUNetLPlans"
    assert predict[-1] == "--disable_tta"


def test_a_training_that_died_goes_on(exported: Export, environment: Environment) -> None:
    crash = Path(exported.folder) / "crash"
    crash.write_text("")
    with pytest.raises(
        DataError,
        match=r"nnUNetv2_train ended with status 1: RuntimeError: no memory left \[file .*train\.log",
    ):
        NnunetRun(exported, SPEC, environment).run()
    crash.unlink()
    done = NnunetRun(exported, SPEC, environment).run()
    assert [line.split()[0] for line in calls(exported)] == ["plan", "train", "train", "predict"]
    assert done.attempts == 2


def test_a_training_that_is_killed_takes_its_workers_along(
    exported: Export, environment: Environment
) -> None:
    (Path(exported.folder) / "killed").write_text("")  # its worker sleeps, and keeps the output open
    with pytest.raises(DataError, match=r"nnUNetv2_train was killed by signal 9: brainfoundry step 30"):
        NnunetRun(exported, SPEC, environment).run()


def test_half_a_prediction_is_made_again(exported: Export, environment: Environment) -> None:
    NnunetRun(exported, SPEC, environment).run()
    first, second = (exported.prediction(case) for case in exported.of("test"))
    whole, kept = first.read_bytes(), second.stat().st_mtime_ns
    first.write_bytes(whole[: len(whole) // 2])
    NnunetRun(exported, SPEC, environment).run()
    assert first.read_bytes() == whole
    assert second.stat().st_mtime_ns == kept
    assert [line.split()[0] for line in calls(exported)] == ["plan", "train", "predict", "predict"]


def test_another_run_in_the_folder_is_refused(exported: Export, environment: Environment) -> None:
    NnunetRun(exported, SPEC, environment).run()
    with pytest.raises(ConfigError, match="holds another run: steps was 30, now it is 60"):
        NnunetRun(exported, RunSpec(steps=60, epoch_steps=20), environment).run()
    newer = Environment(python=environment.python, version="10", cuda=False)
    with pytest.raises(ConfigError, match=r"nnunetv2 was 9\.9, now it is 10"):
        NnunetRun(exported, SPEC, newer).run()


def test_two_at_once_are_refused(exported: Export, environment: Environment) -> None:
    with (
        alone(Path(exported.folder)),
        pytest.raises(ClusterError, match="nnU-Net is at work in this folder"),
    ):
        NnunetRun(exported, SPEC, environment).run()


def test_environments_that_will_not_do(tmp_path: Path, exported: Export) -> None:
    install = r"Fix: pip install 'brainfoundry\[nnunet\]'.*nnunet-env/bin/pip install nnunetv2"
    with pytest.raises(ConfigError, match=f"nnunetv2 is not installed for this Python.*{install}"):
        find_environment(make_python(tmp_path / "bare", installed=False))
    with pytest.raises(ConfigError, match=r"nnunetv2 9\.9 finds no trainer outside itself"):
        find_environment(make_python(tmp_path / "old", trainers=False))
    with pytest.raises(ConfigError, match=f"this Python does not start.*{install}"):
        find_environment(str(tmp_path / "nowhere" / "python"))
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        NnunetRun(exported, SPEC, find_environment(make_python(tmp_path / "env")), device="cuda")
    with pytest.raises(ConfigError, match="--epoch-steps 0"):
        RunSpec(epoch_steps=0)


def test_nothing_of_this_environment_reaches_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('from another environment')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert find_environment(make_python(tmp_path / "env")).version == VERSION


DRIVER = """
import sys
from brainfoundry.experiments.nnunet.environment import find_environment
from brainfoundry.experiments.nnunet.export import Export
from brainfoundry.experiments.nnunet.run import NnunetRun, RunSpec
NnunetRun(Export.open(sys.argv[1]), RunSpec(steps=30, epoch_steps=20), find_environment(sys.argv[2])).run()
"""


@pytest.mark.slow
def test_nnunet_dies_with_the_job(exported: Export, environment: Environment) -> None:
    hang, pid = (Path(exported.folder) / name for name in ("hang", "pid"))
    hang.write_text("")
    job = subprocess.Popen([sys.executable, "-c", DRIVER, exported.folder, environment.python])
    deadline = time.monotonic() + 120
    while not pid.exists() or not pid.read_text():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    job.send_signal(signal.SIGKILL)
    job.wait()
    while _alive(int(pid.read_text())):
        assert time.monotonic() < deadline, "nnU-Net goes on without its job"
        time.sleep(0.1)
    hang.unlink()
    assert NnunetRun(exported, SPEC, environment).run().attempts == 2


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that waits to be buried does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
