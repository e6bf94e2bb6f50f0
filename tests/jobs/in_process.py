"""A job script run in this process, with its exit status and what it printed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from brainfoundry.core.job import run_job

JOBS = Path(__file__).resolve().parents[2] / "jobs"

Run = Callable[..., tuple[int, str, str]]
"""Called with arguments of the command line: exit status, stdout, stderr."""


def load_job(name: str) -> ModuleType:
    """The script jobs/NAME.py as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"{name}_job", JOBS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def runner(job: ModuleType, config: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a loaded job."""

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_job(config, job.main, description=job.__doc__, argv=[str(a) for a in argv])
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call
