"""Shard sets for the stream's tests; Ray comes from tests/conftest.py."""

from __future__ import annotations

import pytest

from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from tests.store.builders import brain, intake, nifti, put
from tests.stream.builders import labelled_set, make_index, write_set


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A converted shard set of five participants, T1w and FLAIR, int16, in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    for eid in range(9_900_001, 9_900_006):
        put(folder / "ukb", eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500, top=700))})
    convert(
        intake(folder / "ukb"),
        str(folder / "set"),
        ConvertSpec(min_slices=30, rows_per_shard=2),
        executor=inline,
    )
    return str(folder / "set")


@pytest.fixture(scope="session")
def witness_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that `WitnessReader` opens: seven subjects, two sessions each."""
    return write_set(tmp_path_factory.mktemp("witness"), make_index(7, sessions=2))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """`builders.labelled_set`, opened."""
    return ShardSet.open(labelled_set(tmp_path_factory.mktemp("labelled")))
