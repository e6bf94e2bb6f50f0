"""The runs of a study: which ancestors are shared, what each run sees, and which names last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.cohort import CohortInfo, cohort_info
from brainfoundry.experiments.node import Node, before, select, waves
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.spec import read_study
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.leak_gate import gate_run
from tests.experiments.cohort_infos import brats, cohorts, study, ukb
from tests.training.labelled import make_labelled, with_shares

NO_FOLDS = brats(subjects={("train", None): 9, ("test", None): 2})
FOLDS = [{"size": "nano", "init": ["scratch", "stage1", "stage1+2"], "fold": [0, 1]}]


def plan(
    content: Mapping[str, Any] | None = None,
    infos: Mapping[str, CohortInfo] | None = None,
    **options: Any,
) -> tuple[Node, ...]:
    return plan_study(read_study(content or study()), infos or cohorts(), "/runs", **options)


def ids(nodes: Sequence[Node]) -> list[str]:
    """Names without their hash."""
    return [node.id.rpartition("-")[0] for node in nodes]


def only(nodes: Sequence[Node], name: str) -> Node:
    (found,) = [node for node in nodes if node.id.startswith(name)]
    return found


def test_ancestors_come_once_and_first() -> None:
    nodes = plan()
    assert ids(nodes)[0] == "stage1-nano"
    assert sorted(name for name in ids(nodes) if name.startswith("stage")) == ["stage1-nano", "stage2-nano"]
    assert len(nodes) == 2 + 12
    seen: set[str] = set()
    for node in nodes:
        assert set(before(node)) <= seen
        seen.add(node.id)
    depths = [{node.role for node in wave} for wave in waves(nodes)]
    assert depths == [{"ancestor", "trial"}, {"ancestor", "trial"}, {"trial"}]


def test_a_trial_is_a_whole_run() -> None:
    nodes = plan()
    stage1, stage2 = only(nodes, "stage1"), only(nodes, "stage2")
    trial = only(nodes, "ft-nano-stage1+2-share5-draw1")
    config = trial.config
    assert isinstance(config, FinetuneConfig)
    assert (trial.kind, trial.role, trial.parents) == ("finetune", "trial", (stage2.id,))
    assert (config.name, config.storage) == (trial.id, "/runs/mine/runs")
    assert config.init.checkpoint == f"/runs/mine/runs/{stage2.id}"
    assert (config.data.shards, config.data.share, config.data.draw) == ("/data/brats", 5.0, 1)
    assert (config.model.size, config.model.family) == ("nano", "swinunetr")
    assert trial.test is not None and trial.test.guard == "/data/brats#split=test"
    assert stage2.config.init.checkpoint == f"/runs/mine/runs/{stage1.id}"
    assert (stage2.test, stage2.point["share"], stage2.config.data.share) == (None, 100, 100.0)
    assert (stage1.point["init"], stage2.point["init"]) == ("stage1", "stage1+2")
    assert (stage1.subjects, trial.subjects) == (90, 4)


def test_stages_on_the_tested_cohort_hold_the_fold_out() -> None:
    nodes = plan(study(grid=FOLDS, test={"on": "fold"}))
    assert sorted(name for name in ids(nodes) if name.startswith("stage")) == [
        "stage1-nano", "stage2-nano-fold0", "stage2-nano-fold1",
    ]  # fmt: skip
    stage1, stage2 = only(nodes, "stage1"), only(nodes, "stage2-nano-fold1")
    assert stage1.config.data.fold is None  # UK Biobank has none of these people
    assert stage1.config.data.guard == ("/data/brats#fold=0", "/data/brats#fold=1")
    assert (stage2.config.data.fold, stage2.config.data.guard) == (1, ("/data/brats#fold=1",))
    trial = only(nodes, "ft-nano-stage1+2-fold1")
    assert trial.parents == (stage2.id,)
    assert trial.test is not None and (trial.test.fold, trial.config.data.fold) == (1, 1)
    tested = plan(study(grid=FOLDS))  # folds are held out, the test split is tested
    assert only(tested, "stage2-nano-fold1").config.data.guard == ("/data/brats#split=test",)
    assert only(tested, "ft-nano-stage1+2-fold1").test == only(tested, "ft-nano-scratch-fold0").test


def test_pretraining_on_the_labelled_subset_depends_on_it() -> None:
    stages = study()["stages"]
    stages["stage2"]["subset"] = "labelled"
    nodes = plan(study(stages=stages))
    names = [name for name in ids(nodes) if name.startswith("stage2")]
    assert sorted(names) == [
        "stage2-nano", "stage2-nano-share5-draw0", "stage2-nano-share5-draw1",
    ]  # fmt: skip
    data = only(nodes, "stage2-nano-share5-draw1").config.data
    assert (data.share, data.draw) == (5.0, 1)
    # A stage after it depends on what it depends on.
    stages["stage3"] = {**stages["stage1"]}
    inits = {"chain": ["stage2", "stage3"]}
    chained = plan(
        study(stages=stages, inits=inits, grid=[{"size": "nano", "init": "chain", "share": [5, 10]}])
    )
    assert [name for name in ids(chained) if name.startswith("stage3")] == [
        "stage3-nano-share5-draw0", "stage3-nano-share10-draw0",
    ]  # fmt: skip
    assert only(chained, "stage3-nano-share5").config.data.share == 100.0


def test_one_modality_has_stages_of_its_own() -> None:
    grid = [{"size": "nano", "init": "stage1+2", "modalities": ["all", "T1w", "T1w+FLAIR=T1w"]}]
    nodes = plan(study(grid=grid))
    assert ids(nodes)[:3] == ["stage1-nano", "stage1-nano-T1w", "stage1-nano-T1w+FLAIR.T1w"]
    for name in ("stage1-nano-T1w+", "stage2-nano-T1w+", "ft-nano-stage1+2-T1w+"):
        data = only(nodes, name).config.data
        assert (data.modalities, data.feed) == (("T1w", "FLAIR"), ("FLAIR=T1w",))
    assert [node.config.data.modalities for node in nodes if node.point["modalities"] == "all"] == [()] * 3


def test_a_stage_of_fewer_modalities_stays_at_them() -> None:
    stages = {
        "own": {
            "cohort": "brats",
            "recipe": "brats",
            "preset": "demo",
            "options": {"data.modalities": ["T1w", "T2w"]},
        }
    }
    nodes = plan(study(stages=stages, inits={"own": ["own"]}, grid=[{"size": "nano", "init": "own"}]))
    assert [node.config.data.modalities for node in nodes] == [("T1w", "T2w"), ()]


def test_seeds_repeat_what_they_are_of() -> None:
    grid = [
        {"size": "nano", "init": ["scratch", "stage1"], "seed": [0, 1], "draw": [0, 1], "share": 50},
        {"size": "nano", "init": "stage1", "pretrain_seed": [0, 1], "draw": [0, 1]},
    ]
    nodes = plan(study(grid=grid))
    seeds = {node.id.rpartition("-")[0]: node.config.data.seed for node in nodes}
    assert seeds["stage1-nano"] != seeds["stage1-nano-pretrain_seed1"]
    for start in ("scratch", "stage1"):  # arms share order and crops
        assert seeds[f"ft-nano-{start}-share50-draw1-seed1"] == seeds["ft-nano-scratch-share50-draw1-seed1"]
    own = {seeds[f"ft-nano-scratch-share50-draw{draw}{seed}"] for draw in (0, 1) for seed in ("", "-seed1")}
    assert len(own) == 4
    # With all labels a draw is one of the order alone.
    assert seeds["ft-nano-stage1"] != seeds["ft-nano-stage1-draw1"]
    assert seeds["ft-nano-stage1-draw1"] == seeds["ft-nano-stage1-draw1-pretrain_seed1"]


def test_a_widened_grid_keeps_its_nodes() -> None:
    wider = study(grid=[*study()["grid"], {"size": "nano", "share": 10}], title="other", tables=["table9"])
    assert {node.id for node in plan()} < {node.id for node in plan(wider)}


@pytest.mark.parametrize(
    ("same", "changes", "infos"),
    [
        (True, {}, {"brats": brats(uri="s3://moved/brats", manifest_hash="after a withdrawal")}),
        (
            True,
            {"finetune": {"options": {"cluster.workers": 2, "keep.keep_last": 1, "keep.pictures": 0}}},
            {},
        ),
        (False, {"finetune": {"options": {"optim.lr": 1.0e-5}}}, {}),
        (False, {"finetune": {"options": {"keep.best_by": "dice_wt"}}}, {}),
        (False, {}, {"brats": brats(identity="another split")}),
        (False, {"search": {"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}}}, {}),
    ],
)
def test_names_follow_what_decides_the_result(
    same: bool, changes: dict[str, Any], infos: dict[str, CohortInfo]
) -> None:
    content = study(**{key: {**study().get(key, {}), **value} for key, value in changes.items()})
    trials = [
        {node.id for node in nodes if node.role == "trial"}
        for nodes in (plan(), plan(content, cohorts(**infos)))
    ]
    assert (trials[0] == trials[1]) is same
    assert trials[0] & trials[1] == (trials[0] if same else set())


def test_a_stage_that_changes_takes_what_starts_from_it_along() -> None:
    stages = study()["stages"]
    stages["stage1"]["options"] = {"optim.steps": 81}
    other = plan(study(stages=stages))
    kept = {node.id for node in plan()} & {node.id for node in other}
    assert {name.split("-")[2] for name in kept} == {"scratch"}


AXES: dict[str, list[Any]] = {
    "size": ["nano", "tiny"],
    "init": ["scratch", "stage1", "stage1+2"],
    "fold": [None, 0, 1],
    "share": [5, 50, 100],
    "draw": [0, 1],
    "modalities": ["all", "T1w"],
    "seed": [0, 1],
    "pretrain_seed": [0, 1],
}
BLOCKS = st.fixed_dictionaries(
    {},
    optional={
        axis: st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)
        for axis, values in AXES.items()
    },
)


@settings(max_examples=25, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=2), st.sampled_from(["training", "labelled"]))
def test_whatever_the_grid(grid: list[dict[str, list[Any]]], subset: str) -> None:
    stages = study()["stages"]
    stages["stage2"]["subset"] = subset
    spec = read_study(study(grid=grid, stages=stages))
    nodes = plan_study(spec, cohorts(), "/runs")
    trials = [node for node in nodes if node.role == "trial"]
    assert [node.point for node in sorted(trials, key=lambda n: str(n.point))] == sorted(
        spec.points(), key=str
    )
    assert len({node.id for node in nodes}) == len(nodes)
    assert len({str(replace(node.config, name="")) for node in nodes}) == len(nodes)  # no run twice
    by_id = {node.id: node for node in nodes}
    for node in trials:
        for parent in (by_id[name] for name in before(node)):
            assert node.test is not None and node.test.guard in parent.config.data.guard
            assert parent.config.model.size == node.config.model.size
            if parent.config.data.shards == node.config.data.shards:
                assert parent.config.data.fold == node.config.data.fold


def test_baselines_start_at_random_and_need_no_pretraining_cohort() -> None:
    variants = {"light": {"model.family_options": ["filters=8"]}}
    grid = [{"family": ["segresnet", "unetr"]}, {"family": "segresnet", "variant": "light"}]
    nodes = plan(study(grid=grid, variants=variants), {"brats": brats()})
    assert ids(nodes) == ["ft-segresnet", "ft-unetr", "ft-segresnet-light"]
    model = nodes[2].config.model
    assert isinstance(nodes[2].config, FinetuneConfig)
    assert (model.label, nodes[2].config.model.family_options) == ("segresnet", ("filters=8",))
    odd = {"odd": {"model.family_options": ["filterz=8"]}}
    with pytest.raises(
        ConfigError, match=r"no option 'filterz' \(trials with family segresnet, variant odd\)"
    ):
        plan(study(grid=[{"family": "segresnet", "variant": "odd"}], variants=odd), {"brats": brats()})


def test_what_another_program_trains_is_listed_with_its_command() -> None:
    content = study(
        externals={"nnunetv2": "nnunet {shards} --fold {fold} --steps {steps} --node {id}"},
        grid=[{"family": "nnunetv2", "fold": 2}],
        test={"on": "fold"},
        choose={"options": {"optim.lr": [1e-3, 2e-3]}, "per": ["fold"]},
    )
    (node,) = plan(content)  # and nothing is chosen for it
    assert (node.kind, node.role, node.parents, node.chosen) == ("external", "trial", (), {})
    assert node.command == f"nnunet /data/brats --fold 2 --steps 160 --node {node.id}"


def test_ct_weights_are_the_users_own() -> None:
    content = study(inits={"ct": "ct"}, grid=[{"size": "tiny", "init": ["scratch", "ct"]}])
    missing = plan(content)
    assert [node.kind for node in missing] == ["finetune", "external"]
    assert missing[1].command.startswith("this study's own command with --weights ct=FILE")
    named = plan(content, weights={"ct": "/files/model_swinvit.pt"})
    assert [node.kind for node in named] == ["finetune", "finetune"]
    assert named[1].config.init.ct_weights == "/files/model_swinvit.pt"
    assert [node.id for node in missing] == [node.id for node in named]


def test_only_some_trials_and_what_they_need() -> None:
    nodes = plan()
    some = select(nodes, ["init=scratch,stage1", "share=5"])
    assert ids(some) == [
        "stage1-nano",
        *(f"ft-nano-{i}-share5-draw{d}" for i in ("scratch", "stage1") for d in (0, 1)),
    ]
    assert select(nodes, []) == nodes
    # Cohorts of trials that are not wanted need not be there.
    assert [node.id for node in plan(infos={"brats": brats()}, only=["init=scratch", "share=5"])] == [
        node.id for node in some if node.point["init"] == "scratch"
    ]


def test_pretraining_alone() -> None:
    content = study(grid=[{"size": "nano", "init": ["stage1+2", "stage1"]}])
    del content["finetune"], content["task"]
    nodes = plan(content)
    assert [(node.kind, node.role, node.test) for node in nodes] == [("pretrain", "trial", None)] * 2
    assert ids(nodes) == ["stage1-nano", "stage2-nano"]


@pytest.mark.parametrize(
    ("changes", "infos", "message"),
    [
        ("", {"ukb": None}, r"study mine needs cohort ukb; named are: brats.* Fix: add ukb=URI .* --cohorts"),
        ("grid: [{size: nano, fold: 7}]", {}, "nobody .* in fold 7 .*choose one of the folds 0, 1, 2, 3, 4"),
        ("grid: [{size: nano, fold: 0}]", {"brats": NO_FOLDS}, "in fold 0 .*--shards /data/brats --folds 5"),
        ("grid: [{size: nano, share: 30}]", {}, r"no few-shot subset of 30 %, draw 0: there are 5, 10, 20,"),
        ("grid: [{size: nano, share: 30}]", {}, r"--few-shot 5,10,20,30,40,50,100 --draws 6"),
        ("grid: [{size: nano, share: 5, draw: 8}]", {}, "subset of 5 %, draw 8: .*--draws 9"),
        ("", {"brats": brats(shares=(), draws=0)}, "no few-shot subset of 5 %, draw 0: there are none"),
        ("grid: [{size: nano, modalities: T2W}]", {}, r"no T2W .*did you mean T2w\?; T2W=SCAN shows"),
        ("grid: [{size: nano, init: stage1, modalities: T2w}]", {}, "the shard set has no T2w .*/data/ukb"),
        ("", {"brats": brats(labels="")}, "no masks to learn from"),
        ("", {"brats": brats(labels="binary")}, "does not understand masks of the label scheme 'binary'"),
        ("", {"brats": brats(subjects={("train", None): 9})}, "nobody is in the test split.*--test 0.2"),
        (
            "choose: {options: {optim.lr: [0.1, 0.2]}, per: [init], at: {share: 5, draw: 5}}",
            {"brats": NO_FOLDS},
            "study mine chooses options by validation, and nobody but the test set is held out",
        ),
        (
            "variants: {odd: {optim.lr: -1.0}}, grid: [{size: nano, variant: odd}]",
            {},
            r"--optim.lr is -1.0 \(trials with size nano, variant odd\)",
        ),
        (
            "variants: {odd: {data.crop: [50, 64, 64]}}, grid: [{size: nano, variant: odd}]",
            {},
            r"crop .*50.*\(trials with size nano, variant odd\)",
        ),
        (
            "variants: {odd: {model.merging: legacy}}, grid: [{size: nano, variant: odd, init: stage1}]",
            {},
            "merging current in the run it starts from, legacy here",
        ),
    ],
)
def test_what_cannot_be_planned(changes: str, infos: dict[str, Any], message: str) -> None:
    there = {name: info for name, info in {**cohorts(), **infos}.items() if info is not None}
    with pytest.raises(ConfigError, match=message):
        plan(study(**yaml.safe_load(f"{{{changes}}}")), there)


# ---------------------------------------------------------------------------------------------------------
# Against shard sets as they are


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Cases 1 to 7 in folds 0 to 2, 8 in val, 9 in test; subsets of 50 % in two draws."""
    folder: Path = tmp_path_factory.mktemp("labelled")
    return with_shares(make_labelled(folder), folder)


