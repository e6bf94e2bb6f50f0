"""A disk that fills midway: one clear line, nothing half-visible, and the next run goes on from there."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import meta_uri, shard_uri, sidecar_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec, ShardTask, convert_shard
from brainfoundry.store.withdraw import withdraw
from tests.store.test_convert import tree

SPEC = ConvertSpec(min_slices=10, rows_per_shard=2, n_val=1, seed=3)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system itself refuses to let a file grow past `size` bytes, as a full disk would (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("when", ["shard", "tables"])
def test_conversion_resumes(cohort: Callable[[int], Manifest], tmp_path: Path, when: str) -> None:
    manifest, out = cohort(5), tmp_path / "out"
    limits = contextlib.ExitStack()

    def fills(tasks: Sequence[ShardTask]) -> Iterator[int]:
        convert_shard(tasks[0])
        yield len(tasks[0].rows)
        if when == "shard":
            limits.enter_context(no_file_above(64 << 10))
        yield from inline(tasks[1:])
        limits.enter_context(no_file_above(1 << 10))

    with limits, pytest.raises(DataError, match=r"cannot be written: .*Fix: "):
        convert(manifest, str(out), SPEC, executor=fills)
    assert not Path(meta_uri(str(out))).exists()
    finished = [n for n in range(3) if Path(sidecar_uri(str(out), n)).exists()]
    assert finished == ([0] if when == "shard" else [0, 1, 2])
    assert not list(out.rglob("*.tmp"))
    first = Path(shard_uri(str(out), 0)).stat().st_mtime_ns
    done = convert(manifest, str(out), SPEC, executor=inline)
    assert done.rows_skipped == (2 if when == "shard" else 5)
    assert Path(shard_uri(str(out), 0)).stat().st_mtime_ns == first
    convert(manifest, str(tmp_path / "straight"), SPEC, executor=inline)
    assert tree(out) == tree(tmp_path / "straight")


def test_withdrawal_goes_on(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    convert(cohort(5), out, SPEC, executor=inline)
    with no_file_above(64 << 10), pytest.raises(DataError, match=r"cannot be written: .*Fix: free space"):
        withdraw(out, ["9900003"])
    with pytest.raises(DataError, match="being changed"):
        ShardSet.open(out)
    assert withdraw(out, ["9900003"]).resumed
    shards = ShardSet.open(out)
    assert shards.verify() == [] and "9900003" not in shards.index["subject"].to_pylist()
    assert not list(Path(out).rglob("*.tmp"))
