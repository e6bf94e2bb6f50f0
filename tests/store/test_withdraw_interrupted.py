"""Withdrawals that are interrupted, and shards that were damaged before: nothing lost, nothing hidden."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert
from brainfoundry.store.meta import changing_uri, shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.withdraw import withdraw
from tests.store.withdrawals import SPEC, SUBJECTS, digests, never


class _Killed(BaseException):
    """As if the process had died."""


def _writes(monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> list[str]:
    """Count what is put in place (`Path.replace` ends every local write); die before number `stop_at`."""
    seen: list[str] = []
    real = Path.replace

    def counted(self: Path, target: Path | str) -> Path:
        if len(seen) == stop_at:
            raise _Killed
        seen.append(Path(target).name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    return seen


def test_a_crash_anywhere_is_finished_by_the_next_run(
    made: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [SUBJECTS[2], SUBJECTS[4], SUBJECTS[5]]
    monkeypatch.setattr("brainfoundry.store.changing.now", lambda: "2026-01-01T00:00:00+00:00")
    straight = tmp_path / "straight"
    shutil.copytree(made[0], straight)
    with monkeypatch.context() as patch:
        writes = _writes(patch, None)
        withdraw(str(straight), ids)
    expected = digests(straight)
    assert writes[0] == "changing.json" and writes[-1] == "shardset.json" and len(writes) > 10
    for stop in range(1, len(writes)):
        broken = tmp_path / f"at-{stop}"
        shutil.copytree(made[0], broken)
        with monkeypatch.context() as patch, pytest.raises(_Killed):
            _writes(patch, stop)
            withdraw(str(broken), ids)
        with pytest.raises(DataError, match=r"being changed \(withdrawal\).*Fix: .*withdraw\.py again"):
            ShardSet.open(str(broken))
        with pytest.raises(DataError, match=r"being changed \(withdrawal\)"):
            convert(made[1], str(broken), SPEC, executor=never)
        done = withdraw(str(broken), ids if stop % 2 else ["nobody"])  # whatever the next list holds
        assert done.resumed and done.subjects == tuple(ids)
        assert digests(broken) == expected, writes[stop]
        shutil.rmtree(broken)


def test_another_kind_of_change_must_be_finished_first(shards: Path) -> None:
    meta = ShardSet.open(str(shards)).meta
    value = {"version": 1, "what": "split", "when": "", "before": meta.to_dict(), "payload": {"parts": {}}}
    files.write_json(changing_uri(str(shards)), value)
    with pytest.raises(DataError, match=r"another change .*\(split\).*Fix: run jobs/split\.py"):
        withdraw(str(shards), [SUBJECTS[0]])


def test_a_full_disk_is_one_line_and_goes_on(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.replace

    def full(self: Path, target: Path | str) -> Path:
        if Path(target).name == "index.parquet":
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(DataError, match=r"cannot be written: .*No space left.*Fix: free space"):
            withdraw(str(shards), [SUBJECTS[2]])
    assert withdraw(str(shards), [SUBJECTS[2]]).resumed
    assert ShardSet.open(str(shards)).verify() == []


def test_damage_is_neither_hidden_nor_in_the_way(shards: Path, tmp_path: Path) -> None:
    opened = ShardSet.open(str(shards))
    neighbour = opened.index.slice(3, 1).to_pylist()[0]  # shares shard 1 with case 3
    assert (neighbour["subject"], neighbour["shard"]) == (SUBJECTS[3], 1)
    path = Path(shard_uri(str(shards), 1))
    data = bytearray(path.read_bytes())
    data[neighbour["offset"] + neighbour["head_length"] + 40] ^= 0x10
    del opened
    path.write_bytes(data)
    other = tmp_path / "head"
    shutil.copytree(shards, other)
    withdraw(str(shards), [SUBJECTS[2]])  # a damaged brick comes along, and is still found
    (problem,) = ShardSet.open(str(shards)).verify()
    assert "fails its checksum" in problem and SUBJECTS[3] in problem
    data[data.index(b"n+1", neighbour["offset"]) + 3] ^= 0x01  # in the NIfTI header that is kept
    Path(shard_uri(str(other), 1)).write_bytes(data)
    with pytest.raises(DataError, match=r"shard is damaged: .*Fix: restore the file"):
        withdraw(str(other), [SUBJECTS[2]])


def test_no_set_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shard set here"):
        withdraw(str(tmp_path), ["x"])
