"""The leaks of the field, caught; a clean chain, passed: real shard sets, real checkpoints with parents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, CheckpointError, ConfigError, DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.training import checkpoint
from brainfoundry.training.leak_gate import gate, gate_run, hold, open_test_set, parse_test_set
from brainfoundry.training.seen import SEEN, load_seen
from tests.training.leak_builders import disguised, image, make_checkpoint, make_set, turned
from tests.training.test_checkpoint import MODEL, STATE, card

HEALTHY = {str(9_900_001 + i): image(100 + i) for i in range(3)}
ATLAS = {str(9_910_001 + i): image(200 + i) for i in range(5)}
HELD_OUT = {"9910004": "test", "9910005": "test"}
BRATS = {str(9_920_001 + i): image(300 + i) for i in range(6)}
FOLDS = {subject: i % 3 for i, subject in enumerate(BRATS)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "ukb": make_set(folder / "ukb", "ukb", HEALTHY),
        "atlas": make_set(folder / "atlas", "atlas", ATLAS, HELD_OUT),
        "atlas_all": make_set(folder / "atlas_all", "atlas", ATLAS),
        "brats": make_set(folder / "brats", "brats", BRATS, fold=FOLDS),
    }


@pytest.fixture(scope="module")
def stage1(sets: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("runs"), sets["ukb"], run="healthy", stage="pretrain-1")


def test_a_clean_chain_passes(sets: dict[str, ShardSet], stage1: str, tmp_path: Path) -> None:
    # Stage 2 and fine-tuning on the training split only: the held-out images are unseen.
    stage2 = make_checkpoint(tmp_path, sets["atlas"], run="lesions", stage="pretrain-2", parents=[stage1])
    tuned = make_checkpoint(tmp_path, sets["atlas"], run="tuned", stage="finetune", parents=[stage2])
    assert set(load_seen(tuned)["run"].to_pylist()) == {"healthy", "lesions", "tuned"}
    assert gate([open_test_set(sets["atlas"])], [stage1, stage2, tuned]) == ()


def test_the_papers_atlas_protocol_is_refused(sets: dict[str, ShardSet], stage1: str, tmp_path: Path) -> None:
    """Stage 2 was trained on all of ATLAS; fine-tuning then holds out images that its ancestor saw."""
    stage2 = make_checkpoint(tmp_path, sets["atlas_all"], run="lesions", stage="pretrain-2", parents=[stage1])
    tuned = make_checkpoint(tmp_path, sets["atlas"], run="tuned", stage="finetune", parents=[stage2])
    files.delete_folder(stage2)  # the ancestor need not be there any more: its table travelled along
    with pytest.raises(DataError) as caught:
        gate([open_test_set(sets["atlas"])], [tuned], flag="--allow-leak")
    line = caught.value.line()
    for words in (
        "2 of 2 test subjects",
        "2 by id",
        "9910004",
        "9910005",
        "run lesions (pretrain-2)",
        "--allow-leak",
    ):
        assert words in line
    assert "healthy" not in line and "by run tuned" not in line
    (record,) = gate([open_test_set(sets["atlas"])], [tuned], allow=True)
    assert record["leaked"] == record["by_id"] == record["tested"] == 2
    assert record["seen_by"] == [{"run": "lesions", "stage": "pretrain-2", "subjects": 2}]
    leaky = dataclasses.replace(card(), leaks=(record,))
    assert checkpoint.read_card(checkpoint.save(str(tmp_path / "x"), leaky, MODEL, STATE)).leaks == (record,)


def test_a_brats_ancestor_of_another_fold_is_refused(
    sets: dict[str, ShardSet], stage1: str, tmp_path: Path
) -> None:
    stage2 = make_checkpoint(
        tmp_path, sets["brats"], run="fold1", stage="pretrain-2", parents=[stage1], held_out_fold=1
    )
    same = make_checkpoint(
        tmp_path, sets["brats"], run="tuned1", stage="finetune", parents=[stage2], held_out_fold=1
    )
    other = make_checkpoint(
        tmp_path, sets["brats"], run="tuned0", stage="finetune", parents=[stage2], held_out_fold=0
    )
    assert gate([open_test_set(sets["brats"], fold=1)], [same]) == ()
    with pytest.raises(DataError, match=r"2 of 2 test subjects \(fold 0 .*by run fold1 \(pretrain-2\)"):
        gate([open_test_set(sets["brats"], fold=0)], [other])


@pytest.mark.parametrize(("disguise", "kind"), [(disguised, "image"), (turned, "image with other axes")])
def test_the_same_image_under_another_id(
    disguise, kind: str, sets: dict[str, ShardSet], stage1: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    hidden = {"9930001": disguise(HEALTHY["9900002"]), "9930002": image(999)}
    other = make_set(tmp_path / "other", "hospital", hidden, dict.fromkeys(hidden, "test"), level=1)
    (held,) = hold([open_test_set(other)], {stage1: load_seen(stage1)})
    (row,) = held.leaks.rows.to_pylist()
    assert (row["kind"], row["subject"], row["seen_subject"]) == (kind, "9930001", "9900002")
    assert (row["run"], row["stage"], row["seen_cohort"]) == ("healthy", "pretrain-1", "ukb")
    with pytest.raises(DataError, match=r"1 of 2 .*0 by id, 1 by image, such as 9930001 \(as 9900002\)"):
        gate([open_test_set(other)], [stage1])


def test_the_same_id_in_another_cohort_is_somebody_else(stage1: str, tmp_path: Path) -> None:
    other = make_set(tmp_path / "o", "hospital", {"9900001": image(77)}, {"9900001": "test"})
    assert gate([open_test_set(other)], [stage1]) == ()


def test_a_duplicate_inside_the_runs_own_test_split(tmp_path: Path) -> None:
    images = {"9940001": image(1), "9940002": image(2), "9940003": disguised(image(1))}
    shards = make_set(tmp_path / "s", "atlas", images, {"9940003": "test"})
    with pytest.raises(DataError, match=r"9940003 \(as 9940001\).*--data\.allow-leak"):
        gate_run(shards, ("T1w",), run="r", stage="pretrain-1")
    records, lines = gate_run(shards, ("T1w",), run="r", stage="pretrain-1", allow=True)
    assert records[0]["by_image"] == 1 and records[0]["by_id"] == 0
    assert "1 of 1" in lines[0] and "9940003" not in lines[0]  # tags go to a server: no ids in them


def test_a_run_is_held_against_the_test_sets_it_guards(sets: dict[str, ShardSet], stage1: str) -> None:
    atlas, everything = sets["atlas"], sets["atlas_all"]
    guard = [atlas.uri]
    with pytest.raises(DataError, match="2 of 2 test subjects"):
        gate_run(everything, ("T1w",), run="r", stage="pretrain-2", guard=guard)
    records, lines = gate_run(atlas, ("T1w",), run="r", stage="pretrain-2", guard=guard, parents=[stage1])
    assert records == () and len(lines) == 2 and all(line.startswith("none of 2") for line in lines)
    with pytest.raises(DataError, match="fold 2"):
        gate_run(sets["brats"], ("T1w",), run="r", stage="x", guard=[f"{sets['brats'].uri}#fold=2"])
    assert gate_run(sets["ukb"], ("T1w",), run="r", stage="pretrain-1") == ((), [])


def test_who_was_seen_before_a_withdrawal_counts(sets: dict[str, ShardSet], tmp_path: Path) -> None:
    """The run goes on without them, but its weights have seen them, and another set still tests on them."""
    before = make_checkpoint(tmp_path, sets["atlas_all"], run="r", stage="pretrain-2")
    left = make_set(tmp_path / "left", "atlas", {s: d for s, d in ATLAS.items() if s not in HELD_OUT})
    guard = [sets["atlas"].uri]
    assert gate_run(left, ("T1w",), run="r", stage="pretrain-2", guard=guard)[0] == ()
    with pytest.raises(DataError, match="2 of 2 test subjects"):
        gate_run(left, ("T1w",), run="r", stage="pretrain-2", guard=guard, earlier=before)


def test_what_cannot_be_proved_is_refused(sets: dict[str, ShardSet], stage1: str, tmp_path: Path) -> None:
    test = open_test_set(sets["atlas"])
    bare = checkpoint.save(str(tmp_path / "bare"), card(), MODEL, STATE)
    with pytest.raises(CheckpointError, match=r"cannot prove whom.*no table.*Fix:"):
        gate([test], [bare])
    child = make_checkpoint(tmp_path, sets["atlas"], run="child", stage="pretrain-2", parents=[stage1])
    table = Path(child) / "seen.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        gate([test], [child])
    found = checkpoint.read_card(stage1)
    orphan = dataclasses.replace(found, run="orphan", parents=("somewhere/step-00000010",))
    uri = checkpoint.save(
        str(tmp_path / "o"), orphan, MODEL, STATE, (Path(stage1) / "seen.parquet").read_bytes()
    )
    with pytest.raises(CheckpointError, match="leaves out the parent somewhere/step-00000010"):
        gate([test], [uri])


def test_a_shard_set_without_fingerprints_is_refused(stage1: str, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "s", "atlas", {"9940001": image(1)}, {"9940001": "test"})
    (Path(shards.uri) / "fingerprints.parquet").unlink()
    with pytest.raises(
        BrainFoundryError, match=r"cannot prove whose scans.*fingerprints\.parquet.*prepare job"
    ):
        gate([open_test_set(shards)], [stage1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#fold=two", "names no test set"),
        ("#fold=9", "nobody is in fold 9"),
        ("#split=vall", "nobody is in split vall"),
    ],
)
def test_a_test_set_that_is_none(sets: dict[str, ShardSet], text: str, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        parse_test_set(sets["brats"].uri + text)
    assert "Fix:" in caught.value.line()


def test_the_table_names_run_stage_and_only_the_runs_own_modalities(
    sets: dict[str, ShardSet], stage1: str
) -> None:
    table = load_seen(stage1)
    assert table.schema == SEEN and table.num_rows == len(HEALTHY)
    assert set(table["stage"].to_pylist()) == {"pretrain-1"}
    assert set(table["manifest_hash"].to_pylist()) == {sets["ukb"].meta.manifest_hash}
    assert "seen.parquet" in checkpoint.read_card(stage1).files