def test_what_a_shard_set_says_of_itself(shards: str) -> None:
    info = cohort_info(ShardSet.open(shards))
    assert (info.folds, info.shares, info.draws, info.labels) == ((0, 1, 2), (50.0, 100.0), 2, "brats2021")
    assert set(info.modalities) == {"FLAIR", "T1w"}
    assert (info.training(), info.training(fold=1), info.training(share=50)) == (7, 4, 4)
    assert info.has_split("test") and info.has_split("val", fold=0)


def test_the_leak_gate_takes_what_is_planned(shards: str) -> None:
    opened = ShardSet.open(shards)
    mine = cohort_info(opened)
    stages = study()["stages"]
    stages["stage2"]["subset"] = "labelled"
    grid = [{"size": "nano", "init": ["stage1", "stage1+2"], "fold": 1, "share": 50, "draw": 1}]
    infos = {"ukb": ukb(), "brats": mine}
    nodes = plan(study(grid=grid, stages=stages, test={"on": "fold"}), infos)
    assert gate(opened, only(nodes, "stage2"))[0].startswith("none of 3 subjects")
    # The same people under another name: the plan cannot know, the gate does.
    stages["stage2"] |= {"subset": "training", "cohort": "other"}
    twice = plan(study(grid=grid, stages=stages, test={"on": "fold"}), {**infos, "other": mine})
    with pytest.raises(DataError, match=r"3 of 3 test subjects .*were seen in training"):
        gate(opened, only(twice, "stage2"))


def gate(shards: ShardSet, node: Node) -> list[str]:
    data = node.config.data
    return gate_run(
        shards, shards.meta.modalities, run=node.id, stage="pretrain-1", guard=data.guard, fold=data.fold,
        share=data.share, draw=data.draw,
    )[1]  # fmt: skip
