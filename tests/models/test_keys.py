"""Weights files of others: wrappers taken off, nothing run, and a table of keys that do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from brainfoundry.core.errors import CheckpointError, DataError
from brainfoundry.models.keys import SHOWN, KeysError, KeyTable, read_weights

WEIGHT = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "content",
    [
        {"a.weight": WEIGHT},
        {"module.a.weight": WEIGHT},
        {"state_dict": {"module.a.weight": WEIGHT}, "epoch": 3, "optimizer": {"state": {}}},
        {"model": {"a.weight": WEIGHT, "note": "text"}},
    ],
)
def test_tensors_by_name_whatever_they_are_wrapped_in(content: dict[str, object], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    read = read_weights(str(tmp_path / "w.pt"))
    assert list(read) == ["a.weight"] and torch.equal(read["a.weight"], WEIGHT)


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("sprung"),))


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": WEIGHT}, "model": Trap()}, "trap.pt")
    with pytest.raises(
        CheckpointError, match=r"cannot be read as weights: .*pickled objects.*are not loaded"
    ):
        read_weights("trap.pt")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut short", pickle.dumps([1, 2])])
def test_files_that_hold_no_weights(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.pt.*Fix:"):
        read_weights(str(tmp_path / "w.pt"))
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="no weights in this file"):
        read_weights(str(tmp_path / "empty.pt"))
    with pytest.raises(DataError, match="no such file"):
        read_weights(str(tmp_path / "nowhere.pt"))


def table() -> KeyTable:
    found = {"same": WEIGHT, "other": WEIGHT, **{f"more.{i}": WEIGHT for i in range(SHOWN + 3)}}
    return KeyTable.of(found, {"same": WEIGHT, "other": WEIGHT.T, "gone": torch.tensor(1.0)})


def test_the_table_of_keys() -> None:
    assert KeyTable.of({"a": WEIGHT}, {"a": WEIGHT}).fits
    assert not table().fits
    lines = table().text().splitlines()
    assert lines[0].split() == ["key", "in", "the", "file", "expected"]
    assert lines[1].split() == ["missing", "gone", "-", "scalar"]
    assert lines[2].split() == ["extra", "more.0", "2x3", "-"]
    assert lines[2 + SHOWN].strip() == "... and 3 more"
    assert lines[-2].split() == ["shape", "other", "2x3", "3x2"]
    assert lines[-1] == "keys: 3 expected, 13 found; 1 missing, 11 extra, 1 of another shape"


def test_the_error_says_it_in_a_line_and_shows_the_table_below() -> None:
    error = KeysError("these are others", table=table(), file="w.pt", fix="give mine")
    first, *rest = error.line().splitlines()
    assert first == f"these are others: {table().counts()} [file w.pt]. Fix: give mine"
    assert rest == table().text().splitlines()
    again = pickle.loads(pickle.dumps(error))  # errors cross process boundaries in Ray
    assert type(again) is KeysError and again.line() == error.line() == str(error)
