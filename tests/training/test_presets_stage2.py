"""Stage 2's presets have the values they name, and its jobs offer them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.estimate import estimate
from brainfoundry.training.objectives import objective_of
from brainfoundry.training.presets_stage2 import (
    ATLAS,
    ATLAS_PAPER,
    ATLAS_PAPER_TABLE3,
    ATLAS_REFERENCE,
    BRATS,
    BRATS_PAPER,
    BRATS_REFERENCE,
)
from brainfoundry.training.runs import default_name

ALL = [
    (f"{job}-{name}", preset)
    for job, presets in (("brats", BRATS), ("atlas", ATLAS))
    for name, preset in presets.items()
]


@pytest.mark.parametrize(("name", "preset"), ALL, ids=[name for name, _ in ALL])
def test_presets_are_valid_and_named_for_their_job(name: str, preset: PretrainConfig) -> None:
    preset.check()
    assert preset.data.groups_per_step % preset.cluster.workers == 0
    assert preset.optim.warmup < preset.optim.steps
    objective_of(preset).check_crop(preset.data.crop)
    EncoderSpec(size=preset.model.size, in_channels=4, merging=preset.model.merging)
    assert name == f"{preset.job.removeprefix('pretrain-')}-{preset.preset}"
    assert default_name(preset, "m").startswith(f"{preset.job}-{preset.preset}-{preset.model.size}-")


def test_brats_as_the_paper_says() -> None:
    cost = estimate(BRATS_PAPER, 1_001)
    # 2 GPUs, 2 subjects each, 2 crops a subject, 2 views a crop.
    assert (cost["subjects_per_step"], cost["crops_per_step"], cost["views_per_step"]) == (4, 8, 16)
    optim = BRATS_PAPER.optim
    assert (optim.lr, optim.steps, optim.warmup, optim.weight_decay) == (1e-4, 50_000, 500, 0.1)
    assert (BRATS_PAPER.cluster.workers, BRATS_PAPER.data.crop) == (2, (96, 96, 96))
    assert BRATS_PAPER.init.mode == "paper"


def test_brats_as_the_code_was_launched() -> None:
    optim, data, model = BRATS_REFERENCE.optim, BRATS_REFERENCE.data, BRATS_REFERENCE.model
    assert (optim.lr, optim.weight_decay, optim.steps, optim.precision) == (6e-6, 0.1, 50_000, "fp32")
    assert (data.intensity, data.frame, data.subjects_per_group, data.groups_per_step) == (
        "ct_window",
        "reference",
        2,
        2,
    )
    assert (model.merging, BRATS_REFERENCE.init.mode) == ("legacy", "reference")


def test_atlas_by_text_and_by_table_3() -> None:
    # 600 epochs: each of the 555 subjects that are not held out, 600 times.
    assert estimate(ATLAS_PAPER, 555)["epochs"] == pytest.approx(600, abs=0.1)
    assert (ATLAS_PAPER.optim.lr, ATLAS_PAPER.cluster.workers) == (5e-3, 4)
    assert (ATLAS_PAPER_TABLE3.optim.lr, ATLAS_PAPER_TABLE3.optim.steps) == (3e-3, 600)
    assert {
        p.data.groups_per_step * p.data.subjects_per_group for p in (ATLAS_PAPER, ATLAS_PAPER_TABLE3)
    } == {16}
    assert estimate(ATLAS_REFERENCE, 524)["epochs"] == 600
    assert (ATLAS_REFERENCE.optim.lr, ATLAS_REFERENCE.optim.weight_decay) == (1e-4, 0.0)


@pytest.mark.parametrize(("job", "presets"), [("pretrain_brats", BRATS), ("pretrain_atlas", ATLAS)])
def test_the_jobs_explain_units_and_name_their_presets(
    job: str,
    presets: dict[str, PretrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{job}.py", "--help"])
    script = Path(__file__).resolve().parents[2] / "jobs" / f"{job}.py"
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.split())
    for name in presets:
        assert f"--preset {name}" in text
    for words in ("Crop in voxels along R-L, P-A, I-S", "Optimiser steps", "--init.checkpoint", "Stage 2"):
        assert words in text
