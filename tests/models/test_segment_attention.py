"""Attention by segments: MONAI's numbers and gradients on any grid, in any precision, of equal weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging, compute_mask, get_window_size
from torch import nn

from brainfoundry.models import EncoderSpec, SSLNetwork, build_encoder, build_segmenter
from brainfoundry.models import segment_attention as by_segments
from brainfoundry.models.segment_attention import (
    SegmentBlock,
    SegmentStage,
    install_segments,
    segments,
    spans,
)

CROP = (64, 32, 32)
Grid = tuple[int, int, int]


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.detach() - theirs.detach()).abs().max() / theirs.detach().abs().max())


def stages(window: Grid, *, channels: int = 8, heads: int = 2, depth: int = 2) -> tuple[nn.Module, nn.Module]:
    """MONAI's stage and ours, of equal weights, in float64, where only a mistake can make a difference."""
    theirs = BasicLayer(
        dim=channels, depth=depth, num_heads=heads, window_size=window, drop_path=[0.0] * depth,
        qkv_bias=True, downsample=PatchMerging,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():  # a fresh one has biases of zero, which would hide the padding
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = copy.deepcopy(theirs)
    install_segments(ours)
    return theirs, ours


def networks(build: Callable[[EncoderSpec], nn.Module], **fields: Any) -> tuple[nn.Module, nn.Module]:
    """The network with MONAI's attention and ours, of equal weights."""
    torch.manual_seed(0)
    theirs = build(EncoderSpec(in_channels=2, **fields))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "qkv.bias" in name or "bias_table" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    ours = build(EncoderSpec(in_channels=2, attention="segments", **fields))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def outputs(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    answer = network(x)
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


def backward(network: nn.Module, x: torch.Tensor, seed: int = 0) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Outputs, and gradients of a random combination of them for every parameter and for the input."""
    x = x.clone().requires_grad_()
    answers = outputs(network, x)
    generator = torch.Generator().manual_seed(seed)
    total = sum((a * torch.randn(a.shape, generator=generator)).sum() for a in answers)
    assert isinstance(total, torch.Tensor)
    total.backward()
    return answers, {"input": x.grad} | {name: p.grad for name, p in network.named_parameters()}


def no_monai_path(*_: object) -> None:
    raise AssertionError("MONAI's path was taken")


# ---------------------------------------------------------------------------------------------------------
# Which tokens see each other


@settings(max_examples=60, deadline=None)
@given(window=st.integers(2, 7), extra=st.integers(1, 20), data=st.data())
def test_tokens_see_each_other_where_monai_lets_them(window: int, extra: int, data: st.DataObject) -> None:
    length, shift = window + extra, data.draw(st.integers(0, window - 1), label="shift")
    padded = -(-length // window) * window
    rolled = (torch.arange(padded) - shift) % padded
    place, number = rolled % window, rolled // window
    mask = compute_mask((padded, 1, 1), (window, 1, 1), (shift, 0, 0), torch.device("cpu"))
    same_window = number[:, None] == number
    visible = same_window & (mask[number[:, None], place[:, None], place] == 0)

    ours = torch.zeros_like(visible)
    seen = torch.zeros(length, dtype=torch.int)
    for span in spans(length, window, shift):
        for start in range(span.start, span.start + span.windows * span.length, span.length):
            tokens = slice(start, start + span.length)
            ours[tokens, start : start + span.length + span.padding] = True
            seen[tokens] += 1
            assert place[tokens].tolist() == list(range(span.offset, span.offset + span.length))
    assert (seen == 1).all()
    assert torch.equal(ours[:length], visible[:length])  # queries of the grid, keys of the padding too


def test_segments_of_the_first_stage_of_a_96_crop() -> None:
    # 48 tokens an axis, 7 windows and one token of padding: whole windows, the end and the rolled start.
    assert [(s.start, s.windows, s.length, s.offset, s.padding) for s in spans(48, 7, 3)] == [
        (0, 1, 3, 4, 0),
        (3, 6, 7, 0, 0),
        (45, 1, 3, 0, 1),
    ]
    found = segments((48, 48, 48), (7, 7, 7), (3, 3, 3))
    assert len(found) == 27
    assert sum(len(s.places) * s.windows[0] * s.windows[1] * s.windows[2] for s in found) == 48**3


# ---------------------------------------------------------------------------------------------------------
# Equal numbers


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 8)] * 3),
    window=st.tuples(*[st.integers(2, 4)] * 3),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_a_stage_equals_monai_on_any_grid(grid: Grid, window: Grid, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    theirs, ours = stages(window)
    x = torch.randn(batch, 8, *grid, dtype=torch.float64)
    their_answers, their_grads = backward(theirs, x)
    our_answers, our_grads = backward(ours, x)
    torch.testing.assert_close(our_answers, their_answers, rtol=1e-9, atol=1e-9)
    for name, grad in their_grads.items():
        assert torch.allclose(our_grads[name], grad, rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize(
    ("build", "crop"),
    [(build_encoder, (32, 96, 64)), (SSLNetwork, CROP), (lambda spec: build_segmenter(spec, 3), CROP)],
    ids=["encoder", "ssl", "segmenter"],
)
def test_a_network_equals_monai(build: Callable[[EncoderSpec], nn.Module], crop: Grid) -> None:
    # In float64: what the two differ by in float32, the instance norms of a segmenter blow up to 1e-3 of its
    # gradients, about as far as MONAI's float32 is from MONAI's float64.
    theirs, ours = networks(build, size="nano")
    x = torch.randn(1, 2, *crop, dtype=torch.float64)
    their_answers, their_grads = backward(theirs.double(), x)
    our_answers, our_grads = backward(ours.double(), x)
    assert max(map(relative_error, our_answers, their_answers)) <= 1e-12
    # A convolution's bias before an instance norm has no true gradient, only rounding.
    dead = {f"conv.{i}.bias" for i in (0, 4, 8, 12, 16)}
    for name in their_grads.keys() - dead:
        assert relative_error(our_grads[name], their_grads[name]) <= 1e-10, name


@pytest.mark.parametrize(
    ("fields", "crop"),
    [
        ({"size": "nano", "merging": "legacy"}, (64, 64, 64)),
        # Window 7; 16, 8, 4, 2 tokens along the first axes, 48, 24, 12, 6 along the last: grids of which only
        # some axes are shorter than the window.
        ({"size": "tiny"}, (32, 32, 96)),
    ],
    ids=["nano", "tiny"],
)
def test_an_encoder_equals_monai_in_float32(fields: dict[str, Any], crop: Grid) -> None:
    theirs, ours = networks(build_encoder, **fields)
    x = torch.randn(1, 2, *crop)
    their_answers, their_grads = backward(theirs, x)
    our_answers, our_grads = backward(ours, x)
    assert max(map(relative_error, our_answers, their_answers)) <= 1e-5
    for name, grad in their_grads.items():
        assert relative_error(our_grads[name], grad) <= 1e-3, name


def test_the_mixed_case_is_one() -> None:
    # Of the grids above: what MONAI makes of window and shift, axis by axis.
    assert get_window_size((4, 4, 12), (7, 7, 7), (3, 3, 3)) == ((4, 4, 7), (0, 0, 3))


def test_activation_checkpointing_and_stochastic_depth_stay() -> None:
    fields: dict[str, Any] = {"size": "nano", "activation_checkpointing": True, "drop_path_rate": 0.5}
    theirs, ours = networks(build_encoder, **fields)
    x = torch.randn(4, 2, *CROP)
    torch.manual_seed(1)
    their_answers, their_grads = backward(theirs, x)
    torch.manual_seed(1)
    our_answers, our_grads = backward(ours, x)
    assert max(map(relative_error, our_answers, their_answers)) <= 1e-5
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))


def test_the_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, network = stages((3, 3, 3))
    x = torch.randn(2, 8, 7, 7, 4, dtype=torch.float64)
    results = []
    for chunk in (1, 1000, 10**9):
        monkeypatch.setattr(by_segments, "CHUNK", chunk)
        network.zero_grad()
        answers, grads = backward(network, x)
        results.append([*answers, *grads.values()])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------
# Precisions


def test_bfloat16_autocast_is_as_close_to_float32_as_monai() -> None:
    theirs, ours = networks(build_encoder, size="nano")
    x = torch.randn(1, 2, *CROP)
    exact, exact_grads = backward(theirs, x)
    theirs.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        their_answers, their_grads = backward(theirs, x)
        our_answers, our_grads = backward(ours, x)
    assert [a.dtype for a in our_answers] == [a.dtype for a in their_answers]
    for ours_, theirs_, want in zip(our_answers, their_answers, exact, strict=True):
        assert relative_error(ours_, want) <= 1.5 * relative_error(theirs_, want) + 1e-6
    for name, want in exact_grads.items():
        assert our_grads[name].dtype == want.dtype
        assert relative_error(our_grads[name], want) <= 2 * relative_error(their_grads[name], want) + 0.01, (
            name
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_converted_network_computes(dtype: torch.dtype) -> None:
    _, ours = networks(build_encoder, size="nano")
    x = torch.randn(1, 2, *CROP)
    with torch.no_grad():
        want = ours(x)[4]
        got = ours.to(dtype)(x.to(dtype))[4]
    assert got.dtype == dtype
    assert relative_error(got.float(), want) < (1e-5 if dtype == torch.float64 else 0.05)


# ---------------------------------------------------------------------------------------------------------
# The same module


def test_weights_pass_both_ways_and_networks_are_copied_and_pickled() -> None:
    theirs, ours = networks(build_encoder, size="nano")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, *CROP)
    with torch.no_grad():
        want = ours(x)
        for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            for parameter in ours.parameters():  # what a copy that still reads its original would show
                parameter.add_(1)
            assert all(map(torch.equal, copied(x), want))
            for parameter in ours.parameters():
                parameter.sub_(1)


def test_all_blocks_of_a_segmenter_are_replaced() -> None:
    network = build_segmenter(EncoderSpec(size="nano", attention="segments"), 1)
    kinds = [type(module) for module in network.swinViT.modules()]
    assert (kinds.count(SegmentStage), kinds.count(SegmentBlock)) == (4, 8)


# ---------------------------------------------------------------------------------------------------------
# Where MONAI's path is taken


def test_dropout_of_attention_weights_is_monais(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = networks(build_encoder, size="nano", attention_drop_rate=0.3)
    x = torch.randn(1, 2, *CROP)
    torch.manual_seed(1)
    want = theirs(x)
    torch.manual_seed(1)
    assert all(map(torch.equal, ours(x), want))
    # In evaluation nothing is dropped, and segments attend.
    monkeypatch.setattr(BasicLayer, "forward", no_monai_path)
    ours.eval()(x)
    with pytest.raises(AssertionError, match="MONAI's path was taken"):
        ours.train()(x)


def test_other_devices_take_monais_path(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = build_encoder(EncoderSpec(size="nano", attention="segments")).to("meta")
    x = torch.empty(1, 1, *CROP, device="meta")
    assert ours(x)[4].shape == (1, 192, 2, 1, 1)
    monkeypatch.setattr(BasicLayer, "forward", no_monai_path)
    with pytest.raises(AssertionError, match="MONAI's path was taken"):
        ours(x)


# ---------------------------------------------------------------------------------------------------------
# Memory


def test_no_score_matrix_is_kept_for_the_backward_pass_and_nothing_without_one() -> None:
    def kept(network: nn.Module) -> int:
        """Elements of the largest tensor that is kept."""
        sizes = [0]
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)
        with hooks:
            network(x)
        return max(sizes)

    theirs, ours = networks(build_encoder, size="nano")
    x = torch.randn(1, 2, 64, 64, 64)
    scores = 3 * 8**3 * 64**2  # heads x windows x 64 queries x 64 keys of the first stage
    widest = 4 * 12 * 32**3  # the hidden layer of the first stage's perceptron
    assert kept(theirs) == scores > widest == kept(ours)
    with torch.no_grad():
        assert kept(ours) == 0


def test_training_after_inference_mode() -> None:
    # What is made once and kept must not be an inference tensor, which no backward pass may use.
    segments.cache_clear()
    _, ours = networks(build_encoder, size="nano")
    x = torch.randn(1, 2, *CROP)
    with torch.inference_mode():
        want = ours(x)
    answers, grads = backward(ours, x)
    assert all(map(torch.equal, answers, want))
    assert all(grad is not None for grad in grads.values())
