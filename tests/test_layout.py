"""The plan of the house, held by tests: names, import directions, file sizes, what no file may contain."""

from __future__ import annotations

import ast
import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.job_cluster import JobCluster

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "brainfoundry"

# docs/design.md: imports run one way, from later to earlier.
ROOMS = (
    "core",
    "cohorts",
    "reports",
    "store",
    "quality",
    "stream",
    "models",
    "pretext",
    "tasks",
    "inference",
    "training",
    "prediction",
    "experiments",
    "benchmarks",
)
BELOW_TRAINING = ROOMS[: ROOMS.index("training")]
TRAINING_ONLY = ("ray.train", "ray.tune", "mlflow")
EXCEPTION = Path("stream") / "ray_train_data.py"  # must subclass ray.train.DataConfig
MAX_LINES = 400


# ---------------------------------------------------------------------------------------------------------
# `platform/` beside the standard library's `platform`


def test_no_init_directly_in_platform() -> None:
    # With it, the folder would be a package and win over the standard library's module.
    assert (ROOT / "platform").is_dir()
    assert not (ROOT / "platform" / "__init__.py").exists()


SHOW = "import platform; print(platform.__file__); assert platform.system(); import brainfoundry"


@pytest.mark.parametrize("how", ["-c", "-m", "script in the root", "script in jobs", "PYTHONPATH=."])
def test_standard_library_platform_from_the_root(how: str, tmp_path: Path) -> None:
    # A stand-in for the root, so that no script is written into the repository.
    (tmp_path / "platform").symlink_to(ROOT / "platform")
    (tmp_path / "jobs").mkdir()
    script = tmp_path / ("show.py" if how == "script in the root" else "jobs/show.py")
    script.write_text(SHOW.replace("; ", "\n") + "\n")
    command = {"-c": ["-c", SHOW], "-m": ["-m", "platform"]}.get(how, [str(script)])
    env = {**os.environ, "PYTHONPATH": "." if how == "PYTHONPATH=." else ""}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if how == "-m":
        assert platform.machine() in done.stdout
    else:
        assert Path(done.stdout.strip()) == Path(platform.__file__)


def test_standard_library_platform_in_pytest() -> None:
    assert platform.system()
    assert not Path(platform.__file__).is_relative_to(ROOT / "platform")


def _where() -> tuple[str, str, str]:
    import platform

    import brainfoundry

    return platform.__file__, platform.system(), str(brainfoundry.__file__)


def test_standard_library_platform_in_a_ray_worker(ray_local: int) -> None:
    import ray

    file, system, package = ray.get(ray.remote(_where).remote())
    assert not Path(file).is_relative_to(ROOT / "platform")
    assert system == platform.system()
    assert Path(package).is_relative_to(PACKAGE)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["literal", "--working-dir ."])
def test_standard_library_platform_in_a_submitted_job(way: str, job_cluster: JobCluster) -> None:
    script = job_cluster.folder / "platform_probe.py"
    script.write_text(
        "#!/usr/bin/env python\nimport os, platform\nimport ray\n"
        "def where():\n    import platform, brainfoundry\n    return platform.system(), platform.__file__\n"
        "print('driver', os.getcwd(), platform.system(), platform.__file__)\n"
        "ray.init()\nprint('worker', *ray.get(ray.remote(where).remote()))\n"
    )
    script.chmod(0o755)
    args = [script] if way == "literal" else ["--working-dir", ".", "--", "python", script]
    done = job_cluster.submit(args)
    assert done.returncode == 0, done.stdout + done.stderr
    driver = re.search(r"driver (\S+) (\S+) (\S+)", done.stdout)
    worker = re.search(r"worker (\S+) (\S+)", done.stdout)
    assert driver and worker, done.stdout
    assert driver.group(2) == worker.group(1) == platform.system()
    assert driver.group(3) == worker.group(2) == platform.__file__
    # The literal command runs where `ray start` ran; an uploaded one in its own copy.
    assert (driver.group(1) == str(ROOT)) is (way == "literal")


# ---------------------------------------------------------------------------------------------------------
# Import directions


