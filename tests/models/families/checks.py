"""What every family's network must do; each family's test calls these with a tiny one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from brainfoundry.models.families import load_family
from brainfoundry.tasks.losses import RegionLoss

CHANNELS, REGIONS = 2, 3
CROP = (64, 32, 32)
STEPS = 30


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def published(
    name: str, in_channels: int, out_channels: int, crop: Sequence[int] = (128, 128, 128), **options: Any
) -> int:
    """Parameters of a network of full size, none of whose weights are ever made."""
    with torch.device("meta"):
        return parameters(load_family(name).build(in_channels, out_channels, crop, options))


def tiny(name: str, crop: Sequence[int] = CROP, **options: Any) -> nn.Module:
    """A network whose weights are the same in every test."""
    torch.manual_seed(0)
    return load_family(name).build(CHANNELS, REGIONS, crop, options)


def batch(crop: Sequence[int] = CROP) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop with three nested boxes, visible through noise, and their masks."""
    truth = torch.zeros(1, REGIONS, *crop)
    for region, share in enumerate((0.4, 0.6, 0.2)):  # tumour core, whole tumour, enhancing tumour
        sides = [(int(side * (1 - share) / 2), int(side * (1 + share) / 2)) for side in crop]
        truth[(0, region, *(slice(lo, hi) for lo, hi in sides))] = 1
    noise = torch.randn(1, CHANNELS, *crop, generator=torch.Generator().manual_seed(1))
    return truth.sum(dim=1, keepdim=True) + 0.3 * noise, truth


def check_shapes(network: nn.Module, crops: Sequence[Sequence[int]]) -> None:
    """Logits of the crop's size in both modes, and in eval mode the same ones twice."""
    for crop in crops:
        x = torch.randn(2, CHANNELS, *crop)
        with torch.no_grad():
            assert network.train()(x).shape == (2, REGIONS, *crop)
            answer = network.eval()(x)
            assert answer.shape == (2, REGIONS, *crop)
            assert torch.equal(answer, network(x))


def check_gradients(network: nn.Module, crop: Sequence[int] = CROP) -> None:
    """Every parameter gets a gradient, as torch's data parallelism demands."""
    _loss(network.train(), *batch(crop)).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reaches {without}"
    network.zero_grad()


def check_learns(network: nn.Module, crop: Sequence[int] = CROP, *, lr: float = 1e-2) -> None:
    """The loss falls over 30 steps on one batch, by all parameters."""
    check_gradients(network, crop)
    x, truth = batch(crop)
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr)
    losses = []
    for _ in range(STEPS):
        total = _loss(network, x, truth)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


def _loss(network: nn.Module, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(RegionLoss("dice_ce")(network(x), truth).values())).sum()
