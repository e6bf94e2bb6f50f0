"""Pretraining that was done before: it takes a stage's place, fits, is held against test sets, and lasts."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.cohorts.splits import record_of
from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.experiments.cohort import cohort_info
from brainfoundry.experiments.cost import estimate_study
from brainfoundry.experiments.driver import Outcome, StudyOptions, run_study
from brainfoundry.experiments.given import Given, open_given
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.report.lineage import boxes
from brainfoundry.experiments.report.results import open_study
from brainfoundry.experiments.spec import read_study
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.resplit import resplit
from brainfoundry.training import checkpoint
from tests.experiments.cohort_infos import cohorts, study
from tests.experiments.driven import Waves, content, stems
from tests.experiments.test_study_job import Run, run, write
from tests.experiments.trained import NOWHERE
from tests.training.leak_builders import image, make_checkpoint, make_set
from tests.training.test_checkpoint import MODEL, STATE, card

__all__ = ["run"]


def given(stage: str = "stage1", uri: str = "/runs/ukb/checkpoints/step-00000010", **changes: Any) -> Given:
    return Given(stage=stage, uri=uri, digest="d" * 64, card=card(**changes))


def plan(*there: Given, **changes: Any) -> tuple[Node, ...]:
    by_stage: dict[str, tuple[Given, ...]] = {}
    for one in there:
        by_stage[one.stage] = (*by_stage.get(one.stage, ()), one)
    return plan_study(read_study(study(**changes)), cohorts(), "/runs", given=by_stage)


def kinds(nodes: tuple[Node, ...]) -> dict[str, str]:
    """Ancestors by what they are."""
    return {node.id.rpartition("-")[0]: node.kind for node in nodes if node.role == "ancestor"}


def test_it_takes_the_place_of_its_stage() -> None:
    nodes = plan(given())
    assert kinds(nodes) == {"stage1-nano": "given", "stage2-nano": "pretrain"}
    stage1, stage2 = (node for node in nodes if node.role == "ancestor")
    heirs = [node for node in nodes if node.parents == (stage1.id,)]
    assert stage2 in heirs and len(heirs) == 1 + 4
    assert {heir.config.init.checkpoint for heir in heirs} == {given().uri}
    assert stage1.config.data.guard == stage2.config.data.guard == ("/data/brats#split=test",)
    # Wherever it lies it is the same; another, or one that the study trains, is another trial.
    moved, other = plan(given(uri="/moved")), plan(dataclasses.replace(given(), digest="e" * 64))
    assert [node.id for node in moved] == [node.id for node in nodes]
    for others in (other, plan()):
        same = {node.id for node in nodes} & {node.id for node in others}
        assert {node.point["init"] for node in nodes if node.id in same} == {"scratch"}


def test_what_comes_before_it_is_not_run() -> None:
    grid = [{"size": "nano", "init": ["scratch", "stage1+2"]}]
    assert kinds(plan(given("stage2"), grid=grid)) == {"stage2-nano": "given"}


def test_one_for_each_size() -> None:
    grid = [{"size": ["nano", "tiny"], "init": ["scratch", "stage1"]}]
    tiny = dataclasses.replace(given(uri="/t", size="tiny"), digest="e" * 64)
    nodes = plan(given(), tiny, grid=grid)
    starts = {node.point["size"]: node.config.init.checkpoint for node in nodes if node.parents}
    assert starts == {"nano": given().uri, "tiny": "/t"}


@pytest.mark.parametrize(
    ("what", "grid", "message"),
    [
        ({"size": "tiny"}, {}, r"trials of nano, .* start from stage1, and --weights gives it as tiny"),
        ({"objective": "mae"}, {}, r"gives it as nano, mae.*leave stage1 out"),
        ({}, {"pretrain_seed": [0, 1]}, r"pretrain_seed 1 too: one run would count as several"),
        ({}, {"modalities": ["T1w"]}, r"trials of modalities T1w .*one of T1w\+FLAIR"),
        ({"merging": "legacy"}, {}, r"merging legacy in the run it starts from, current here"),
    ],
)
def test_one_that_does_not_fit(what: dict[str, Any], grid: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(given(**what), grid=[{"size": "nano", "init": ["scratch", "stage1"], **grid}])


def test_a_fine_tuned_network_is_no_pretraining(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), card(stage="finetune", task={"name": "brats"}), MODEL, STATE)
    with pytest.raises(CheckpointError, match=r"--weights stage1: .* fine-tuned network \(task brats\)"):
        open_given("stage1", uri)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run of a pretraining on three healthy heads."""
    folder = tmp_path_factory.mktemp("healthy")
    shards = make_set(folder / "set", "ukb", {str(9_900_001 + i): image(100 + i) for i in range(3)})
    make_checkpoint(folder, shards, run="mine", stage="pretrain-1")
    return str(folder / "mine")


