"""The contrastive loss NT-Xent (Chen et al. 2020), for many small groups at once.

Each crop's two views are each other's positive; the other views of its matrix are the negatives. A matrix is
a group (as in the released code, where each worker contrasts only its own few crops), or, with scope
`global`, all crops of all workers. Two crops of one subject are negatives of each other in either, again as
in the released code.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn import functional as F

Scope = Literal["group", "global"]


def nt_xent(
    first_Gnd: torch.Tensor, second_Gnd: torch.Tensor, temperature: float = 0.5, scope: Scope = "group"
) -> torch.Tensor:
    """Mean over groups of the normalised-temperature cross-entropy: a float32 scalar.

    For one group it equals `monai.losses.ContrastiveLoss(temperature)`.

    Args:
        first_Gnd: features of view 1: G groups of n crops, d features.
        second_Gnd: features of view 2, the same shape.
        temperature: divides the cosine similarities (paper: 0.5).
        scope: `group`: a matrix a group. `global`: one matrix of all crops of all workers of the default
            process group, through which gradients flow back to the worker that each feature came from. Every
            worker must then call this, with the same shapes; the value is the mean over this worker's own
            rows, so that the mean over the workers, which data-parallel training takes anyway, is the loss of
            the whole matrix.
    """
    with torch.autocast(first_Gnd.device.type, enabled=False):
        first, second = (F.normalize(z.float(), dim=-1, eps=1e-8) for z in (first_Gnd, second_Gnd))
        if scope == "group":
            rows = columns = torch.cat([first, second], dim=1)
            n, offset = first.shape[1], 0
            total = n
        else:
            first, second = first.flatten(0, 1)[None], second.flatten(0, 1)[None]
            n = first.shape[1]
            rows = torch.cat([first, second], dim=1)
            gathered_1, gathered_2, rank = gather_from_all(first[0], second[0])
            columns = torch.cat([gathered_1, gathered_2])[None]
            total, offset = gathered_1.shape[0], rank * n
        own = torch.arange(n, device=rows.device) + offset
        itself, positive = torch.cat([own, own + total]), torch.cat([own + total, own])
        logits = rows @ columns.transpose(1, 2) / temperature
        # A view is neither its own positive nor its own negative.
        logits = logits.scatter(2, itself[None, :, None].expand(len(logits), -1, -1), float("-inf"))
        return F.cross_entropy(logits.flatten(0, 1), positive.repeat(len(logits)))


def gather_from_all(*tensors: torch.Tensor) -> tuple[Any, ...]:
    """Each tensor concatenated along its first axis over all workers in rank order, then this worker's rank.

    Without a process group the tensors come back as they are, with rank 0; so they do where no gradient is
    asked for, because in validation the workers may hold unequal shares.
    """
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or not torch.is_grad_enabled():
        return (*tensors, 0)
    return (*(_Gather.apply(t) for t in tensors), dist.get_rank())


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass sums, over the workers, the gradients of what each lent to all.

    Written with the two collectives that gloo and nccl both have.
    """

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        ctx.rows = local.shape[0]
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed)
        start = dist.get_rank() * ctx.rows
        return summed[start : start + ctx.rows]
