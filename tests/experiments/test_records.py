"""Records of a study: written whole, read back as they were, on any storage."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.experiments.records import StudyFolder, TrialRecord, read_record, read_records, write_record
from tests.experiments.trained import study_folder

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def record(name: str = "ft-nano-scratch-1a2b3c", **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "study": "s", "id": name, "kind": "finetune", "role": "trial", "state": "finished",
        "point": {"init": "scratch", "fold": None, "share": 5}, "run_dir": f"/runs/{name}",
    }  # fmt: skip
    return TrialRecord(**{**values, **changes})


@given(
    metrics=st.dictionaries(st.sampled_from(["dice_wt", "dice_mean"]), FLOATS),
    seconds=st.none() | FLOATS,
    chosen=st.dictionaries(st.sampled_from(["optim.lr", "data.crop"]), st.sampled_from([1e-3, [64, 32, 32]])),
    parents=st.lists(st.text(max_size=8), max_size=3),
    error=st.text(max_size=40),
)
def test_a_record_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    study = study_folder(tmp_path_factory.mktemp("records"))
    made = record(leaks=({"test": "t", "leaked": 1},), **{**values, "parents": tuple(values["parents"])})
    write_record(study, made)
    assert read_records(study.uri) == {made.id: made} and read_record(study, made.id) == made


def test_records_on_an_object_store() -> None:
    study = StudyFolder(name="s", uri=f"memory://{uuid.uuid4().hex}/studies/s")
    assert read_records(study.uri) == {}
    for name in ("a", "b"):
        write_record(study, record(name))
    write_record(study, record("a", state="stopped"))
    assert {name: r.state for name, r in read_records(study.uri).items()} == {"a": "stopped", "b": "finished"}


def test_what_is_no_record_is_not_read(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    write_record(study, record())
    (tmp_path / "s" / "records" / ".x.json.0a.tmp").write_text("{")  # of a process that was killed
    assert list(read_records(study.uri)) == [record().id]


def test_failed_trials_are_tried_again_and_stopped_ones_are_not() -> None:
    states = {state: record(state=state).done for state in ("finished", "stopped", "failed")}
    assert states == {"finished": True, "stopped": True, "failed": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "record of version 2, this is version 1"),
        ({"version": None}, "record of version None"),
        ({"odd": 1}, "missing or unknown field 'odd'"),
    ],
)
def test_a_record_of_another_kind(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    study = study_folder(tmp_path)
    files.make_folder(files.join(study.uri, "records"))
    files.write_json(study.record("x"), {**asdict(record("x")), **change})
    with pytest.raises(DataError, match=message):
        read_records(study.uri)


def test_a_damaged_record(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    write_record(study, record("x"))
    path = tmp_path / "s" / "records" / "x.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"not valid JSON.*x\.json"):
        read_records(study.uri)


def test_the_file_is_plain_json_with_every_field(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    write_record(study, replace(record("x"), metrics={"dice_wt": 0.5}))
    value = json.loads((tmp_path / "s" / "records" / "x.json").read_text())
    assert value.keys() == asdict(record()).keys() and value["metrics"] == {"dice_wt": 0.5}
