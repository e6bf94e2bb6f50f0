"""Transfer of weights: by the modality's name, every tensor accounted for, never silently nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.models import EncoderSpec, SSLNetwork, build_segmenter
from brainfoundry.models.transfer import ACTIONS, MODES, STEM, STEM_BIAS, TransferRow, TransferTable, transfer

UKB = ("T1w", "FLAIR")
BRATS = ("FLAIR", "T1ce", "T1w", "T2w")
CROP = (64, 32, 32)
CONVS_ON_THE_SCAN = ("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight")
INDEX = "swinViT.layers1.0.blocks.0.attn.relative_position_index"

State = dict[str, torch.Tensor]


def ssl(channels: int, seed: int = 0) -> SSLNetwork:
    torch.manual_seed(seed)
    return SSLNetwork(EncoderSpec(size="nano", in_channels=channels))


def segmenter(channels: int, regions: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_segmenter(EncoderSpec(size="nano", in_channels=channels), regions)


def copy_of(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


UKB_STATE = copy_of(ssl(2, seed=1))


def to_brats(target: nn.Module, **options: Any) -> TransferTable:
    return transfer(target, UKB_STATE, source_modalities=UKB, target_modalities=BRATS, **options)


def row(table: TransferTable, name: str) -> TransferRow:
    (found,) = [r for r in table.rows if r.name == name and r.action != "dropped"]
    return found


def assert_accounted_for(table: TransferTable, before: State, after: nn.Module, source: State) -> None:
    """One row for each tensor of the target, one for each of the source that went nowhere, and they are
    true."""
    now = after.state_dict()
    kept = [r for r in table.rows if r.action != "dropped"]
    assert [r.name for r in kept] == list(now)
    used = {r.name for r in kept if r.action in ("copied", "adapted")}
    assert [r.name for r in table.rows if r.action == "dropped"] == [n for n in source if n not in used]
    for r in kept:
        assert r.shape == tuple(now[r.name].shape)
        if r.action == "copied":
            assert torch.equal(now[r.name], source[r.name]), r.name
        elif r.action == "initialised" and r.name != STEM:
            assert torch.equal(now[r.name], before[r.name]), r.name


def test_ukb_to_brats_takes_each_shared_modality_to_its_own_channel() -> None:
    target = ssl(4)
    before = copy_of(target)
    torch.manual_seed(7)
    table = to_brats(target)
    stem = target.state_dict()[STEM]
    assert torch.equal(stem[:, 0], UKB_STATE[STEM][:, 1])
    assert torch.equal(stem[:, 2], UKB_STATE[STEM][:, 0])
    assert torch.equal(target.state_dict()[STEM_BIAS], UKB_STATE[STEM_BIAS])
    torch.manual_seed(7)
    drawn = nn.init.kaiming_normal_(torch.empty(12, 4, 2, 2, 2), mode="fan_out", nonlinearity="relu")
    assert torch.equal(stem[:, [1, 3]], drawn[:, [1, 3]])
    # Everything else of the encoder is the source's; the heads were not asked for.
    assert_accounted_for(table, before, target, UKB_STATE)
    assert table.counts() == {"copied": 125, "adapted": 1, "initialised": 16, "dropped": 16}
    assert row(table, STEM).note.split("; ") == [
        "channel 0 FLAIR <- source 1 FLAIR",
        "channel 1 T1ce: Kaiming",
        "channel 2 T1w <- source 0 T1w",
        "channel 3 T2w: Kaiming",
    ]


def test_new_channels_have_the_spread_of_kaimings_fan_out() -> None:
    torch.manual_seed(0)
    target = SSLNetwork(EncoderSpec(size="tiny", in_channels=4))
    source = copy_of(SSLNetwork(EncoderSpec(size="tiny", in_channels=1)))
    transfer(target, source, source_modalities=["T1w"], target_modalities=BRATS)
    new = target.state_dict()[STEM][:, [0, 1, 3]]
    # Out of 48 features x 2^3 voxels, whatever the number of channels: 1,152 draws.
    assert float(new.std()) == pytest.approx(math.sqrt(2 / (48 * 8)), rel=0.1)


def test_ukb_to_atlas_keeps_the_t1w_and_names_what_is_dropped() -> None:
    target = segmenter(1, regions=1)
    before = copy_of(target)
    table = transfer(target, UKB_STATE, source_modalities=UKB, target_modalities=["T1w"])
    assert torch.equal(target.state_dict()[STEM][:, 0], UKB_STATE[STEM][:, 0])
    assert row(table, STEM).note == "channel 0 T1w <- source 0 T1w; source 1 FLAIR: dropped"
    assert_accounted_for(table, before, target, UKB_STATE)


def test_reference_mode_leaves_the_first_convolution_as_torch_makes_it() -> None:
    target = segmenter(4)
    before = copy_of(target)
    table = to_brats(target, mode="reference")
    after = target.state_dict()
    assert torch.equal(after[STEM], before[STEM]) and torch.equal(after[STEM_BIAS], before[STEM_BIAS])
    # torch's default for a convolution: uniform within 1/sqrt(fan in).
    assert float(after[STEM].abs().max()) <= 1 / math.sqrt(4 * 8)
    # 124 of 126 tensors of Tiny's encoder, as the released code loads them.
    assert table.counts()["copied"] == 124 and table.counts()["adapted"] == 0
    assert [r.name for r in table.rows if r.action == "dropped"][:2] == [STEM, STEM_BIAS]
    assert_accounted_for(table, before, target, UKB_STATE)


def test_mean_mode_gives_new_channels_the_mean_of_the_source() -> None:
    target = ssl(4)
    table = to_brats(target, mode="mean")
    stem, given = target.state_dict()[STEM], UKB_STATE[STEM]
    assert torch.equal(stem[:, 0], given[:, 1]) and torch.equal(stem[:, 2], given[:, 0])
    for new in (1, 3):
        torch.testing.assert_close(stem[:, new], (given[:, 0] + given[:, 1]) / 2)
    assert "channel 1 T1ce: mean of the source" in row(table, STEM).note
    transfer(target, UKB_STATE, source_modalities=UKB, target_modalities=["A", "B", "C", "D"], mode="mean")
    torch.testing.assert_close(
        target.state_dict()[STEM], given.mean(dim=1, keepdim=True).expand(-1, 4, -1, -1, -1)
    )


def test_repeat_mode_goes_round_whatever_the_names() -> None:
    target = ssl(4)
    table = to_brats(target, mode="repeat")
    assert torch.equal(target.state_dict()[STEM], UKB_STATE[STEM][:, [0, 1, 0, 1]])
    assert row(table, STEM).note.startswith(
        "channel 0 FLAIR <- source 0 T1w; channel 1 T1ce <- source 1 FLAIR"
    )


def test_the_same_channels_in_the_same_order_are_a_plain_copy() -> None:
    for mode in ("paper", "mean", "repeat"):
        target = ssl(2, seed=5)
        table = transfer(
            target,
            UKB_STATE,
            source_modalities=UKB,
            target_modalities=UKB,
            mode=mode,
            parts=("encoder", "heads"),
        )
        assert table.counts() == {"copied": 142, "adapted": 0, "initialised": 0, "dropped": 0}
        assert all(torch.equal(tensor, UKB_STATE[name]) for name, tensor in target.state_dict().items())


@settings(deadline=None, max_examples=15)
@given(
    source=st.permutations(BRATS),
    target=st.lists(st.sampled_from((*BRATS, "PD")), min_size=1, max_size=4, unique=True),
    mode=st.sampled_from([mode for mode in MODES if mode != "repeat"]),
)
def test_the_sources_order_of_modalities_changes_nothing(
    source: Sequence[str], target: Sequence[str], mode: Any
) -> None:
    state = copy_of(ssl(4, seed=3))
    order = [BRATS.index(name) for name in source]
    shuffled = state | {
        STEM: state[STEM][:, order],
        "conv.20.weight": state["conv.20.weight"][order],
        "conv.20.bias": state["conv.20.bias"][order],
    }
    results = []
    for given_state, names in ((state, BRATS), (shuffled, source)):
        network = ssl(len(target))
        torch.manual_seed(9)
        transfer(
            network,
            given_state,
            source_modalities=names,
            target_modalities=target,
            mode=mode,
            parts=("encoder", "heads"),
        )
        results.append(network.state_dict())
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


@pytest.mark.parametrize("kind", ["pretraining", "segmentation"])
def test_with_zeros_in_new_channels_the_encoder_computes_what_its_source_did(kind: str) -> None:
    source = ssl(2, seed=1).eval()
    target = (ssl(4) if kind == "pretraining" else segmenter(4)).eval()
    to_brats(target)
    x = torch.randn(1, 2, *CROP)
    wide = torch.zeros(1, 4, *CROP)
    wide[:, BRATS.index("T1w")], wide[:, BRATS.index("FLAIR")] = x[:, 0], x[:, 1]
    with torch.no_grad():
        for mine, theirs in zip(target.swinViT(wide), source.swinViT(x), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_segmenter_of_the_same_channels_gets_the_very_same_hidden_states() -> None:
    source, target = ssl(2, seed=1).eval(), segmenter(2).eval()
    transfer(target, copy_of(source), source_modalities=UKB, target_modalities=UKB)
    x = torch.randn(1, 2, *CROP)
    with torch.no_grad():
        for mine, theirs in zip(target.swinViT(x), source.swinViT(x), strict=True):  # type: ignore[operator]
            assert torch.equal(mine, theirs)


def test_heads_follow_the_names_too() -> None:
    target = ssl(4)
    before = copy_of(target)
    table = to_brats(target, parts=("encoder", "heads"))
    after = target.state_dict()
    for name in ("conv.20.weight", "conv.20.bias"):
        assert torch.equal(after[name][0], UKB_STATE[name][1]) and torch.equal(
            after[name][2], UKB_STATE[name][0]
        )
        assert torch.equal(after[name][[1, 3]], before[name][[1, 3]])
        assert "channel 1 T1ce: fresh" in row(table, name).note
    assert table.counts() == {"copied": 139, "adapted": 3, "initialised": 0, "dropped": 0}
    assert_accounted_for(table, before, target, UKB_STATE)


def test_a_decoder_goes_onto_another_and_says_what_it_cannot_take() -> None:
    source = copy_of(segmenter(4, regions=3, seed=1))
    target = segmenter(1, regions=1)
    before = copy_of(target)
    table = transfer(
        target, source, source_modalities=BRATS, target_modalities=["T1w"], parts=("encoder", "decoder")
    )
    assert row(table, "out.conv.conv.bias").action == "initialised"
    assert row(table, "out.conv.conv.bias").note == "3 in the source, 1 in the target"
    # The outermost skip connection reads the scan, so its channels have names as well.
    for name in CONVS_ON_THE_SCAN:
        assert torch.equal(target.state_dict()[name][:, 0], source[name][:, 2])
    assert table.counts() == {"copied": 154, "adapted": 3, "initialised": 2, "dropped": 2}
    assert_accounted_for(table, before, target, source)


def test_an_index_table_of_another_window_is_never_taken() -> None:
    other = UKB_STATE | {INDEX: UKB_STATE[INDEX].flip(0)}
    target = ssl(2)
    before = copy_of(target)
    table = transfer(target, other, source_modalities=UKB, target_modalities=UKB)
    assert torch.equal(target.state_dict()[INDEX], before[INDEX])
    assert row(table, INDEX).action == "initialised"
    assert [r.note for r in table.rows if r.name == INDEX and r.action == "dropped"] == [
        "another table in source and target"
    ]
    assert_accounted_for(table, before, target, other)


def test_half_precision_weights_keep_the_targets_type() -> None:
    half = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in UKB_STATE.items()}
    target = ssl(4)
    transfer(target, half, source_modalities=UKB, target_modalities=BRATS)
    assert target.state_dict()[STEM].dtype == torch.float32
    assert torch.equal(target.state_dict()[STEM][:, 0], half[STEM][:, 1].float())


def test_names_that_match_nothing_are_an_error_with_both_sides() -> None:
    target = ssl(2)
    before = copy_of(target)
    prefixed = {f"module.{name}": tensor for name, tensor in UKB_STATE.items()}
    with pytest.raises(CheckpointError) as caught:
        transfer(target, prefixed, source_modalities=UKB, target_modalities=UKB, source="a/step-00000010")
    line = caught.value.line()
    assert "not one parameter of part 'encoder' could be transferred" in line
    assert "wants 126 tensors (swinViT.patch_embed.proj.weight 12x2x2x2x2, " in line
    assert "the source has 142 tensors (module.swinViT.patch_embed.proj.weight 12x2x2x2x2, " in line
    assert "file a/step-00000010" in line
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_equal_tables_of_indices_alone_are_not_a_transfer() -> None:
    tables = {name: tensor for name, tensor in UKB_STATE.items() if not tensor.is_floating_point()}
    with pytest.raises(CheckpointError, match="not one parameter of part 'encoder'"):
        transfer(ssl(2), tables, source_modalities=UKB, target_modalities=UKB)


def test_each_part_asked_for_must_bring_something() -> None:
    with pytest.raises(CheckpointError, match=r"part 'decoder'.*the network wants 33 tensors"):
        to_brats(segmenter(4), parts=("encoder", "decoder"))
    with pytest.raises(
        CheckpointError, match=r"part 'heads'.*the network wants 0 tensors; the source has 142"
    ):
        to_brats(segmenter(4), parts=("encoder", "heads"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "copy"}, "transfer mode 'copy' does not exist.*paper, reference, mean, repeat"),
        ({"parts": ("body",)}, "part 'body' does not exist.*encoder, heads, decoder"),
        ({"parts": ()}, "no part of the network"),
        ({"target_modalities": ("T1w", "T1w")}, "a channel is named twice in T1w, T1w"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], says: str) -> None:
    request: dict[str, Any] = {"source_modalities": UKB, "target_modalities": UKB, **changes}
    with pytest.raises(ConfigError, match=says):
        transfer(ssl(2), UKB_STATE, **request)


def test_a_source_with_other_channels_than_names_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has 2 channel\(s\), but the source's modalities are T1w"):
        transfer(ssl(2), UKB_STATE, source_modalities=["T1w"], target_modalities=UKB)


TEXT = """\
weights from step-00000120, mode paper
swinViT.patch_embed.proj.weight    1 tensor   adapted              384
    channel 0 FLAIR <- source 1 FLAIR
    channel 1 T1ce: Kaiming
    channel 2 T1w <- source 0 T1w
    channel 3 T2w: Kaiming
