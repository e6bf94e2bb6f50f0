"""Window attention without padding, rolling and masks: MONAI's numbers, several times faster on a CPU.

MONAI pads the grid of tokens to whole windows, rolls it by the shift and masks the scores between tokens that
only the roll brought together. Here the tokens that attend to each other are cut out of the grid where they
lie. A *segment* is a box of equal windows, or one window clipped to a region of the shift or by the grid's
end. Up to rounding and to exp(-100), which is MONAI's mask, all of this is exact:

- The padded keys of a window are all equal (the bias of the projection), so one key stands for them, with the
  logarithm of their summed exponentials as its relative position bias.
- Padded queries, which MONAI computes and cuts off, are not computed, nor are masked scores, nor masks.
- Scores are made chunk by chunk in the processor's cache, and made again in the backward pass: the largest
  tensors of the network are never stored.

MONAI's own path is taken on any device but a CPU, where up to 27 small segments a block would be bound by
kernel launches, and while attention weights are dropped out, which needs all of them. Dropout of a block's
output draws as often as MONAI's, but not the same random numbers.

Shape legend: N crops, D H W the grid of tokens, C channels, h heads, M windows x heads of a segment,
q queries and k keys of a window, p its padded tokens, d features of a head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    WindowAttention,
    get_window_size,
)
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 200_000
"""Scores held at a time: with their softmax 1.6 MB of float32, about the second-level cache of a core."""


@dataclass(frozen=True)
class Span:
    """Equal neighbouring pieces of one axis, none of which sees another.

    Attributes:
        start: first token.
        windows: how many pieces.
        length: tokens of a piece.
        offset: place of a piece's first token in its window.
        padding: tokens of the window, right after the piece, that lie beyond the grid.
    """

    start: int
    windows: int
    length: int
    offset: int
    padding: int


@dataclass(frozen=True)
class Segment:
    """A box of the grid whose windows all have the same tokens; places are flat indices into a window."""

    start: tuple[int, ...]
    windows: tuple[int, ...]
    extent: tuple[int, ...]
    places: torch.Tensor
    padding: torch.Tensor


def spans(length: int, window: int, shift: int) -> list[Span]:
    """An axis of `length` tokens, cut as shifted windows cut it: every token lies in exactly one piece."""
    padded = math.ceil(length / window) * window
    # The shift rolls the first tokens to the end of the last window, where they see only each other.
    pieces = [(0, shift, window - shift)] if shift else []
    pieces += [(start, min(start + window, padded), 0) for start in range(shift, padded, window)]
    real = [(start, min(stop, length), offset, max(stop - length, 0)) for start, stop, offset in pieces]
    found: list[Span] = []
    for (size, offset, padding), group in itertools.groupby(real, lambda p: (p[1] - p[0], p[2], p[3])):
        if size > 0:
            starts = [start for start, *_ in group]
            found.append(Span(starts[0], len(starts), size, offset, padding))
    return found


@lru_cache(maxsize=64)
def segments(grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> tuple[Segment, ...]:
    """The segments of a grid: every token of it lies in exactly one."""
    found = []
    for axes in itertools.product(*map(spans, grid, window, shift)):
        ranges = [torch.arange(a.offset, a.offset + a.length + a.padding, device="cpu") for a in axes]
        d, h, w = torch.meshgrid(*ranges, indexing="ij")
        places = (d * window[1] + h) * window[2] + w
        extent = tuple(a.length for a in axes)
        inside = torch.zeros_like(places, dtype=torch.bool)
        inside[: extent[0], : extent[1], : extent[2]] = True
        start, windows = tuple(a.start for a in axes), tuple(a.windows for a in axes)
        found.append(Segment(start, windows, extent, places[inside], places[~inside]))
    return tuple(found)


def _bias(attention: WindowAttention, segment: Segment, dtype: torch.dtype) -> torch.Tensor:
    """Relative position bias (h, q, k) of a segment's windows; its last key stands for all padded ones."""
    # Flat indices into the full window even where the grid is smaller than it: that is how MONAI reads them.
    index_qk = attention.get_buffer("relative_position_index")[segment.places]
    table = attention.relative_position_bias_table.to(dtype)
    bias_qkh = F.embedding(index_qk[:, segment.places], table)
    if len(segment.padding):
        padding_qph = F.embedding(index_qk[:, segment.padding], table)
        bias_qkh = torch.cat([bias_qkh, padding_qph.logsumexp(1, keepdim=True)], 1)
    return bias_qkh.permute(2, 0, 1).contiguous()


