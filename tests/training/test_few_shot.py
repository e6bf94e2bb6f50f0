"""Runs on a share of the training subjects: whom they visit, whom they have seen, what they are called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from brainfoundry.cohorts.few_shot import few_shot, few_shot_recipe
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.withdraw import withdraw
from brainfoundry.stream.folds import few_shot_subset, split_view
from brainfoundry.stream.pipeline import Share, _Fetch, open_shard_set, unpack
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.sessions import subset_of
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.launch import _keep_plans
from brainfoundry.training.leak_gate import gate, parse_test_set
from brainfoundry.training.presets import DEMO
from brainfoundry.training.receipt_read import read_receipt
from brainfoundry.training.report import announce
from brainfoundry.training.runs import default_name
from brainfoundry.training.seen import encode_seen, own_scans, seen_table
from brainfoundry.training.train_job import prepare
from tests.stream.builders import CROP, make_index
from tests.training.labelled import configuration as finetuning
from tests.training.labelled import with_shares
from tests.training.leak_builders import image, make_set
from tests.training.test_checkpoint import MODEL, STATE

SUBJECTS = [str(9_940_001 + i) for i in range(15)]
SPLIT = {s: (("train",) * 12 + ("val", "val", "test"))[i] for i, s in enumerate(SUBJECTS)}
FOLD = {s: i % 3 for i, s in enumerate(SUBJECTS[:12])}
SEX = {s: "F" if i < 8 else "M" for i, s in enumerate(SUBJECTS)}
RECIPE = few_shot_recipe(seed=5, shares=(25, 50, 100), draws=3, stratify=("sex",), min_stratum=1)
TRAIN = frozenset(SUBJECTS[:12])
SPEC = PlanSpec(seed=3, crop=CROP, groups_per_step=1, subjects_per_group=1, frame="box")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """12 training subjects in folds 0 to 2, eight of them women; two to validate on and one to test on."""
    folder = tmp_path_factory.mktemp("few")
    images = {subject: image(600 + i) for i, subject in enumerate(SUBJECTS)}
    return make_set(folder, "brats", images, SPLIT, FOLD, sex=SEX, recipe=RECIPE)


@pytest.fixture
def own_copy(shards: ShardSet, tmp_path: Path) -> str:
    """A copy to be changed."""
    shutil.copytree(shards.uri, tmp_path / "set")
    return str(tmp_path / "set")


def configuration(storage: Path, uri: str, **data: Any) -> PretrainConfig:
    return replace(
        DEMO, storage=str(storage), job="pretrain-brats",
        data=replace(DEMO.data, shards=uri, **data),
        tracking=replace(DEMO.tracking, uri=f"sqlite:///{storage}/mlflow.db"),
    )  # fmt: skip


def visited(shards: ShardSet, **spec: Any) -> set[str]:
    return set(Plan.open(shards, PlanSpec(**{**SPEC.to_dict(), **spec})).sessions[0])


# ---------------------------------------------------------------------------------------------------------
# The stream


@pytest.mark.parametrize("fold", [None, 1])
def test_a_plan_visits_the_subset_of_the_recipe(shards: ShardSet, fold: int | None) -> None:
    manifest = read_manifest(manifest_uri(shards.uri))
    for draw in range(3):
        found = {s: visited(shards, share=s, draw=draw, fold=fold) for s in (25, 50, 100)}
        for share in (25, 50):
            assert found[share] == set(few_shot(manifest, RECIPE, share, draw, without_fold=fold))
        assert found[25] < found[50] < found[100]
        assert len(found[50]) == (6 if fold is None else 4)
        if fold is None:  # as many of each sex as there are
            assert sum(SEX[s] == "F" for s in found[50]) == 4
        else:
            assert all(FOLD[s] != fold for s in found[50])
    draws = {frozenset(visited(shards, share=25, draw=draw, fold=fold)) for draw in range(3)}
    assert len(draws) > 1
    for split in ("val", "test"):  # who is held out does not depend on the share
        assert visited(shards, share=25, split=split, fold=fold) == {
            s for s, where in SPLIT.items() if where == split
        }


def test_who_is_outside_the_subset_is_in_no_split(shards: ShardSet) -> None:
    subset = few_shot_subset(shards, share=25, draw=1)
    assert subset is not None and len(subset) == 3
    view = split_view(shards.index, None, subset=subset)
    assert dict(zip(view["subject"].to_pylist(), view["split"].to_pylist(), strict=True)) == {
        s: "" if s in TRAIN - subset else split for s, split in SPLIT.items()
    }
    held_out = split_view(shards.index, 0, subset=few_shot_subset(shards, share=25, draw=1, fold=0))
    assert pc.sum(pc.equal(held_out["split"], "held_out")).as_py() == 4
    assert few_shot_subset("nowhere", share=100, draw=0) is None  # not even opened


def test_a_whole_share_leaves_the_plan_as_it_was(shards: ShardSet) -> None:
    whole = PlanSpec(**{**SPEC.to_dict(), "share": 100, "draw": 2})
    assert whole == SPEC and "share" not in whole.to_dict() and "draw" not in whole.to_dict()
    assert Plan.open(shards, whole).hash == Plan.from_index(shards.index, SPEC).hash
    few = replace(SPEC, share=50, draw=1)
    assert few.to_dict()["share"] == 50.0 and few.to_dict()["draw"] == 1
    assert "draw" not in replace(SPEC, share=50).to_dict()
    assert PlanSpec(**few.to_dict()) == few
    assert len({Plan.open(shards, replace(SPEC, share=50, draw=d)).hash for d in (0, 1, 2)}) == 3
    with pytest.raises(ConfigError, match="share is 0"):
        replace(SPEC, share=0)
    with pytest.raises(ValueError, match="needs their names"):
        Plan.from_index(make_index(3), few)


@pytest.mark.parametrize(
    ("share", "draw", "words"),
    [
        (
            10,
            0,
            r"no few-shot subset of 10 %, draw 0.*25, 50, 100 % and draws 0 to 2.*--few-shot and --draws",
        ),
        (25, 3, r"no few-shot subset of 25 %, draw 3.*jobs/split\.py --few-shot and --draws"),
    ],
)
def test_a_subset_that_the_recipe_lacks(shards: ShardSet, share: float, draw: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Plan.open(shards, replace(SPEC, share=share, draw=draw))


def test_a_shard_set_without_a_usable_recipe(
    small_shards: str, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no few-shot subsets here.*jobs/split\.py .*--few-shot.*--draws"):
        Plan.open(small_shards, replace(SPEC, share=50))
    with pytest.raises(ConfigError, match=r"no few-shot subsets here.*small"):  # before anything starts
        prepare(configuration(tmp_path, small_shards, share=50.0), ShardSet.open(small_shards))
    monkeypatch.setitem(RECIPE, "stratify", ["grade"])
    folder = tmp_path / "own"
    images = {subject: image(700 + i) for i, subject in enumerate(SUBJECTS[:3])}
    own = make_set(folder, "brats", images, recipe=RECIPE)
    with pytest.raises(ConfigError, match="'grade', a column that the shard set does not keep"):
        Plan.open(own, replace(SPEC, share=50))


def test_a_manifest_of_another_set_is_not_believed(
    own_copy: str, shards: ShardSet, small_shards: str
) -> None:
    opened = ShardSet.open(own_copy)
    shutil.copy(manifest_uri(small_shards), manifest_uri(own_copy))
    with pytest.raises(DataError, match="does not belong to this shardset"):
        Plan.open(opened, replace(SPEC, share=25, draw=2))


def test_the_readers_of_a_run_make_the_same_plan(shards: ShardSet) -> None:
    spec = replace(SPEC, share=50, draw=1, fold=2)
    plan = Plan.open(shards, spec)
    share = Share(shards=shards.uri, spec=spec, channels=(0,), start_step=0, stop_step=6, plan_hash=plan.hash)
    fetch = _Fetch(share, 6, 1, open_shard_set)
    (block,) = fetch(pa.table({"task": [0]}))
    (rows,) = unpack(block)
    assert rows["subject"].to_pylist() == plan.rows(0, 6)["subject"].to_pylist()
    other = _Fetch(replace(share, spec=replace(spec, draw=0)), 6, 1, open_shard_set)
    with pytest.raises(DataError, match="has changed since this run started"):
        next(other(pa.table({"task": [0]})))


# ---------------------------------------------------------------------------------------------------------
# The run


def test_a_run_sees_its_subset_and_nobody_else(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(tmp_path, shards.uri, share=50.0, draw=2, fold=1)
    task, place = prepare(config, shards)
    subset = few_shot_subset(shards, share=50, draw=2, fold=1)
    assert subset is not None and len(subset) == 4
    assert (task.plan.share, task.plan.draw) == (50.0, 2)
    assert task.card["plan"]["share"] == 50.0 and task.card["plan"]["draw"] == 2
    assert (task.tags["share"], task.tags["draw"]) == ("50", "2")
    assert (task.params["data.share"], task.params["data.draw"]) == ("50.0", "2")
    assert not any(subject in json.dumps(dict(task.card)) for subject in SUBJECTS)

    # The table of the seen, the receipt's plans, what is told beforehand.
    own = own_scans(shards, ("T1w",), run="r", stage="pretrain-1", held_out_fold=1, share=50, draw=2)
    val = {s for s, where in SPLIT.items() if where == "val"}
    assert set(own["subject"].to_pylist()) == subset | val
    _keep_plans(task)
    receipt = read_receipt(task.run_dir)
    assert receipt.problems == [] and receipt.subjects == subset | val
    (train,) = [h for h, about in receipt.about.items() if about["role"] == "train"]
    assert train == task.card["plan_hash"] == Plan.open(shards, task.plan).hash
    capsys.readouterr()
    announce(task, shards, place)
    assert "4 subjects to train on (50 % of them, draw 2; the others are not seen), 2 held out" in (
        capsys.readouterr().out
    )


def test_whom_a_run_was_kept_from_may_be_tested_on(shards: ShardSet, tmp_path: Path) -> None:
    """Stage 2 on the labelled subset only: nobody outside of it is in the weights."""
    few = own_scans(shards, ("T1w",), run="few", stage="pretrain-2", share=25, draw=0)
    uri = checkpoint.save(
        str(tmp_path / "few" / "checkpoints"),
        Card(**{**prepare(configuration(tmp_path, shards.uri), shards)[0].card, "run": "few"}, step=1),
        MODEL, STATE, encode_seen(seen_table(few)),
    )  # fmt: skip
    subset = few_shot_subset(shards, share=25, draw=0)
    assert subset is not None
    clean = sorted({FOLD[s] for s in TRAIN} - {FOLD[s] for s in subset})
    leaky = sorted({FOLD[s] for s in subset})
    for fold in clean:
        assert gate([parse_test_set(f"{shards.uri}#fold={fold}")], [uri]) == ()
    with pytest.raises(DataError, match="were seen in training"):
        gate([parse_test_set(f"{shards.uri}#fold={leaky[0]}")], [uri])


def test_epochs_count_the_subset(labelled_shards: str, tmp_path: Path) -> None:
    uri = with_shares(labelled_shards, tmp_path)
    config = finetuning(tmp_path / "runs", uri)
    config = replace(config, name=None, optim=replace(config.optim, epochs=10.0))
    shards = ShardSet.open(uri)
    steps = {}
    for share in (50.0, 100.0):
        task, _ = prepare(replace(config, data=replace(config.data, share=share)), shards)
        steps[share] = task.config.optim.steps
        assert task.volumes is not None and [s.subject[-1] for s in task.volumes.sessions] == ["8"]
    per_step = config.data.groups_per_step
    assert steps == {50.0: -(-10 * 4 // per_step), 100.0: -(-10 * 7 // per_step)}


def test_names_change_only_with_the_subset() -> None:
    name = default_name(DEMO, "m")
    assert name == "pretrain-ukb-demo-nano-3b285abd"  # as before there were shares

    def named(**data: Any) -> str:
        return default_name(replace(DEMO, data=replace(DEMO.data, **data)), "m")

    assert named(draw=3) == name
    assert len({name, named(share=50.0), named(share=50.0, draw=1), named(share=25.0)}) == 4
    for wrong, words in (({"share": 0.0}, "--data.share is 0"), ({"draw": -1}, "--data.draw is -1")):
        with pytest.raises(ConfigError, match=words):
            replace(DEMO, data=replace(DEMO.data, **wrong)).check()


# ---------------------------------------------------------------------------------------------------------
# A withdrawal


def _fingerprints(table: pa.Table) -> Mapping[str, bytes | None]:
    return dict(zip(table["subject"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))


def test_who_only_left_the_subset_keeps_the_image_in_the_table(own_copy: str, tmp_path: Path) -> None:
    """A withdrawal may change who else is in the subset: those were seen, and have not withdrawn."""
    config = replace(configuration(tmp_path, own_copy, share=50.0), name="r")
    before = ShardSet.open(own_copy)
    task, _ = prepare(config, before)
    options: dict[str, Any] = {"run": "r", "stage": "pretrain-1", "share": 50, "draw": 0}
    seen = seen_table(own_scans(before, ("T1w",), **options))
    files.write_bytes(files.join(task.run_dir, "config.yaml"), b"")
    checkpoint.save(task.checkpoints, Card(**task.card, step=1), MODEL, STATE, encode_seen(seen))
    subset = subset_of(before, task.plan)
    assert subset is not None
    gone = {min(subset), *sorted(TRAIN - subset)[:3]}
    withdraw(own_copy, sorted(gone))

    shards = ShardSet.open(own_copy)
    again, place = prepare(config, shards)
    assert place.step == 1 and any("without 4 withdrawn" in note for note in again.notes)
    now = subset_of(shards, again.plan)
    assert now is not None and len(now) == 4 and subset - now - gone  # the case that this test is about
    own = own_scans(shards, ("T1w",), **options)
    table = seen_table(own, earlier=seen, run="r", index=shards.index)
    images = _fingerprints(table)
    assert set(images) == subset | now | set(SUBJECTS[12:14])
    assert {s for s, image in images.items() if image is None} == gone & subset
    assert seen_table(own, earlier=table, run="r", index=shards.index).equals(table)
