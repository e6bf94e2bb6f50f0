"""The Python environment that has nnU-Net, and its commands run in there.

nnU-Net brings its own versions of much that is locked here, so it is called as another program: any Python
that has `nnunetv2` will do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from brainfoundry.core.errors import ConfigError, DataError

INSTALL = (
    "pip install 'brainfoundry[nnunet]', or make an environment of its own: python -m venv nnunet-env; "
    "nnunet-env/bin/pip install nnunetv2; then add --python nnunet-env/bin/python"
)
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Variables that would bring this environment's packages into that one."""
_PROBE_S = 300.0
"""Longest wait for a Python to import torch, on a disk that is cold."""
_SHOWN = 400
"""Characters of the last line of output that an error shows."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python that has nnU-Net."""

    python: str
    version: str
    """Of nnunetv2."""
    cuda: bool


def find_environment(python: str = "") -> Environment:
    """The environment of a Python interpreter.

    Args:
        python: its path; "" = the one that runs this.

    Raises:
        ConfigError: it does not start, has no nnunetv2, or one that takes no trainer of others.
    """
    where = str(Path(python).expanduser().absolute()) if python else sys.executable
    try:
        done = subprocess.run(
            [where, _inside("brainfoundry_launch.py"), "probe"], env=_clean(), capture_output=True, text=True,
            timeout=_PROBE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"this Python does not start: {error}", file=where, fix=INSTALL) from error
    if done.returncode:
        raise ConfigError(f"nnunetv2 cannot be imported: {_last(done.stderr)}", file=where, fix=INSTALL)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["version"] is None:
        raise ConfigError("nnunetv2 is not installed for this Python", file=where, fix=INSTALL)
    if not found["trainers"]:
        raise ConfigError(
            f"nnunetv2 {found['version']} finds no trainer outside itself (nnUNet_extTrainer)", file=where,
            fix="pip install --upgrade nnunetv2: 2.8.1 does",
        )  # fmt: skip
    return Environment(python=where, version=found["version"], cuda=found["cuda"])


def lines_of(
    environment: Environment, command: Sequence[str], variables: Mapping[str, str], log: Path, *, folder: Path
) -> Iterator[str]:
    """Run one of nnU-Net's commands and give its output line by line; all of it goes to a log.

    The command dies with this process, however that ends: nobody is left training when the job is submitted
    again.

    Args:
        command: one of `brainfoundry_launch.COMMANDS`, and its options.
        variables: of the environment, on top of this process's own.
        log: file that is appended to.
        folder: where it runs.

    Raises:
        DataError: it ended with another status than 0; tells its last line and the log.
    """
    argv = [environment.python, "-u", _inside("brainfoundry_launch.py"), *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    last = ""
    with log.open("a") as sink, _started(argv, {**_clean(), **variables}, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sink.write(line)
            sink.flush()
            last = line if line.strip() else last
            yield line.rstrip("\n")
        status = process.wait()
    if status:
        how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
        raise DataError(
            f"{command[0]} {how}: {_last(last)}", file=log,
            fix="read the log; submitted again, it goes on",
        )  # fmt: skip


@contextmanager
def _started(argv: Sequence[str], env: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which it kills when its stdin closes (`inside/`): that is when we die.

    Where it dies itself (out of memory), its workers are killed here: they would hold on to its output.
    """
    process = subprocess.Popen(
        argv, env=env, cwd=folder, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None

    def kill_workers() -> None:
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=kill_workers, daemon=True).start()
    try:
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _inside(name: str) -> str:
    return str(trainers_folder() / name)


def trainers_folder() -> Path:
    """Where nnU-Net finds our trainer (`nnUNet_extTrainer`)."""
    return Path(str(resources.files("brainfoundry.experiments.nnunet.inside")))


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def _last(text: Any) -> str:
    lines = str(text).strip().splitlines()
    return lines[-1].strip()[-_SHOWN:] if lines else "it printed nothing"
