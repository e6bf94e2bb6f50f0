"""The small shard sets of the training tests serve studies too; a driver that trains nothing."""

from __future__ import annotations

import pytest

from brainfoundry.experiments import driver
from tests.experiments.driven import Waves
from tests.training.conftest import labelled_shards, small_shards

__all__ = ["labelled_shards", "small_shards", "waves"]


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> Waves:
    """Instead of Ray Tune."""
    made = Waves()
    monkeypatch.setattr(driver, "run_wave", made)
    monkeypatch.setattr(driver, "at_once", lambda configs: len(list(configs)) or 1)
    monkeypatch.setattr(driver.ray, "nodes", lambda: [{"Alive": True}])
    return made
