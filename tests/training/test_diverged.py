"""A training whose loss is no longer finite."""

from __future__ import annotations

import pickle
from typing import cast

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from brainfoundry.core.errors import DivergedError
from brainfoundry.training.launch import _explain
from brainfoundry.training.task import TrainTask
from brainfoundry.training.worker import _refuse_nonfinite


def test_a_loss_that_is_no_longer_finite_ends_the_run_as_diverged() -> None:
    """By whatever Ray Train wraps it in, studies know it from other faults."""
    with pytest.raises(DivergedError, match=r"the loss of step 8 is nan\. Fix: lower --optim\.lr") as raised:
        _refuse_nonfinite([[0.5], [float("nan")]], 7)
    failure = WorkerGroupError("a worker failed", {0: pickle.loads(pickle.dumps(raised.value))})
    outer = RuntimeError("training failed")
    outer.__cause__ = failure
    assert isinstance(_explain(outer, cast(TrainTask, None)), DivergedError)
    _refuse_nonfinite([[0.5]], 7)