def _windows(x_NDHWC: torch.Tensor, segment: Segment, parts: int, heads: int) -> torch.Tensor:
    """A view of a segment's tokens: (parts, N, windows along D H W, heads, extent along D H W, d)."""
    for axis in range(3):
        size = segment.windows[axis] * segment.extent[axis]
        x_NDHWC = x_NDHWC.narrow(axis + 1, segment.start[axis], size)
    split = x_NDHWC.unflatten(4, (parts, heads, -1))
    for axis in (2, 1, 0):
        split = split.unflatten(axis + 1, (segment.windows[axis], segment.extent[axis]))
    return split.permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)


def _real(x_Mkd: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A view of the unpadded tokens of (windows x heads, k, d), in the shape of one part of `_windows`."""
    extent = like.shape[5:8]
    return x_Mkd[:, : math.prod(extent)].unflatten(1, extent).unflatten(0, like.shape[:5])


def _gather(windows: torch.Tensor, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """One part of `_windows` as (windows x heads, k, d); tokens beyond the windows' own are left open."""
    gathered_Mkd = windows.new_empty((math.prod(windows.shape[:5]), keys, windows.shape[8]), dtype=dtype)
    _real(gathered_Mkd, windows).copy_(windows)
    return gathered_Mkd


def _operands(
    qkv_NDHWC: torch.Tensor, padded_2hd: torch.Tensor, segment: Segment, bias_hqk: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, each (windows x heads, q or k, d); the padded token is the last key."""
    heads, queries, keys = bias_hqk.shape
    q, k, v = _windows(qkv_NDHWC, segment, 3, heads)
    q_Mqd, k_Mkd, v_Mkd = (
        _gather(part, length, bias_hqk.dtype) for part, length in ((q, queries), (k, keys), (v, keys))
    )
    if keys > queries:
        for gathered, padded_hd in zip((k_Mkd, v_Mkd), padded_2hd, strict=True):
            gathered.unflatten(0, (-1, heads))[:, :, -1] = padded_hd
    return q_Mqd, k_Mkd, v_Mkd


def _weights(
    q_Mqd: torch.Tensor, k_Mkd: torch.Tensor, bias_hqk: torch.Tensor, scale: float
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Chunks of attention weights that fit the cache: rows, weights, and a tensor as large to write on."""
    heads = len(bias_hqk)
    windows = min(max(CHUNK // bias_hqk.numel(), 1), len(q_Mqd) // heads)
    bias_Mqk = bias_hqk.repeat(windows, 1, 1)
    scores_Mqk, weights_Mqk = torch.empty_like(bias_Mqk), torch.empty_like(bias_Mqk)
    for start in range(0, len(q_Mqd), len(bias_Mqk)):
        rows = slice(start, min(start + len(bias_Mqk), len(q_Mqd)))
        bias, scores, weights = (x[: rows.stop - start] for x in (bias_Mqk, scores_Mqk, weights_Mqk))
        torch.baddbmm(bias, q_Mqd[rows], k_Mkd[rows].mT, alpha=scale, out=scores)
        torch.softmax(scores, -1, out=weights)
        yield rows, weights, scores


class _Attend(torch.autograd.Function):
    """Attention within segments: the projection's output (N, D, H, W, 3C) to (N, D, H, W, C).

    The precision of the computation is that of the biases, also under autocast, which leaves out= alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv_NDHWC: torch.Tensor,
        padded_2hd: torch.Tensor,
        plan: tuple[Segment, ...],
        scale: float,
        *biases_hqk: torch.Tensor,
    ) -> torch.Tensor:
        out_NDHWC = qkv_NDHWC.new_empty((*qkv_NDHWC.shape[:4], qkv_NDHWC.shape[4] // 3))
        for segment, bias_hqk in zip(plan, biases_hqk, strict=True):
            q, k, v = _operands(qkv_NDHWC, padded_2hd, segment, bias_hqk)
            out = torch.empty_like(q)
            for rows, weights, _ in _weights(q, k, bias_hqk, scale):
                torch.bmm(weights, v[rows], out=out[rows])
            windows = _windows(out_NDHWC, segment, 1, len(bias_hqk))[0]
            windows.copy_(_real(out, windows))
        ctx.save_for_backward(qkv_NDHWC, padded_2hd, out_NDHWC, *biases_hqk)
        ctx.plan, ctx.scale = plan, scale
        return out_NDHWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NDHWC: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv_NDHWC, padded_2hd, out_NDHWC, *biases_hqk = ctx.saved_tensors
        grad_qkv_NDHWC = torch.empty_like(qkv_NDHWC)
        grad_padded_2hd = torch.zeros_like(padded_2hd)
        grad_biases = []
        for segment, bias_hqk in zip(ctx.plan, biases_hqk, strict=True):
            heads, queries, keys = bias_hqk.shape
            q, k, v = _operands(qkv_NDHWC, padded_2hd, segment, bias_hqk)
            out, grad = (
                _gather(_windows(x, segment, 1, heads)[0], queries, q.dtype) for x in (out_NDHWC, grad_NDHWC)
            )
            # Softmax takes each row's weighted mean off its gradient; it equals that of output and gradient.
            mean_Mq1 = (out * grad).sum(-1, keepdim=True).neg_()
            grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
            grad_bias_hqk = torch.zeros_like(bias_hqk)
            for rows, weights, grad_scores in _weights(q, k, bias_hqk, ctx.scale):
                torch.bmm(weights.mT, grad[rows], out=grad_v[rows])
                torch.baddbmm(mean_Mq1[rows], grad[rows], v[rows].mT, out=grad_scores).mul_(weights)
                grad_bias_hqk += grad_scores.unflatten(0, (-1, heads)).sum(0)
                torch.bmm(grad_scores, k[rows], out=grad_q[rows])
                torch.bmm(grad_scores.mT, q[rows], out=grad_k[rows])
            grads = (grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale), grad_v)
            parts = _windows(grad_qkv_NDHWC, segment, 3, heads)
            for part, gathered in zip(parts, grads, strict=True):
                part.copy_(_real(gathered, part))
            if keys > queries:
                for padded_hd, gathered in zip(grad_padded_2hd, (grad_k, grad_v), strict=True):
                    padded_hd += gathered[:, -1].unflatten(0, (-1, heads)).sum(0)
            grad_biases.append(grad_bias_hqk)
        return grad_qkv_NDHWC, grad_padded_2hd, None, None, *grad_biases


class SegmentBlock(SwinTransformerBlock):
    """A block that attends by segments where its stage hands it no mask, and is MONAI's else."""

    def drops_weights(self) -> bool:
        """Whether attention weights are dropped out now."""
        return self.attn.attn_drop.training and self.attn.attn_drop.p > 0

    def forward_part1(self, x_NDHWC: torch.Tensor, mask_matrix: torch.Tensor | None) -> torch.Tensor:
        """Normalisation and attention."""
        if mask_matrix is not None:
            return super().forward_part1(x_NDHWC, mask_matrix)
        attention = self.attn
        grid = tuple(x_NDHWC.shape[1:4])
        plan = segments(grid, *get_window_size(grid, self.window_size, self.shift_size))
        qkv_NDHWC = attention.qkv(self.norm1(x_NDHWC))
        dtype = torch.promote_types(qkv_NDHWC.dtype, torch.float32)
        # What the projection makes of padding, which is zero: its bias, of keys and of values.
        padded_2hd = attention.qkv.bias.to(dtype).view(3, attention.num_heads, -1)[1:]
        biases_hqk = [_bias(attention, segment, dtype) for segment in plan]
        out_NDHWC = _Attend.apply(qkv_NDHWC, padded_2hd, plan, attention.scale, *biases_hqk)
        out: torch.Tensor = attention.proj_drop(attention.proj(out_NDHWC))
        return out


class SegmentStage(BasicLayer):
    """A stage that makes no masks and keeps channels last, where its blocks can attend by segments."""

    def forward(self, x_NCDHW: torch.Tensor) -> torch.Tensor:
        """(N, C, D, H, W) to (N, 2C, D/2, H/2, W/2), as MONAI's."""
        blocks = cast(Sequence[SegmentBlock], self.blocks)
        if x_NCDHW.device.type != "cpu" or any(block.drops_weights() for block in blocks):
            return super().forward(x_NCDHW)
        x_NDHWC = x_NCDHW.permute(0, 2, 3, 4, 1).contiguous()
        for block in blocks:
            x_NDHWC = block(x_NDHWC, None)
        if self.downsample is not None:
            x_NDHWC = self.downsample(x_NDHWC)
        return x_NDHWC.permute(0, 4, 1, 2, 3)


def install_segments(encoder: nn.Module) -> None:
    """Make `encoder` attend by segments: its stages and blocks change class, and nothing else."""
    for module in encoder.modules():
        if type(module) is BasicLayer:
            module.__class__ = SegmentStage
        elif type(module) is SwinTransformerBlock:
            module.__class__ = SegmentBlock
