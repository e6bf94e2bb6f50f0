"""Tasks by name, and what every task refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.tasks import Task, load_task
from brainfoundry.tasks.base import available

MM = (1.0, 1.0, 1.0)


def test_tasks_by_name() -> None:
    assert available() == ["atlas", "brats"]
    for name in available():
        task = load_task(name)
        assert isinstance(task, Task) and task.name == name
        assert all(tuple(region.labels) == task.schemes for region in task.regions)
        assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize("name", ["stroke", "base", "scores", "no.such", "../brats", ""])
def test_a_task_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=r"does not exist\. Fix: choose one of atlas, brats"):
        load_task(name)


@pytest.mark.parametrize("task", ["atlas", "brats"])
def test_policies_state_threshold_and_empty_regions(task: str) -> None:
    policies = load_task(task).policies()
    assert policies["threshold"] == "0.5"
    assert "empty" in policies["empty_policy"] and "challenge" in policies["empty_policy"]
    assert all(isinstance(text, str) and "\n" not in text for text in policies.values())


def test_a_scheme_of_another_task_or_of_none() -> None:
    volume = np.zeros((2, 2, 2), np.uint8)
    calls = (
        lambda task, scheme: task.check_scheme(scheme),
        lambda task, scheme: task.to_regions(torch.zeros(1, 2, 2, 2), scheme),
        lambda task, scheme: task.to_labels(np.zeros((1, 2, 2, 2), bool), scheme),
        lambda task, scheme: task.region_masks(volume, scheme),
        lambda task, scheme: task.score(volume, volume, MM, scheme),
    )
    for call in calls:
        with pytest.raises(
            ConfigError, match=r"task 'atlas' does not understand .*'brats2021'.*Fix: .*binary"
        ):
            call(load_task("atlas"), "brats2021")
        with pytest.raises(ConfigError, match="unknown label scheme 'brats1999'"):
            call(load_task("brats"), "brats1999")


def test_maps_on_different_grids() -> None:
    with pytest.raises(DataError, match=r"shape \(2, 3, 4\), prediction \(4, 3, 2\) \[subject s1\]\. Fix: "):
        load_task("atlas").score(np.zeros((2, 3, 4)), np.zeros((4, 3, 2)), MM, "binary", subject="s1")
    with pytest.raises(DataError, match="shape"):
        load_task("atlas").score(np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3, 4)), MM, "binary")


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, -1, 1), (1, float("nan"), 1)])
def test_a_spacing_that_is_none(spacing: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"not three positive numbers of mm \[subject s1\]"):
        load_task("atlas").score(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), spacing, "binary", subject="s1")


def test_probabilities_are_no_label_map() -> None:
    truth, soft = np.zeros((2, 2, 2)), np.full((2, 2, 2), 0.4)
    with pytest.raises(
        DataError, match=r"no whole numbers, for example 0\.4 \[subject s1; file the prediction"
    ):
        load_task("atlas").score(truth, soft, MM, "binary", subject="s1")
