"""Losses against MONAI's, and that figures do not depend on how crops are shared out."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import nn
from torch.nn import functional as F

from brainfoundry.core.errors import ConfigError
from brainfoundry.tasks.losses import PARTS, RegionLoss, hard_dice


def answers(crops: int = 4, regions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(crops, regions, 6, 5, 4, generator=generator) * 2
    truth = (torch.rand(crops, regions, 6, 5, 4, generator=generator) < 0.2).float()
    truth[0, -1] = 0.0  # a crop without its last region
    return logits.requires_grad_(), truth


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, of)[0]


@pytest.mark.parametrize(
    ("squared", "reference"),
    [
        (False, DiceLoss(to_onehot_y=False, sigmoid=True)),
        (True, DiceLoss(to_onehot_y=False, sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)),
    ],
)
def test_dice_is_the_released_one_in_value_and_gradient(squared: bool, reference: nn.Module) -> None:
    logits, truth = answers()
    found = RegionLoss("dice", squared=squared)(logits, truth)
    assert set(found) == {"dice_loss"}
    expected = reference(logits, truth)
    assert torch.equal(found["dice_loss"], expected)
    assert torch.equal(gradient(found["dice_loss"], logits), gradient(expected, logits))


def test_dice_by_hand() -> None:
    # Probability 0.5 everywhere, 2 of 8 voxels true: 2 * 1 / (4 + 2).
    truth = torch.zeros(1, 1, 2, 2, 2)
    truth[0, 0, 0, 0] = 1.0
    loss = RegionLoss("dice")(torch.zeros(1, 1, 2, 2, 2), truth)["dice_loss"]
    assert float(loss) == pytest.approx(1 - 2 / 6, abs=1e-5)


def test_of_one_region_dice_ce_is_monais() -> None:
    logits, truth = answers(regions=1)
    found = RegionLoss("dice_ce")(logits, truth)
    total = found["dice_loss"] + found["ce_loss"]
    expected = DiceCELoss(sigmoid=True)(logits, truth)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient(total, logits), gradient(expected, logits))


def test_of_several_regions_cross_entropy_is_binary_and_not_monais_softmax() -> None:
    logits, truth = answers()
    found = RegionLoss("dice_ce")(logits, truth)["ce_loss"]
    p = logits.sigmoid()
    torch.testing.assert_close(found, -(truth * p.log() + (1 - truth) * (1 - p).log()).mean())
    # Regions hold each other: a voxel of all three must be allowed to have every map at 1.
    nested = torch.ones(1, 3, 2, 2, 2)
    assert float(RegionLoss("dice_ce")(30 * nested, nested)["ce_loss"]) < 1e-6
    assert float(DiceCELoss(sigmoid=True)(30 * nested, nested)) > 1


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("squared", [False, True])
def test_crops_shared_out_and_averaged_give_the_figures_of_the_whole_batch(name: str, squared: bool) -> None:
    logits, truth = answers(crops=4)
    loss = RegionLoss(name, squared=squared)
    for share in (1, 2):
        parts = [loss(logits[i : i + share], truth[i : i + share]) for i in range(0, 4, share)]
        dice = [hard_dice(logits[i : i + share], truth[i : i + share]) for i in range(0, 4, share)]
        for key, whole in loss(logits, truth).items():
            torch.testing.assert_close(torch.stack([part[key] for part in parts]).mean(), whole)
        torch.testing.assert_close(torch.stack(dice).mean(dim=0), hard_dice(logits, truth))


@pytest.mark.parametrize("name", PARTS)
def test_losses_are_float32_under_autocast(name: str) -> None:
    logits, truth = answers()
    coarse = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = RegionLoss(name)(coarse, truth)
    exact = RegionLoss(name)(coarse.float(), truth)
    assert all(value.dtype == torch.float32 and torch.equal(value, exact[key]) for key, value in half.items())


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("level", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("there", [0.0, 1.0])
def test_extreme_answers_keep_losses_and_gradients_finite(
    name: str, squared: bool, level: float, there: float
) -> None:
    logits = torch.full((2, 3, 4, 4, 4), level, requires_grad=True)
    found = RegionLoss(name, squared=squared)(logits, torch.full((2, 3, 4, 4, 4), there))
    total = torch.stack(list(found.values())).sum()
    assert torch.isfinite(total) and torch.isfinite(gradient(total, logits)).all()


def test_hard_dice_by_hand() -> None:
    logits, truth = torch.full((3, 2, 2, 2, 2), -1.0), torch.zeros(3, 2, 2, 2, 2)
    truth[0, 0, 0, 0] = 1.0  # 2 voxels, of which 1 is found, with 1 besides: 2 / 4
    logits[0, 0, 0, 0, 0] = logits[0, 0, 1, 0, 0] = 1.0
    truth[1, 0] = 1.0  # 8 voxels, none found: 0
    logits[2, 1] = 1.0  # predicted where there is none: 0
    # Region 0: 0.5, 0, and nothing sought, nothing found: 1. Region 1: 1, 1, 0.
    assert hard_dice(logits, truth).tolist() == pytest.approx([0.5, 2 / 3])


def test_hard_dice_asks_whether_the_probability_is_above_one_half() -> None:
    logits, truth = answers()
    assert torch.equal(hard_dice(logits, truth), hard_dice(30 * logits, truth))
    assert not torch.allclose(hard_dice(logits, truth), hard_dice(logits + 1, truth))
    assert not hard_dice(logits, truth).requires_grad
    perfect = F.one_hot(truth.long(), 2)[..., 1] * 2.0 - 1
    assert hard_dice(perfect, truth).tolist() == [1.0, 1.0, 1.0]


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss 'focal' does not exist\. Fix: choose one of dice, dice_ce$"):
        RegionLoss("focal")
