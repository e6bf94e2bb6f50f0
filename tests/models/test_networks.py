"""Encoder, heads and segmenter: names and shapes of the released code, merging orders, equal results."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models import EncoderSpec, SSLNetwork, build_encoder, build_segmenter
from brainfoundry.models.attention import IMPLEMENTATIONS, install_attention
from brainfoundry.models.swin import LegacyPatchMerging, bottleneck

NANO = EncoderSpec(size="nano", in_channels=2)
CROP = (64, 32, 32)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def layout_digest(network: nn.Module) -> str:
    layout = [(name, list(value.shape)) for name, value in network.state_dict().items()]
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


# SHA-256 over the JSON list of [name, shape] of every state-dict entry, in order: of the released pretraining
# network (Small, 2 channels in), and of MONAI 1.6.1's SwinUNETR (Small, 4 in, 3 out).
SSL_SMALL_2 = "54793d056c01ba323021f9719a45432b2f57e6edfe351de87f05f470583f1443"
SEGMENTER_SMALL_4_3 = "3e00e399b035a7b00bc0ab9ba3845da593b028fff26358d2a3481a42c2c9c18e"


@pytest.mark.parametrize("merging", ["legacy", "current"])
def test_names_shapes_and_their_order_are_the_released_ones(merging: str) -> None:
    ssl = SSLNetwork(EncoderSpec(size="small", in_channels=2, merging=merging))
    segmenter = build_segmenter(EncoderSpec(size="small", in_channels=4, merging=merging), 3)
    assert len(ssl.state_dict()) == 198
    assert layout_digest(ssl) == SSL_SMALL_2
    assert len(segmenter.state_dict()) == 215
    assert layout_digest(segmenter) == SEGMENTER_SMALL_4_3


def test_encoder_names_are_shared_by_both_networks() -> None:
    encoder = set(build_encoder(NANO).state_dict())
    for network in (SSLNetwork(NANO), build_segmenter(NANO, 3)):
        prefixed = {name for name in network.state_dict() if name.startswith("swinViT.")}
        assert prefixed == {f"swinViT.{name}" for name in encoder}


def test_legacy_merging_takes_two_neighbours_twice_and_two_never() -> None:
    # One feature, whose value at each of the 8 voxels spells its place: 100 d + 10 h + w.
    place = torch.tensor([100.0 * d + 10 * h + w for d in range(2) for h in range(2) for w in range(2)])
    merging = LegacyPatchMerging(dim=1)
    merging.norm = nn.Identity()
    merging.reduction = nn.Identity()
    merged = merging(place.view(1, 2, 2, 2, 1))
    assert merged.flatten().tolist() == [0, 100, 10, 1, 101, 10, 1, 111]


def test_legacy_merging_pads_odd_sides_with_zeros() -> None:
    merging = LegacyPatchMerging(dim=1)
    merging.norm = nn.Identity()
    merging.reduction = nn.Identity()
    merged = merging(torch.arange(1.0, 4.0).view(1, 1, 1, 3, 1))
    assert merged.shape == (1, 1, 1, 2, 8)
    # Along the last axis voxels 1, 2 then 3 and padding; the neighbours of the other axes are padding.
    assert merged[0, 0, 0, 0].tolist() == [1, 0, 0, 2, 0, 0, 2, 0]
    assert merged[0, 0, 0, 1].tolist() == [3, 0, 0, 0, 0, 0, 0, 0]


def test_merging_changes_features_under_equal_weights() -> None:
    torch.manual_seed(0)
    current = build_encoder(NANO)
    legacy = build_encoder(EncoderSpec(size="nano", in_channels=2, merging="legacy"))
    legacy.load_state_dict(current.state_dict())
    x = torch.randn(1, 2, *CROP)
    with torch.no_grad():
        assert torch.equal(current(x)[0], legacy(x)[0])  # before any merging
        assert relative_error(legacy(x)[4], current(x)[4]) > 0.3
        assert relative_error(bottleneck(legacy, x), legacy(x)[4]) < 1e-6


def test_segmenter_takes_the_merging_of_its_spec() -> None:
    legacy = build_segmenter(EncoderSpec(size="nano", merging="legacy"), 1)
    assert isinstance(legacy.swinViT.layers1[0].downsample, LegacyPatchMerging)
    assert not isinstance(build_segmenter(NANO, 1).swinViT.layers1[0].downsample, LegacyPatchMerging)


def test_heads_answer_from_tokens_0_and_1_and_rebuild_the_input_size() -> None:
    torch.manual_seed(0)
    network = SSLNetwork(NANO).eval()
    x = torch.randn(3, 2, *CROP)
    with torch.no_grad():
        answers = network(x)
        tokens = network.swinViT(x)[4].flatten(2).transpose(1, 2)
        assert tokens.shape == (3, 2, 192)
        torch.testing.assert_close(answers.rotation_logits, network.rotation_head(tokens[:, 0]))
        torch.testing.assert_close(answers.contrast, network.contrastive_head(tokens[:, 1]))
        # The layers one after the other, as the released code runs them.
        plain = network.conv(network.swinViT(x)[4])
    assert answers.rotation_logits.shape == (3, 4)
    assert answers.contrast.shape == (3, 512)
    assert answers.rebuilt.shape == x.shape
    assert relative_error(answers.rebuilt, plain) < 1e-5


def test_every_parameter_learns_and_checkpointing_changes_nothing() -> None:
    x = torch.randn(1, 2, *CROP)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        network = SSLNetwork(EncoderSpec(size="nano", in_channels=2, activation_checkpointing=checkpointing))
        answers = network(x)
        (
            answers.rotation_logits.square().sum() + answers.contrast.sum() + answers.rebuilt.abs().sum()
        ).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    plain, recomputed = gradients
    assert all(g is not None for g in plain.values())
    # These biases are followed by an instance norm, which removes them: their true gradient is zero.
    dead = {f"conv.{i}.bias" for i in (0, 4, 8, 12, 16)}
    for name in plain.keys() - dead:
        assert relative_error(recomputed[name], plain[name]) < 1e-5, name


@pytest.mark.parametrize(
    ("crop", "says"),
    [
        ((32, 32, 32), "leaves 1 bottleneck token where the network needs 2"),
        ((48, 48, 48), "every side must be a multiple of 32 voxels"),
    ],
)
def test_crops_that_the_heads_cannot_use_are_refused(crop: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SSLNetwork(NANO)(torch.zeros(1, 2, *crop))


def test_segmenter_gives_one_map_a_channel_and_refuses_none() -> None:
    with torch.no_grad():
        assert build_segmenter(NANO, 3)(torch.zeros(1, 2, *CROP)).shape == (1, 3, *CROP)
    with pytest.raises(ConfigError, match="out_channels is 0"):
        build_segmenter(NANO, 0)


def test_another_attention_joins_by_name_in_both_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[nn.Module] = []
    monkeypatch.setitem(IMPLEMENTATIONS, "monai", installed.append)
    ssl, segmenter = SSLNetwork(NANO), build_segmenter(NANO, 1)
    assert installed == [ssl.swinViT, segmenter.swinViT]
    with pytest.raises(ConfigError, match="attention 'fast' does not exist"):
        install_attention(ssl.swinViT, "fast")
