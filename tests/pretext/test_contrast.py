"""NT-Xent: golden values, MONAI's loss group by group, and negatives from all workers."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.losses import ContrastiveLoss

from brainfoundry.pretext.contrast import nt_xent


def test_golden_value_of_the_released_loss() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 512), torch.randn(4, 512)
    assert float(nt_xent(first[None], second[None])) == pytest.approx(1.9180501699, abs=2e-6)


def test_a_case_worked_by_hand() -> None:
    # View 1: e1, e2. View 2: e1, -e2. Rows: exp(2)/(exp(2)+2) twice, exp(-2)/(exp(-2)+2) twice.
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    second = torch.tensor([[[1.0, 0.0], [0.0, -1.0]]])
    assert float(nt_xent(first, second)) == pytest.approx(1.499084, abs=1e-6)
    assert float(nt_xent(3.0 * first, 0.1 * second)) == pytest.approx(1.499084, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_groups_are_separate_matrices(temperature: float) -> None:
    torch.manual_seed(1)
    first, second = (torch.randn(3, 4, 16, requires_grad=True) for _ in range(2))
    reference = ContrastiveLoss(temperature)
    expected = torch.stack([reference(a, b) for a, b in zip(first, second, strict=True)]).mean()
    loss = nt_xent(first, second, temperature)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (first, second)),
        torch.autograd.grad(expected, (first, second)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_global_scope_in_one_process_is_one_matrix_of_all_groups() -> None:
    torch.manual_seed(2)
    first, second = torch.randn(3, 4, 16), torch.randn(3, 4, 16)
    expected = ContrastiveLoss(0.5)(first.flatten(0, 1), second.flatten(0, 1))
    torch.testing.assert_close(nt_xent(first, second, scope="global"), expected)
    assert not torch.isclose(nt_xent(first, second), expected, rtol=1e-2)


def test_half_precision_features_are_compared_in_float32() -> None:
    torch.manual_seed(3)
    first, second = torch.randn(2, 4, 64).bfloat16(), torch.randn(2, 4, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(first, second)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(first.float(), second.float()))


def test_identical_views_far_from_the_rest_cost_next_to_nothing() -> None:
    views = torch.eye(4)[None] * 7
    assert float(nt_xent(views, views, temperature=0.05)) < 1e-6


WORLD = 2


def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(WORLD * 2, 3, 8), torch.randn(WORLD * 2, 3, 8), torch.randn(8, 5)


def worker(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=60)
    )
    first, second, weight = features()
    weight.requires_grad_()
    mine = slice(2 * rank, 2 * rank + 2)
    loss = nt_xent(first[mine] @ weight, second[mine] @ weight, scope="global")
    loss.backward()
    # What data-parallel training does with losses and gradients.
    gradient, mean = weight.grad, loss.detach().clone()
    assert gradient is not None
    for tensor in (gradient, mean):
        dist.all_reduce(tensor)
        tensor /= WORLD
    torch.save({"loss": mean, "gradient": gradient}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_global_scope_over_two_workers_equals_one_large_matrix(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=WORLD)
    first, second, weight = features()
    weight.requires_grad_()
    expected = ContrastiveLoss(0.5)((first @ weight).flatten(0, 1), (second @ weight).flatten(0, 1))
    expected.backward()
    for rank in range(WORLD):
        got = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["loss"], expected.detach())
        torch.testing.assert_close(got["gradient"], weight.grad, atol=1e-6, rtol=1e-4)
