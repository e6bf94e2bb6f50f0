"""A user's own preprocessing, such as skull stripping: a command run on every scan before the network."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from brainfoundry.core.errors import DataError

_TAIL = 300
"""Characters of a failed command's last words that go into the error line."""


def preprocess(command: Sequence[str], source: Path, target: Path, *, timeout_s: float, subject: str) -> None:
    """Run the command on one scan; no shell is between.

    Args:
        command: arguments, {input} and {output} in them.
        source: a local .nii.gz or .nii.
        target: the .nii.gz that must be there afterwards.

    Raises:
        DataError: it failed, took too long or left no output; with the end of what it said.
    """
    places = {"{input}": str(source), "{output}": str(target)}
    arguments = [_filled(part, places) for part in command]

    def failed(problem: str, said: bytes = b"") -> DataError:
        words = " ".join(said.decode(errors="replace").split())[-_TAIL:]
        problem = f"--preprocess {problem}" + (f": {words}" if words else "")
        return DataError(problem, file=source, subject=subject, fix=f"try it by hand: {' '.join(arguments)}")

    try:
        # A session of its own, so that its children can be stopped with it. Tools tell what is wrong on
        # either stream.
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise failed(f"cannot be started: {error}") from error
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        raise failed(f"took more than {timeout_s:g} s", said) from None
    except BaseException:  # this process is to end
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        raise failed(f"ended with exit status {process.returncode}", said)
    if not target.is_file():
        raise failed("left no output", said)


def _filled(part: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        part = part.replace(name, value)
    return part