swinViT.patch_embed.proj.bias      1 tensor   copied                12
swinViT.layers1.0.blocks.0.*      14 tensors  copied             2,913
swinViT.layers1.0.blocks.1.*      14 tensors  copied             2,913
swinViT.layers1.0.downsample.*     3 tensors  copied             2,496
"""
TAIL = """\
rotation_head.*                    2 tensors  dropped              772  not in the target
contrastive_head.*                 2 tensors  dropped           98,816  not in the target
conv.*                            12 tensors  dropped          665,066  not in the target
tensors: 125 copied (528,042 parameters), 1 adapted (384 parameters), 33 initialised (3,384,087 parameters), \
16 dropped (764,654 parameters)"""


def test_the_table_reads_in_a_terminal() -> None:
    text = to_brats(segmenter(4), source="step-00000120").text()
    assert text.startswith(TEXT) and text.endswith(TAIL)
    assert all(len(line) <= 110 for line in text.splitlines()[:-1])


def test_the_table_goes_into_files_tensor_by_tensor() -> None:
    target = segmenter(4)
    table = to_brats(target)
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(lines) == len(table.rows) == 159 + 16
    assert lines[0]["name"] == STEM and lines[0]["shape"] == "12x4x2x2x2" and lines[0]["action"] == "adapted"
    plain = json.loads(json.dumps(table.to_dict()))
    assert plain["counts"] == table.counts() and len(plain["rows"]) == len(lines)
    by = table.parameter_counts()
    assert sum(by[a] for a in ACTIONS if a != "dropped") == sum(p.numel() for p in target.parameters())
