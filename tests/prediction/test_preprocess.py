"""A command of the user's on every scan: what it may do wrong costs one line."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.prediction.config import command_of
from brainfoundry.prediction.preprocess import preprocess


def run(tmp_path: Path, code: str, timeout_s: float = 60.0) -> Path:
    source, target = tmp_path / "in put.nii.gz", tmp_path / "out.nii.gz"
    source.write_bytes(b"scan")
    command = [
        sys.executable,
        "-c",
        f"import sys, os\nsource, target = sys.argv[1:]\n{code}",
        "{input}",
        "{output}",
    ]
    preprocess(command, source, target, timeout_s=timeout_s, subject="p1")
    return target


def test_the_output_is_the_commands(tmp_path: Path) -> None:
    target = run(tmp_path, "open(target, 'wb').write(open(source, 'rb').read() * 2)")
    assert target.read_bytes() == b"scanscan"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit(3)", r"--preprocess ended with exit status 3 \["),
        ("sys.exit('no brain\\nfound here')", "exit status 1: no brain found here"),
        ("print('x' * 5000, 'the end', file=sys.stderr); sys.exit(1)", "exit status 1: x{20,300} the end"),
        ("print('said here'); sys.exit(1)", "exit status 1: said here"),
        ("os.kill(os.getpid(), 9)", "exit status -9"),
        ("print('done', file=sys.stderr)", "left no output: done"),
    ],
)
def test_a_command_that_fails(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        run(tmp_path, code)
    assert error.value.subject == "p1" and len(error.value.problem) < 400
    assert "try it by hand" in error.value.line()


HANGS = (
    "import subprocess, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "open(target + '.pid', 'w').write(str(child.pid))\ntime.sleep(600)"
)


def test_a_command_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="took more than 3 s"):
        run(tmp_path, HANGS, timeout_s=3)
    assert_child_gone(tmp_path)


def test_a_command_goes_with_the_process_that_wanted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> None:
        while not (tmp_path / "out.nii.gz.pid").exists() or not (tmp_path / "out.nii.gz.pid").read_text():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, HANGS)
    assert_child_gone(tmp_path)


def assert_child_gone(tmp_path: Path) -> None:
    child = int((tmp_path / "out.nii.gz.pid").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the command's child is still there"
        time.sleep(0.05)


def test_no_shell_is_between(tmp_path: Path) -> None:
    source = tmp_path / "$(touch x); a.nii.gz"
    source.write_bytes(b"scan")
    code = "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])"
    preprocess(
        [sys.executable, "-c", code, "{input}", "{output}"],
        source,
        tmp_path / "o",
        timeout_s=60,
        subject="p1",
    )
    assert (tmp_path / "o").read_bytes() == b"scan"
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "o"}


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--preprocess cannot be started.*no-such-tool"):
        preprocess(["no-such-tool", "{input}"], tmp_path / "a", tmp_path / "b", timeout_s=1, subject="p1")


def test_the_option_is_checked_before_anything_starts() -> None:
    assert command_of("") == []
    assert command_of("bet '{input}' {output} -f 0.5") == ["bet", "{input}", "{output}", "-f", "0.5"]
    with pytest.raises(ConfigError, match=r"does not say where \{output\} goes"):
        command_of("bet {input}")
    with pytest.raises(ConfigError, match="cannot be read"):
        command_of("bet '{input} {output}")
