"""The benchmark `step`: equal results on both sides, and figures under their fixed names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from brainfoundry.benchmarks import step
from brainfoundry.models import EncoderSpec
from brainfoundry.models.sizes import Merging

CROP = (64, 32, 32)


@pytest.mark.parametrize("merging", ["current", "legacy"])
def test_our_step_equals_the_plain_monai_step(merging: Merging, tmp_path: Path) -> None:
    figures = step.run(
        tmp_path / "step.json", repeats=1, size="nano", crop=CROP, merging=merging, memory=False
    )
    assert figures["step_max_rel_diff_loss"] <= 1e-5
    assert figures["step_max_rel_diff_grad"] <= 1e-4
    assert figures["step_vs_monai_min"] <= figures["step_vs_monai"] <= figures["step_vs_monai_max"]
    assert json.loads((tmp_path / "step.json").read_text()) == figures


def test_a_step_that_computes_something_else_is_seen() -> None:
    views = step.make_views(CROP)
    ours = step.Stepper("ours", EncoderSpec(size="nano", merging="legacy"))
    theirs = step.Stepper("monai", EncoderSpec(size="nano", merging="current"), ours.network.state_dict())
    our_losses, our_grads = ours.gradients(views)
    their_losses, their_grads = theirs.gradients(views)
    assert abs(our_losses["total"] / their_losses["total"] - 1) > 1e-4
    assert step.largest_relative_difference(our_grads, their_grads) > 1e-3
    with pytest.raises(ValueError, match=r"different parameters: \['conv\.20\.bias'\]"):
        step.largest_relative_difference(
            {**our_grads}, {k: g for k, g in our_grads.items() if k != "conv.20.bias"}
        )


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="stop"), step._threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError("stop")
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process() -> None:
    hog = torch.zeros(150_000_000)  # 0.6 GB that must not show
    peak = step.peak_memory_gb("ours", EncoderSpec(size="nano"), CROP, 1)
    assert hog.nbytes == 600_000_000
    assert 0.2 < peak < step._own_peak_gb() + 0.5
