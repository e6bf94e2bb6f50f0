"""The trainer and Ray Train's watchman over placement groups."""

from __future__ import annotations

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from brainfoundry.training import trainer
from brainfoundry.training.trainer import Trainer


def watchmen(kind: type[TorchTrainer]) -> int:
    made = kind(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    found = made._create_default_callbacks()  # type: ignore[attr-defined]
    assert len(found) > 3  # the others are there
    return sum(isinstance(callback, PlacementGroupCleanerCallback) for callback in found)


@pytest.mark.parametrize(("dashboard", "expected"), [("", 0), ("127.0.0.1:8265", 1)])
def test_no_watchman_where_there_is_no_dashboard_to_ask(
    dashboard: str, expected: int, ray_local: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "get_dashboard_url", lambda: dashboard)
    assert watchmen(TorchTrainer) == 1 and watchmen(Trainer) == expected


def test_the_private_session_of_the_tests_has_none(ray_local: int) -> None:
    assert watchmen(Trainer) == 0
