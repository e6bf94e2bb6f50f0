"""Study files: what they say, what their presets replace, and how each mistake in them is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.axes import DEFAULTS, axis_value, channels, named, parse_only
from brainfoundry.experiments.spec import load_study, read_study
from brainfoundry.experiments.study import StudySpec
from tests.experiments.cohort_infos import study


def test_a_study_reads_back_what_it_says() -> None:
    spec = read_study(
        study(
            variants={"long": {"optim.steps": 320}},
            choose={
                "options": {"optim.lr": [1e-3, 2e-3]},
                "per": ["init"],
                "at": {"share": 5, "draw": [2, 3]},
            },
            primary={"metric": "dice_mean", "arms": ["scratch", "stage1"], "where": {"share": 5}},
        )
    )
    again = read_study(yaml.safe_load(yaml.safe_dump(spec.to_dict())))
    assert again == spec
    assert again.hash == spec.hash
    assert spec.choose is not None and spec.choose.by == "dice_mean"  # the preset's --keep.best-by
    assert spec.primary is not None and spec.primary.axis == "init"


def test_the_hash_knows_every_part() -> None:
    hashes = {
        read_study(study(**changes)).hash
        for changes in ({}, {"title": "other"}, {"grid": [{"size": "nano"}]}, {"test": {"on": "test"}})
    }
    assert len(hashes) == 3  # the last is the default, said aloud


def test_yaml_reads_the_key_on_as_true(tmp_path: Path) -> None:
    content = study(grid=[{"size": "nano", "fold": [0, 1]}])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content) + "test: {on: fold}\n")
    assert load_study(str(path)).test == "fold"


def test_a_preset_replaces_keys_and_adds_to_the_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    presets = {"paper": {}, "small": {"grid": [{"size": "nano"}]}, "named": {"name": "other"}}
    path.write_text(yaml.safe_dump(study(presets=presets)))
    whole = load_study(str(path))
    assert load_study(str(path), "paper") == whole
    small = load_study(str(path), "small")
    assert (small.name, len(small.points())) == ("mine-small", 1)
    assert small.stages == whole.stages
    assert load_study(str(path), "named").name == "other"


def test_a_repeated_trial_counts_once() -> None:
    grid = [
        {"size": "nano", "init": ["scratch", "stage1"], "pretrain_seed": [0, 1]},
        {"size": "nano", "share": 100.0},
        {"family": "segresnet", "size": ["tiny", "small"]},
    ]  # fmt: skip
    points = read_study(study(grid=grid)).points()
    told = [(p["family"], p["size"], p["init"], p["pretrain_seed"]) for p in points]
    assert told == [
        ("swinunetr", "nano", "scratch", 0),  # which has no pretraining to seed
        ("swinunetr", "nano", "stage1", 0),
        ("swinunetr", "nano", "stage1", 1),
        ("segresnet", "tiny", "scratch", 0),  # which has no size
    ]
    assert all(list(point) == list(DEFAULTS) for point in points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("grids: []", "unknown key 'grids'. Fix: did you mean grid?"),
        ("version: 2", "version is 2. Fix: this program reads version 1"),
        ("name: a/b", "name: 'a/b' cannot name a folder"),
        ("task: atlas", "task: 'atlas', but finetune is of task brats"),
        ("tables: [table44]", "tables: unknown value 'table44'. Fix: did you mean table4?"),
        ("grid: []", "grid: no trials"),
        ("grid: [{shares: [5]}]", "grid.1: unknown axis 'shares'. Fix: did you mean share?"),
        ("grid: [{}, {size: tinny}]", "grid.2.size: unknown size 'tinny'. Fix: did you mean tiny?"),
        ("grid: [{init: stage11}]", "grid.1.init: unknown init 'stage11'. Fix: did you mean stage1?"),
        ("grid: [{variant: long}]", "grid.1.variant: unknown variant 'long'. Fix: choose one of base"),
        (
            "grid: [{family: segresnett}]",
            "grid.1.family: unknown family 'segresnett'. Fix: did you mean segresnet?",
        ),
        ("grid: [{objective: mae}]", "grid.1.objective: unknown objective 'mae'. Fix: choose one of "),
        ("grid: [{share: [5, 0]}]", "grid.1.share: share is 0. Fix: give per cent above 0, up to 100"),
        ("grid: [{share: 101}]", "grid.1.share: share is 101"),
        ("grid: [{share: true}]", "grid.1.share: share is True"),
        ("grid: [{draw: -1}]", "grid.1.draw: draw is -1. Fix: give 0, 1, 2, ..."),
        ("grid: [{fold: first}]", "grid.1.fold: fold is 'first'. Fix: give 0, 1, 2, ... or none"),
        (
            "grid: [{modalities: T1w+T1w=FLAIR}]",
            "grid.1.modalities: modalities 'T1w+T1w=FLAIR' name no channels",
        ),
        ("grid: [{size: []}]", "grid.1.size: no value"),
        ("grid: [{size: [[nano]]}]", "grid.1.size: unknown size ['nano']"),
        (
            "grid: [{family: segresnet, init: [stage1]}]",
            "family segresnet cannot start from an encoder of ours",
        ),
        ("inits: {two: [stage1, stage3]}", "inits.two: unknown value 'stage3'. Fix: did you mean stage2?"),
        ("inits: {scratch: [stage1]}", "inits.scratch: ['stage1'] is no chain"),
        ("variants: {base: {optim.steps: 4}}", "variants.base: has options"),
        (
            "variants: {long: {optim.step: 4}}",
            "variants.long: unknown option --optim.step. Fix: did you mean --optim.steps?",
        ),
        (
            "variants: {long: {data.fold: 4}}",
            "variants.long: data.fold is not an option here. Fix: use the axis fold",
        ),
        ("variants: {long: {name: x}}", "variants.long: name is not an option here. Fix: leave it out"),
        ("test: {'on': folds}", "test: unknown value 'folds'. Fix: did you mean fold?"),
        ("test: fold", "test: named values are expected here"),
        ("test: {'on': fold}", "test: on fold, but the grid has trials without one. Fix: add fold"),
        (
            "externals: {nnunetv2: 'run {folds}'}",
            "externals.nnunetv2: unknown value 'folds'. Fix: did you mean fold?",
        ),
        (
            "externals: {nnunetv2: 'run {fold'}",
            "externals.nnunetv2: expected '}' before end of string. Fix: write",
        ),
        ("inits: {mine: /a/run}, stages: {}", "inits.mine: unknown value '/a/run'. Fix: leave it out"),
        ("finetune: {cohort: brats, recipe: brats, preset: [demo]}", "finetune: no preset"),
        (
            "finetune: {cohort: brats, recipe: bratz}",
            "finetune: unknown recipe 'bratz'. Fix: did you mean brats?",
        ),
        (
            "finetune: {cohort: brats, recipe: brats, preset: papers}",
            "recipe brats has no preset 'papers'. Fix: did you mean paper?",
        ),
        ("finetune: {recipe: brats}", "finetune: no cohort"),
        ("primary: {metric: dice, arms: [scratch, stage1]}", "primary.metric: unknown value 'dice'"),
        ("primary: {metric: dice_mean, arms: [scratch]}", "primary.arms: 1 arms"),
        (
            "primary: {metric: dice_mean, arms: [scratch, stage1], where: {share: 10}}",
            "primary: no trial in the grid has share 10, init scratch. Fix: share: ",
        ),
        (
            "primary: {metric: dice_mean, arms: [scratch, stage1], smallest_effect: big}",
            "primary.smallest_effect: 'big' is no number",
        ),
        ("choose: {options: {}}", "choose.options: nothing to choose from"),
        ("choose: {options: {optim.lr: [fast]}}", "choose.options: "),
        (
            "choose: {options: {optim.lr: [0.001]}, per: [init]}",
            "choose: says nothing of axis share, which has several values",
        ),
        ("search: {space: {optim.lr: {normal: [0, 1]}}}", "search.space.optim.lr: unknown key 'normal'"),
        ("search: {space: {optim.lr: {loguniform: [0, 1]}}}", "search.space.optim.lr: loguniform of [0, 1]"),
        (
            "search: {space: {optim.lr: {uniform: [1, 2]}}, algorithm: optunna}",
            "search.algorithm: unknown value 'optunna'. Fix: did you mean optuna?",
        ),
        ("search: {space: {optim.lr: {uniform: [1, 2]}}, trials: 0}", "search: nothing to search"),
        (
            "variants: {slow: {optim.lr: 1.0e-5}}, search: {space: {optim.lr: {uniform: [1, 2]}}}",
            "search.space.optim.lr: variant slow sets optim.lr too",
        ),
    ],
)
def test_mistakes_are_told_with_file_key_and_fix(changes: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_study(study(**yaml.safe_load(f"{{{changes}}}")), file="mine.yaml")
    assert caught.value.file == "mine.yaml"
    told = f"{caught.value.problem}. Fix: {caught.value.fix}"
    assert message in told, told


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("subset: labels", "stages.s.subset: unknown value 'labels'"),
        ("subset: labelled", "cohort ukb is not that of finetune"),
        ("options: {optim.lrr: 1}", "stages.s.options: unknown option --optim.lrr"),
        ("options: {optim.lr: fast}", "stages.s.options: "),
        ("option: {}", "stages.s: unknown key 'option'. Fix: did you mean options?"),
    ],
)
def test_mistakes_in_a_stage(stage: str, message: str) -> None:
    read = {"cohort": "ukb", "recipe": "ukb", **yaml.safe_load(f"{{{stage}}}")}
    with pytest.raises(ConfigError) as caught:
        read_study(study(stages={"s": read}, inits={}, grid=[{"size": "nano"}]))
    assert message in f"{caught.value.problem}. Fix: {caught.value.fix}"


def test_options_of_an_objective_are_held_against_each_objective_of_the_grid() -> None:
    stages = study()["stages"]
    options = {"model.objective_options": ["temperature=0.1"]}
    stages["stage1"]["options"] = options
    read_study(study(stages=stages))
    grid = [{"size": "nano", "init": "stage1", "objective": "masked_autoencoder"}]
    with pytest.raises(ConfigError, match=r"stages.stage1: masked_autoencoder has no option 'temperature'"):
        read_study(study(stages=stages, grid=grid))


def test_a_choice_on_tested_folds_is_made_for_each() -> None:
    grid = [{"size": "nano", "fold": [0, 1]}]
    choose = {"options": {"optim.lr": [1e-3, 2e-3]}, "at": {"fold": 0}}
    with pytest.raises(ConfigError, match=r"choose.per: without fold, a choice would learn from folds"):
        read_study(study(grid=grid, choose=choose, test={"on": "fold"}))
    read_study(study(grid=grid, choose={**choose, "at": {}, "per": "fold"}, test={"on": "fold"}))


def test_without_finetune_the_pretraining_runs_are_the_trials() -> None:
    content = study(grid=[{"size": ["nano", "tiny"], "init": "stage1"}])
    del content["finetune"], content["task"]
    assert read_study(content).task == ""
    for block, message in (
        ({"init": "scratch"}, "trials without a stage"),
        ({"init": "stage1", "share": 5}, "axis share"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_study({**content, "grid": [block]})
    with pytest.raises(ConfigError, match="nothing is fine-tuned"):
        read_study({**content, "primary": {"metric": "dice_mean", "arms": ["scratch", "stage1"]}})


def test_a_key_that_stands_twice_is_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(study()) + "grid: [{size: tiny}]\n")
    with pytest.raises(ConfigError, match="key 'grid' stands twice"):
        load_study(str(file))


def test_where_a_study_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown study 'tabel9'.*did you mean table9, or give the path"):
        load_study("tabel9")
    with pytest.raises(ConfigError, match="no such study file"):
        load_study(str(tmp_path / "none.yaml"))
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot read the study"):
        load_study(str(tmp_path / "odd.yaml"))
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="named values are expected"):
        load_study(str(tmp_path / "empty.yaml"))
    with pytest.raises(ConfigError, match=r"no preset 'papers'.*did you mean paper"):
        load_study("table9", "papers")


def test_axis_values_have_one_form() -> None:
    assert [axis_value("share", text, {}) for text in (5, 5.0, "5", 2.5)] == [5, 5, 5, 2.5]
    assert axis_value("fold", "none", {}) is None
    assert channels("all") == ((), ())
    assert channels("T1w+FLAIR=T1w") == (("T1w", "FLAIR"), ("FLAIR=T1w",))


def test_names_say_what_is_off_its_default() -> None:
    point = {**DEFAULTS, "size": "small", "init": "stage1+2", "share": 5}
    assert named(point) == "ft-small-stage1+2-share5-draw0"
    assert (
        named({**DEFAULTS, "fold": 3, "modalities": "T1w+FLAIR=T1w"}) == "ft-tiny-scratch-fold3-T1w+FLAIR.T1w"
    )
    assert named({**DEFAULTS, "family": "segresnet", "draw": 2}) == "ft-segresnet-draw2"
    assert named({**DEFAULTS, "pretrain_seed": 1}, "stage1") == "stage1-tiny-pretrain_seed1"


def test_only_is_held_against_the_points(tiny: StudySpec) -> None:
    points = tiny.points()
    assert parse_only(["share=5,100", "init=scratch", "fold=none"], points) == {
        "share": {5, 100}, "init": {"scratch"}, "fold": {None},
    }  # fmt: skip
    for text, message in (
        ("share", "not axis=value"),
        ("shares=5", "unknown axis 'shares'"),
        ("share=10", "no trial of the study has share '10'.*choose one of 5, 100|did you mean 100"),
        ("init=stage2", "did you mean stage1"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_only([text], points)


@pytest.fixture
def tiny() -> StudySpec:
    return read_study(study())