def drive(shards: str, folder: Path, *runs: str | Path) -> Outcome:
    spec = read_study(content())
    there = {"stage2": tuple(open_given("stage2", str(uri)) for uri in runs)} if runs else {}
    nodes = plan_study(spec, {"tiny": cohort_info(ShardSet.open(shards))}, str(folder), given=there)
    weights = {one.name: one.card_uri for several in there.values() for one in several}
    options = StudyOptions(cohorts={"tiny": shards}, weights=weights, tracking=NOWHERE)
    return run_study(spec, nodes, str(folder / spec.name), options)


def test_it_is_done_and_its_heirs_run(
    labelled_shards: str, healthy: str, tmp_path: Path, waves: Waves
) -> None:
    found = drive(labelled_shards, tmp_path, healthy)
    # At once: nothing waits for what is done.
    assert [sorted(stems(wave)) for wave in waves.ran] == [["ft-nano-scratch", "ft-nano-stage2"]]
    (record,) = (record for record in found.records.values() if record.kind == "given")
    assert (record.state, record.run_dir, record.steps) == ("finished", healthy, 10)
    (heir,) = (work for name, work in waves.work.items() if name.startswith("ft-nano-stage2"))
    assert heir.config.init.checkpoint == record.checkpoint

    opened = open_study(str(tmp_path / "mini"))
    (box,) = (box for box in boxes(opened) if box.kind == "pretrain")
    assert box.lines == ("trained before the study", "3 training subjects", "10 steps")

    with pytest.raises(ConfigError, match=r"submitted with --weights for stage2, now for none"):
        drive(labelled_shards, tmp_path)
    again = drive(labelled_shards, tmp_path, shutil.copytree(healthy, tmp_path / "moved" / "mine"))
    assert again.records.keys() == found.records.keys() and len(waves.ran) == 1
    moved = again.records[record.id].checkpoint
    assert moved is not None and moved.startswith(str(tmp_path / "moved"))


def test_a_stage_that_was_trained_is_not_replaced(
    labelled_shards: str, healthy: str, tmp_path: Path, waves: Waves
) -> None:
    drive(labelled_shards, tmp_path)
    with pytest.raises(ConfigError, match=r"submitted with --weights for no stage, now for stage2"):
        drive(labelled_shards, tmp_path, healthy)


def test_it_costs_nothing(healthy: str) -> None:
    nodes = plan(open_given("stage1", healthy), grid=[{"size": "nano", "init": "stage1"}])
    cost = estimate_study(nodes, {})
    assert [(row.state, row.disk_gb) for row in cost.rows if row.node.role == "ancestor"] == [("done", 0.0)]


def test_from_the_command_line(labelled_shards: str, healthy: str, tmp_path: Path, run: Run) -> None:
    options = ("--cohorts", f"tiny={labelled_shards}", "--storage", tmp_path, "--dry-run", "--weights")
    file = write(tmp_path)
    status, out, _ = run(file, *options, f"stage2={healthy}")
    assert status == 0 and "nothing was started" in out
    status, _, err = run(file, *options, f"stage2={healthy}", f"stage2={healthy}")
    assert status == 2 and "--weights gives stage2 twice for nano" in err
    status, _, err = run(file, *options, "stage2")
    assert status == 2 and "--weights 'stage2' is not NAME=VALUE" in err
    status, _, err = run(file, *options, f"stage2={tmp_path}")
    assert status == 1 and "no whole checkpoint here" in err

    # One that saw a test subject is refused before anything starts, unless the study says otherwise.
    everybody = str(tmp_path / "everybody")
    shutil.copytree(labelled_shards, everybody)
    parts = {row.subject: ("train", None) for row in read_manifest(manifest_uri(everybody)).rows()}
    resplit(everybody, parts, record_of(parts, {"method": "conversion"}))
    seen = make_checkpoint(tmp_path, ShardSet.open(everybody), run="all", stage="pretrain-2")
    status, _, err = run(file, *options, f"stage2={seen}")
    assert status == 1 and "1 of 1 test subjects" in err and "seen: 1 by run all (pretrain-2)" in err
    assert "data.allow_leak: true in the options of the study's runs goes on" in err
    leaky = content()["finetune"]
    leaky = {**leaky, "options": {**leaky["options"], "data.allow_leak": True}}
    status, out, _ = run(write(tmp_path, finetune=leaky), *options, f"stage2={seen}")
    assert status == 0 and "nothing was started" in out
