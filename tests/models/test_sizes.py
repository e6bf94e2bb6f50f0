"""Sizes and specifications: the paper's parameter counts, and what a specification refuses."""

from __future__ import annotations

import pytest
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models import SIZES, EncoderSpec, SSLNetwork, build_encoder, build_segmenter

# (size, input channels): parameters of the whole pretraining network. One channel: the paper's Table 2.
PRETRAINING = {
    ("tiny", 1): 19_097_191,
    ("small", 1): 20_982_103,
    ("big", 1): 26_636_839,
    ("tiny", 2): 19_097_624,
    ("small", 2): 20_982_536,
    ("big", 2): 26_637_272,
    ("tiny", 4): 19_098_490,
    ("small", 4): 20_983_402,
    ("big", 4): 26_638_138,
}
ENCODER = {
    ("tiny", 1): 8_062_002,
    ("small", 1): 9_946_914,
    ("big", 1): 15_601_650,
    ("tiny", 4): 8_063_154,
    ("small", 4): 9_948_066,
    ("big", 4): 15_602_802,
}
# (size, input channels, output channels); 4 in, 3 out are the paper's 62, 64 and 69 million.
SEGMENTATION = {
    ("tiny", 4, 3): 62_191_941,
    ("small", 4, 3): 64_076_853,
    ("big", 4, 3): 69_731_589,
    ("tiny", 2, 3): 62_188_485,
    ("small", 1, 1): 64_071_571,
    ("big", 1, 1): 69_726_307,
    # Published for feature size 12 with window 7; window 4 has smaller bias tables, in 90 heads of 8 blocks.
    ("nano", 4, 3): 4_079_373 - 90 * (13**3 - 7**3),
}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("size", "channels"), PRETRAINING)
def test_pretraining_network_has_the_published_number_of_parameters(size: str, channels: int) -> None:
    network = SSLNetwork(EncoderSpec(size=size, in_channels=channels))
    assert parameters(network) == PRETRAINING[size, channels]


def test_heads_have_the_published_number_of_parameters() -> None:
    network = SSLNetwork(EncoderSpec(size="tiny", in_channels=1))
    assert parameters(network.rotation_head) == 3_076
    assert parameters(network.contrastive_head) == 393_728
    assert parameters(network.conv) == 10_638_385


@pytest.mark.parametrize(("size", "channels"), ENCODER)
def test_encoder_has_the_published_number_of_parameters(size: str, channels: int) -> None:
    encoder = build_encoder(EncoderSpec(size=size, in_channels=channels, merging="legacy"))
    assert parameters(encoder) == ENCODER[size, channels]


@pytest.mark.parametrize(("size", "inputs", "outputs"), SEGMENTATION)
def test_segmenter_has_the_published_number_of_parameters(size: str, inputs: int, outputs: int) -> None:
    network = build_segmenter(EncoderSpec(size=size, in_channels=inputs), outputs)
    assert parameters(network) == SEGMENTATION[size, inputs, outputs]


def test_sizes_differ_from_each_other_where_the_paper_says() -> None:
    assert list(SIZES) == ["nano", "tiny", "small", "big"]
    assert [SIZES[s].depths[2] for s in ("tiny", "small", "big")] == [2, 6, 18]
    assert {SIZES[s].window for s in ("tiny", "small", "big")} == {7}
    assert SIZES["tiny"].bottleneck_features == 768


def test_spec_survives_the_card() -> None:
    spec = EncoderSpec(
        size="nano", in_channels=3, merging="legacy", drop_path_rate=0.1, activation_checkpointing=True
    )
    assert EncoderSpec.from_dict(spec.to_dict()) == spec
    assert EncoderSpec.from_dict({"size": "big"}) == EncoderSpec(size="big")
    assert spec.identity() == EncoderSpec(size="nano", in_channels=3, merging="legacy").identity()
    assert spec.identity() != EncoderSpec(size="nano", in_channels=3).identity()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": "huge"}, "size 'huge' does not exist. Fix: choose one of nano, tiny, small, big"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"in_channels": True}, "in_channels is True"),
        ({"merging": "old"}, "merging 'old' does not exist. Fix: choose one of legacy, current"),
        ({"attention": "fast"}, "attention 'fast' does not exist. Fix: choose one of monai"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
        ({"drop_path_rate": "0.1"}, "drop_path_rate is '0.1'"),
    ],
)
def test_impossible_specs_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EncoderSpec(**fields)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_unknown_fields_on_a_card_are_refused() -> None:
    with pytest.raises(ConfigError, match="encoder field depth, width does not exist"):
        EncoderSpec.from_dict({"size": "nano", "width": 3, "depth": 2})
