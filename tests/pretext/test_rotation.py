"""Rotation: the released code's axis and direction, per crop, from the seeds alone."""

from __future__ import annotations

import pytest
import torch

from brainfoundry.pretext.rotation import draw_turns, rotate


def test_one_turn_moves_the_check_voxel_as_the_released_code_does() -> None:
    x = torch.zeros(1, 1, 4, 4, 4)
    x[0, 0, 1, 0, 2] = 1.0
    turned = rotate(x, torch.tensor([1]))
    assert turned.nonzero().tolist() == [[0, 0, 1, 1, 0]]


def test_every_crop_gets_its_own_turns() -> None:
    x = torch.randn(9, 2, 3, 5, 5)
    turns = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 1])
    expected = torch.stack([torch.rot90(crop, int(k), (2, 3)) for crop, k in zip(x, turns, strict=True)])
    assert torch.equal(rotate(x, turns), expected)
    assert torch.equal(rotate(rotate(x, turns), (4 - turns) % 4), x)


def test_turns_are_uniform_and_belong_to_the_seed() -> None:
    seeds = torch.arange(4000)
    turns = draw_turns(seeds)
    counts = torch.bincount(turns, minlength=4)
    assert counts.sum() == 4000 and len(counts) == 4
    assert ((counts - 1000).abs() < 110).all()  # four standard deviations of a fair draw
    assert torch.equal(draw_turns(seeds[1234:1240]), turns[1234:1240])


def test_unequal_sides_cannot_be_turned() -> None:
    with pytest.raises(ValueError, match="equal last two sides"):
        rotate(torch.zeros(1, 1, 4, 4, 6), torch.tensor([1]))
