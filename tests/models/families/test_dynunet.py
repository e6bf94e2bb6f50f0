"""nnU-Net's plan on MONAI's DynUNet: the published count, and deep supervision that stays inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families.dynunet import widths
from tests.models.families.checks import CROP, check_gradients, check_learns, check_shapes, published, tiny


def test_parameters_as_published() -> None:
    assert published("dynunet", 4, 3) == 31_185_708
    assert published("dynunet", 4, 3, deep_supervision=False) == 31_184_355
    assert widths(32) == (32, 64, 128, 256, 320, 320)


def test_maps_and_learns() -> None:
    network = tiny("dynunet", filters=4)
    check_shapes(network, [CROP, (32, 64, 32)])
    check_learns(network)


def test_without_deep_supervision() -> None:
    network = tiny("dynunet", filters=4, deep_supervision=False)
    check_shapes(network, [CROP])
    check_gradients(network)


def test_logits_are_the_sum_over_the_levels() -> None:
    network = tiny("dynunet", filters=4).eval()
    levels: list[torch.Tensor] = []
    for head in (network.output_block, *network.deep_supervision_heads):
        head.register_forward_hook(lambda module, inputs, logits: levels.append(logits))
    with torch.no_grad():
        logits = network(torch.randn(1, 2, *CROP))
    levels.sort(key=lambda level: -level.shape[2])
    assert [tuple(level.shape[2:]) for level in levels] == [
        (64, 32, 32), (32, 16, 16), (16, 8, 8), (8, 4, 4)
    ]  # fmt: skip
    full = [F.interpolate(level, CROP, mode="trilinear") for level in levels]
    torch.testing.assert_close(logits, torch.stack(full).sum(0))


def test_a_used_network_can_be_copied() -> None:
    network = tiny("dynunet", filters=4)
    x = torch.randn(1, 2, *CROP)
    logits = network(x)
    torch.testing.assert_close(copy.deepcopy(network)(x), logits)


def test_a_deepest_grid_of_one_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dynunet would have 1 cell.*64x32x32"):
        tiny("dynunet", (32, 32, 32))
