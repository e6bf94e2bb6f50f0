"""The learning rate is a pure function of the step."""

import math

import pytest

from brainfoundry.training.config import OptimConfig
from brainfoundry.training.schedule import lr_factor


def test_warm_up_is_linear_from_zero_then_half_a_cosine() -> None:
    config = OptimConfig(steps=1500, warmup=500)
    assert lr_factor(0, config) == 0
    assert lr_factor(250, config) == 0.5
    assert lr_factor(500, config) == 1
    assert lr_factor(1000, config) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert lr_factor(1500, config) == pytest.approx(0)
    assert lr_factor(9999, config) == pytest.approx(0)  # the released code's rate rises again here


def test_matches_torch_lambda_schedule_over_a_run() -> None:
    import torch

    config = OptimConfig(steps=60, warmup=7)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=config.lr)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: s / 7),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 53),
        ],
        [7],
    )
    for step in range(60):
        assert config.lr * lr_factor(step, config) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        schedule.step()


def test_constant_after_warm_up() -> None:
    config = OptimConfig(steps=100, warmup=10, schedule="constant")
    assert [lr_factor(s, config) for s in (5, 10, 99)] == [0.5, 1, 1]
