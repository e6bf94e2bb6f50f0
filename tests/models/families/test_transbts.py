"""TransBTS: the published count to the last parameter, shapes of every stage, learning, its one window."""

from __future__ import annotations

import pytest
import torch

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families.transbts import Attention
from tests.models.families.checks import check_learns, check_shapes, parameters, published, tiny

CROP = (32, 32, 32)
TINY = {"filters": 4, "embed": 24, "layers": 2, "heads": 2, "hidden": 32}


def test_parameters_as_published() -> None:
    # Four classes in one softmax, and a layer that the released network declares and never uses.
    assert published("transbts", 4, 4, unused_layer=True) == 32_987_588
    assert published("transbts", 4, 4) == 32_987_588 - (512 * 512 + 512) == 32_724_932
    assert published("transbts", 4, 3) == 32_724_932 - (16 + 1)


def test_positions_go_with_the_crop() -> None:
    # One vector of 512 for each 8^3 voxels.
    wider = published("transbts", 4, 3, (128, 128, 64))
    assert published("transbts", 4, 3) - wider == 512 * (16**3 - 16 * 16 * 8)


def test_maps_and_learns() -> None:
    network = tiny("transbts", CROP, **TINY)
    check_shapes(network, [CROP])
    check_learns(network, CROP)
    check_shapes(tiny("transbts", (16, 32, 8), **TINY), [(16, 32, 8)])


def test_the_transformer_sees_an_eighth() -> None:
    network = tiny("transbts", CROP, **TINY)
    seen: list[torch.Size] = []
    network.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    network.to_tokens.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    network(torch.zeros(1, 2, *CROP))
    assert seen == [(1, 32, 4, 4, 4), (1, 64, 24)]


def test_every_token_reaches_every_voxel() -> None:
    network = tiny("transbts", CROP, **TINY).eval()
    x = torch.zeros(1, 2, *CROP, requires_grad=True)
    network(x)[0, 0, 0, 0, 0].backward()
    assert x.grad is not None and float(x.grad[0, :, -8:, -8:, -8:].abs().sum()) > 0


def test_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = Attention(24, 3, 0.5).eval()
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.out.state_dict())
        x = torch.randn(2, 5, 24)
        torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
        assert not torch.equal(ours.train()(x), theirs(x, x, x)[0])  # dropout, while it trains


def test_the_unused_layer_is_frozen() -> None:
    network = tiny("transbts", CROP, **TINY, unused_layer=True)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["unused.weight", "unused.bias"]
    assert parameters(network) - parameters(tiny("transbts", CROP, **TINY)) == 24 * 24 + 24


def test_other_windows_and_uneven_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"built for crops of 32x32x32, and is shown 32x32x16.*windows of"):
        tiny("transbts", CROP, **TINY)(torch.zeros(1, 2, 32, 32, 16))
    with pytest.raises(ConfigError, match="24 features do not divide between 5 heads"):
        tiny("transbts", CROP, **(TINY | {"heads": 5}))