def sources() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert found, "the package has no files?"
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "brainfoundry" else None


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all a file imports, and of each `ray.x` it reaches through `ray`."""
    here = ["brainfoundry", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def wrong_directions(file: Path) -> list[str]:
    inside = file.relative_to(PACKAGE).parts
    own = inside[0] if len(inside) > 1 else None
    wrong = []
    for line, name in imports_of(file):
        other = room_of(name)
        if own is None or other is None or other not in ROOMS:
            continue
        if ROOMS.index(other) > ROOMS.index(own):
            wrong.append(f"{'/'.join(inside)}:{line} imports {name}: {own} may not know of {other}")
    return wrong


def forbidden_libraries(file: Path) -> list[str]:
    inside = file.relative_to(PACKAGE)
    if inside == EXCEPTION or inside.parts[0] not in BELOW_TRAINING:
        return []
    return [
        f"{inside}:{line} imports {name}"
        for line, name in imports_of(file)
        if any(name == library or name.startswith(f"{library}.") for library in TRAINING_ONLY)
    ]


def test_every_room_is_known() -> None:
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in sources() if path.parent != PACKAGE}
    assert rooms <= set(ROOMS), f"put {rooms - set(ROOMS)} in its place in ROOMS and in docs/design.md"


def test_imports_run_one_way() -> None:
    wrong = [line for file in sources() for line in wrong_directions(file)]
    assert not wrong, "\n".join(wrong)


def test_no_training_library_below_training() -> None:
    wrong = [line for file in sources() for line in forbidden_libraries(file)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "line", "check"),
    [
        ("core", "from brainfoundry.store.reader import ShardSet", wrong_directions),
        ("stream", "from ..training import engine", wrong_directions),
        ("models", "def f():\n    import brainfoundry.pretext.base", wrong_directions),
        ("store", "from ray import train", forbidden_libraries),
        ("stream", "import ray\n\n\ndef f():\n    return ray.train.get_context()", forbidden_libraries),
        ("cohorts", "import mlflow.tracking", forbidden_libraries),
    ],
)
def test_the_walk_sees(
    room: str, line: str, check: Callable[[Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / room).mkdir()
    file = tmp_path / room / "bad.py"
    file.write_text(line + "\n")
    assert len(check(file)) == 1


# ---------------------------------------------------------------------------------------------------------
# Files


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Every file that is, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    return tuple(file for file in files if file.is_file())


def texts() -> Iterator[tuple[str, str]]:
    for file in project_files():
        try:
            yield str(file.relative_to(ROOT)), file.read_text()
        except UnicodeDecodeError:
            continue


def test_files_are_short() -> None:
    long = {
        name: text.count("\n")
        for name, text in texts()
        if name.endswith(".py") and text.count("\n") > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: {long}"


# Written so that this file does not match itself.
INDEX = re.compile(
    r"\b(test[.])?pypi[.]org|files[.]pythonhosted|download[.]pytorch|conda[.]anaconda"
    r"|--(extra-)?index[-]url|--find[-]links|PIP_(EXTRA_)?INDEX[_]URL"
)


def test_no_package_index_in_any_file() -> None:
    # Where packages come from is the user's configuration: a hospital has a mirror of its own.
    found = [f"{name}: {match.group()}" for name, text in texts() for match in INDEX.finditer(text)]
    assert not found, found


def test_no_path_of_somebodys_machine() -> None:
    own = re.compile(r"(?<![\w.:/}$])/(?:home|Users|root|work|opt|mnt|media)/\w+")
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for name, text in texts()
        for match in own.finditer(text)
    ]
    found += [f"{name}: {ROOT}" for name, text in texts() if len(ROOT.parts) > 2 and f"{ROOT}/" in text]
    assert not found, found


def test_jobs_can_be_executed() -> None:
    # `ray job submit jobs/pretrain_ukb.py` hands the file to /bin/sh.
    jobs = sorted((ROOT / "jobs").glob("*.py"))
    assert jobs
    for job in jobs:
        assert os.access(job, os.X_OK), f"{job.name} is not executable: chmod +x"
        assert job.read_text().startswith("#!/usr/bin/env python\n"), f"{job.name} has no shebang"


def test_every_locked_package_is_pinned() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()]
    unpinned = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_]+", line)]
    assert not unpinned, f"neither pinned nor plain: {unpinned}"
