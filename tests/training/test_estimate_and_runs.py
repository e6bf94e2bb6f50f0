"""What a run is called, where it lives, and what it is said to cost."""

from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.training.config import ClusterConfig, DataConfig, KeepConfig, OptimConfig, PretrainConfig
from brainfoundry.training.estimate import estimate
from brainfoundry.training.presets import DEMO, PAPER, PRESETS, REFERENCE
from brainfoundry.training.runs import default_name, find_place


def test_the_paper_preset_has_the_papers_step() -> None:
    cost = estimate(PAPER, 39_504)
    assert (cost["crops_per_step"], cost["views_per_step"], cost["subjects_per_step"]) == (256, 512, 128)
    assert PAPER.cluster.workers == 64 and PAPER.data.crop == (96, 96, 96) and PAPER.optim.steps == 200_000
    assert cost["epochs"] == pytest.approx(648, abs=1)


def test_estimates_scale_with_what_they_depend_on() -> None:
    base = estimate(PAPER, 39_504)
    twice = estimate(replace(PAPER, optim=replace(PAPER.optim, steps=400_000)), 39_504)
    assert twice["gpu_hours_low"] == pytest.approx(2 * base["gpu_hours_low"])
    halved = estimate(replace(PAPER, cluster=replace(PAPER.cluster, workers=32)), 39_504)
    assert halved["gpu_hours_low"] == pytest.approx(base["gpu_hours_low"])
    assert halved["days_low"] == pytest.approx(2 * base["days_low"])
    fp32 = estimate(replace(PAPER, optim=replace(PAPER.optim, precision="fp32")), 39_504)
    assert fp32["memory_gb_per_worker"] > base["memory_gb_per_worker"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_are_valid(preset: PretrainConfig) -> None:
    preset.check()
    assert preset.data.groups_per_step % preset.cluster.workers == 0


def test_the_reference_preset_does_what_the_code_did() -> None:
    assert (REFERENCE.data.frame, REFERENCE.data.intensity, REFERENCE.model.merging) == (
        "reference",
        "ct_window",
        "legacy",
    )
    assert (REFERENCE.optim.steps, REFERENCE.optim.lr, REFERENCE.keep.best_by) == (
        100_000,
        4e-4,
        "reconstruction",
    )


def test_the_same_configuration_gets_the_same_name_wherever_it_runs() -> None:
    name = default_name(DEMO, "m")
    elsewhere = replace(DEMO, cluster=ClusterConfig(workers=2), keep=KeepConfig(), storage="s3://b/x")
    assert default_name(elsewhere, "m") == name
    assert default_name(DEMO, "other scans") != name
    assert default_name(replace(DEMO, optim=replace(DEMO.optim, lr=2e-3)), "m") != name
    assert name.startswith("pretrain-ukb-demo-nano-")


def make_run(folder: Path, step: int, *, done: bool) -> None:
    files.write_bytes(str(folder / "config.yaml"), b"")
    files.write_bytes(str(folder / "checkpoints" / f"step-{step:08d}" / "card.json"), b"{}")
    if done:
        files.write_bytes(str(folder / "summary.json"), b"{}")


def test_resume_auto_never_and_must(tmp_path: Path) -> None:
    config = replace(DEMO, name="r", optim=OptimConfig(steps=20))
    with pytest.raises(ConfigError, match="no checkpoint of run r"):
        find_place(replace(config, resume="must"), str(tmp_path), "m")
    assert find_place(config, str(tmp_path), "m").state == "new"
    make_run(tmp_path / "r", 10, done=False)
    place = find_place(config, str(tmp_path), "m")
    assert (place.state, place.step) == ("unfinished", 10)
    assert find_place(replace(config, resume="never"), str(tmp_path), "m").name == "r-2"
    make_run(tmp_path / "r", 20, done=True)
    assert find_place(config, str(tmp_path), "m").state == "finished"
    make_run(tmp_path / "r-2", 20, done=True)
    assert find_place(replace(config, resume="never"), str(tmp_path), "m").name == "r-3"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(DEMO, optim=replace(DEMO.optim, steps=0)), "--optim.steps is 0"),
        (replace(DEMO, optim=replace(DEMO.optim, accumulate=3)), "--optim.accumulate 3 does not divide"),
        (replace(DEMO, data=DataConfig(crops_per_subject=1, subjects_per_group=1)), "nothing to contrast"),
        (replace(DEMO, name="a/b"), "cannot name a folder"),
    ],
)
def test_impossible_configurations_are_refused(config: PretrainConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.check()
