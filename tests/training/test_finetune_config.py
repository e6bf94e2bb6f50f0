"""Configurations of stage 3: presets, epochs as steps, and what can never run."""

from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.core.config import to_yaml
from brainfoundry.core.errors import ConfigError
from brainfoundry.tasks.augment import RECIPES
from brainfoundry.training.config import InitConfig
from brainfoundry.training.estimate import estimate
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.objectives import objective_of
from brainfoundry.training.presets_finetune import ATLAS, BRATS, BRATS_DEMO, BRATS_REFERENCE
from brainfoundry.training.runs import default_name, in_steps


@pytest.mark.parametrize("preset", [*BRATS.values(), *ATLAS.values()], ids=lambda p: f"{p.job}-{p.preset}")
def test_presets_are_valid(preset: FinetuneConfig) -> None:
    preset.check()
    assert preset.stage == "finetune"
    objective = objective_of(preset, "binary" if preset.task.name == "atlas" else "brats2021")
    objective.check_crop(preset.data.crop)
    assert preset.keep.best_by in objective.task.score_names
    cost = estimate(preset, 100)
    assert cost["crops_per_step"] == cost["views_per_step"] == preset.data.groups_per_step
    assert 0 < cost["gpu_hours_low"] < cost["gpu_hours_high"]


def test_the_papers_values() -> None:
    paper, atlas = BRATS["paper"], ATLAS["paper"]
    assert (paper.optim.steps, paper.optim.lr, paper.cluster.workers) == (50_000, 1e-4, 2)
    assert (paper.data.groups_per_step, paper.data.crop) == (4, (128, 128, 128))
    assert (atlas.optim.epochs, atlas.optim.lr, atlas.model.drop_rate) == (600, 1e-4, 0.1)
    assert atlas.data.groups_per_step == 2 * 4 and atlas.augment == RECIPES["atlas"]
    assert (ATLAS["paper-table3"].optim.steps, ATLAS["paper-table3"].optim.lr) == (600, 3e-3)
    assert (BRATS_REFERENCE.optim.epochs, BRATS_REFERENCE.optim.weight_decay) == (300, 1e-5)
    assert BRATS_REFERENCE.init.mode == "reference" and BRATS_REFERENCE.data.intensity == "zscore_crop"


def test_epochs_become_steps() -> None:
    # The released code on a fold of BraTS 2021: 1,000 subjects, 4 a step, 300 epochs, 50 of warm-up, every 5.
    resolved = BRATS_REFERENCE.in_steps(1_000)
    assert resolved.optim.steps == 75_000 and resolved.optim.warmup == 12_500
    assert resolved.keep.validate_every == 1_250
    assert BRATS_DEMO.in_steps(1_000) == BRATS_DEMO
    assert BRATS_REFERENCE.in_steps(1_001).optim.steps == 75_075


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(BRATS_DEMO, data=replace(BRATS_DEMO.data, subjects_per_group=2)), "one crop of one subject"),
        (replace(BRATS_DEMO, optim=replace(BRATS_DEMO.optim, epochs=0.0)), "--optim.epochs is 0.0"),
        (replace(BRATS_DEMO, keep=replace(BRATS_DEMO.keep, overlap=1.0)), "--keep.overlap is 1.0"),
        (replace(BRATS_DEMO, optim=replace(BRATS_DEMO.optim, ema=1.0)), "--optim.ema is 1.0"),
        (replace(BRATS_DEMO, init=InitConfig(layer_decay=0.0)), "--init.layer-decay is 0.0"),
    ],
)
def test_impossible_configurations_are_refused(config: FinetuneConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.check()


def test_a_run_is_named_by_what_decides_its_numbers() -> None:
    name = default_name(BRATS_DEMO, "m")
    assert name.startswith("finetune-brats-demo-nano-")
    other = replace(BRATS_DEMO, init=InitConfig(checkpoint="elsewhere"))
    assert default_name(other, "m") != name
    assert default_name(replace(BRATS_DEMO, keep=replace(BRATS_DEMO.keep, pictures=0)), "m") == name


def test_a_run_in_epochs_keeps_the_steps_it_began_with(tmp_path: Path) -> None:
    config = replace(BRATS_REFERENCE, storage=str(tmp_path))
    first = in_steps(config, str(tmp_path), "m", 1_000)
    assert first.optim.steps == 75_000 and first.name == default_name(config, "m")
    folder = tmp_path / str(first.name)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(first))
    after = in_steps(config, str(tmp_path), "m", 999)  # somebody withdrew
    assert after == first
    longer = replace(config, optim=replace(config.optim, epochs=400.0), name=first.name)
    assert in_steps(longer, str(tmp_path), "m", 999).optim.steps == 99_900
    assert in_steps(replace(config, resume="never"), str(tmp_path), "m", 999).optim.steps == 74_925
    assert in_steps(BRATS_DEMO, str(tmp_path), "m", 7).optim == BRATS_DEMO.optim


def test_only_what_is_counted_in_epochs_is_kept(tmp_path: Path) -> None:
    config = replace(BRATS["paper"], name="r", storage=str(tmp_path))  # steps, and a warm-up in epochs
    first = in_steps(config, str(tmp_path), "m", 1_000)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text(to_yaml(first))
    longer = replace(config, optim=replace(config.optim, steps=60_000))
    again = in_steps(longer, str(tmp_path), "m", 999)
    assert again.optim.steps == 60_000  # as asked: the checkpoint's card then has its say
    assert again.optim.warmup == first.optim.warmup == 12_500
