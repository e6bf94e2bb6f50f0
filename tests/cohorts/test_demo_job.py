"""`jobs/make_demo.py`: which cohort goes where, with what numbers. (End to end: the tests of the cohorts.)"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from brainfoundry.cohorts.demo import DemoSpec, DemoSummary
from brainfoundry.cohorts.demo_atlas import AtlasSpec
from brainfoundry.cohorts.demo_brats import BratsSpec
from brainfoundry.cohorts.demo_files import CohortSummary
from brainfoundry.core.errors import ConfigError

JOB = Path(__file__).resolve().parents[2] / "jobs" / "make_demo.py"


@pytest.fixture
def job(monkeypatch) -> tuple[ModuleType, list]:
    """The script as a module, and the calls it makes instead of drawing brains."""
    spec = importlib.util.spec_from_file_location("make_demo_job", JOB)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    calls: list = []

    def ukb(root, spec, *, workers):
        calls.append((root, spec, workers))
        return DemoSummary(root=root, kinds={"healthy": 1}, sessions=1, zips=2, made=0, bytes=5)

    def other(root, spec, *, workers):
        calls.append((root, spec, workers))
        return CohortSummary(root=root, kinds={"with mask": 1}, files=2, made=0, bytes=5)

    monkeypatch.setattr(module, "make_demo_cohort", ukb)
    monkeypatch.setattr(module, "make_brats_cohort", other)
    monkeypatch.setattr(module, "make_atlas_cohort", other)
    return module, calls


def test_default_is_the_healthy_cohort(job, monkeypatch) -> None:
    module, calls = job
    monkeypatch.setenv("BRAINFOUNDRY_HOME", "/data/bf")
    module.main(module.Config())
    assert calls == [("/data/bf/demo/ukb", DemoSpec(), None)]


def test_all_goes_to_one_folder_each(job, monkeypatch, capsys) -> None:
    module, calls = job
    module.main(module.Config(cohort="all", root="/data/demo", n_tumours=3, n_strokes=4, seed=7, workers=2))
    assert calls == [
        ("/data/demo/ukb", DemoSpec(seed=7), 2),
        ("/data/demo/brats", BratsSpec(n_cases=3, seed=7), 2),
        ("/data/demo/atlas", AtlasSpec(n_subjects=4, seed=7), 2),
    ]
    assert "ATLAS-like demo cohort: 1 subjects (1 with mask)" in capsys.readouterr().out
    calls.clear()
    monkeypatch.setenv("BRAINFOUNDRY_HOME", "/data/bf")
    module.main(module.Config(cohort="all"))
    assert [root for root, *_ in calls] == [f"/data/bf/demo/{name}" for name in ("ukb", "brats", "atlas")]


def test_one_cohort_takes_the_root_as_it_is(job) -> None:
    module, calls = job
    module.main(module.Config(cohort="brats", root="/data/mine"))
    assert [root for root, *_ in calls] == ["/data/mine"]


def test_an_impossible_number_is_told_before_any_work(job) -> None:
    module, calls = job
    with pytest.raises(ConfigError, match="n_no_mask is -1"):
        module.main(module.Config(cohort="all", root="/data/demo", n_no_mask=-1))
    assert not calls
