"""Masked autoencoding: what is hidden, what is learnt from it, and that the engine trains on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64
from brainfoundry.models import EncoderSpec, SSLNetwork, build_segmenter
from brainfoundry.models.transfer import transfer
from brainfoundry.pretext import Objective, load_objective
from brainfoundry.pretext.base import available
from brainfoundry.training.config import OptimConfig
from brainfoundry.training.engine import Engine
from brainfoundry.training.objectives import build_objective
from tests.pretext.test_objective import NoHostTensors
from tests.training.batches import make_batch

NAME = "masked_autoencoder"
CROP = (64, 32, 32)


def objective(**fields: object) -> Objective:
    found = load_objective(NAME)
    return found(found.Config(**fields))


def seeds_of(count: int) -> torch.Tensor:
    return torch.from_numpy(hash64(5, np.arange(count)).view(np.int64))


def crops(count: int = 4, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, channels, *CROP), seeds_of(count)


def hidden(seeds: torch.Tensor, crop: tuple[int, int, int] = CROP, **fields: object) -> torch.Tensor:
    return objective(**fields).hidden(seeds, crop)  # type: ignore[attr-defined, no-any-return]


class Constant(nn.Module):
    """Answers with one number, and keeps what it was shown."""

    def __init__(self, value: float = 0.5) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.calls: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(x)
        return self.value * torch.ones_like(x)


# ---------------------------------------------------------------------------------------------------------
# What is hidden


@settings(max_examples=40, deadline=None)
@given(
    crop=st.sampled_from([(64, 32, 32), (64, 64, 64), (32, 96, 64), (96, 96, 96)]),
    patch=st.sampled_from([4, 8, 16]),
    share=st.floats(0.1, 0.9),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_exactly_the_share_is_hidden_in_whole_patches(
    crop: tuple[int, int, int], patch: int, share: float, seed: int
) -> None:
    mask = hidden(torch.tensor([seed]), crop, patch=patch, share=share)
    assert mask.shape == (1, 1, *crop) and mask.dtype == torch.bool
    grid = nn.functional.max_pool3d(mask.float(), patch)
    patches = grid.numel()
    assert grid.sum() == round(share * patches)
    assert torch.equal(mask.float(), nn.functional.interpolate(grid, crop))  # patches whole or not at all


def test_every_patch_is_hidden_as_often_as_the_next() -> None:
    mask = hidden(seeds_of(2_000)).float()
    often = nn.functional.max_pool3d(mask, 16).mean(dim=0)
    assert often.mean() == 0.75
    assert (often - 0.75).abs().max() < 5 * (0.75 * 0.25 / 2_000) ** 0.5  # five standard errors


def test_the_patches_of_a_seed_never_change() -> None:
    # Golden: other patches would be another pretext task under the same name.
    mask = hidden(torch.tensor([1, 2]))
    shown = (~nn.functional.max_pool3d(mask.float(), 16).bool()).flatten(1)
    assert [row.nonzero().flatten().tolist() for row in shown] == [[3, 6, 8, 15], [0, 1, 2, 11]]


def test_hidden_voxels_are_0_in_every_modality_and_the_rest_is_shown() -> None:
    x, seeds = crops()
    network, pretext = Constant(), objective()
    pretext.loss(network, x, seeds, 4)
    (shown,) = network.calls
    mask = hidden(seeds).expand_as(x)
    assert not shown[mask].any() and torch.equal(shown[~mask], x[~mask])


# ---------------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize(("loss", "power"), [("l2", 2), ("l1", 1)])
def test_the_loss_is_over_hidden_voxels_alone(loss: str, power: int) -> None:
    x, seeds = crops()
    mask = hidden(seeds).expand_as(x)
    pretext, network = objective(loss=loss), Constant(0.5)
    losses = pretext.loss(network, x, seeds, 4)
    torch.testing.assert_close(losses["total"], (0.5 - x[mask]).abs().pow(power).mean())
    assert torch.equal(losses["total"].detach(), losses["reconstruction"])
    assert losses["total"].requires_grad and not losses["reconstruction"].requires_grad
    # What the network says of shown voxels costs nothing.
    x_elsewhere = torch.where(mask, x, x + 100)
    torch.testing.assert_close(pretext.loss(network, x_elsewhere, seeds, 4)["total"], losses["total"])


def test_groups_are_the_mean_of_each_alone_with_and_without_absent_modalities() -> None:
    x, seeds = crops(6)
    pretext, network = objective(), Constant()
    some = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 1], [0, 0], [0, 0]]).bool()
    for present in (None, torch.ones(6, 2, dtype=torch.bool), some):
        inputs = x if present is None else x * present[:, :, None, None, None]
        whole = pretext.loss(network, inputs, seeds, 2, present_NC=present)["total"]
        alone = [
            pretext.loss(
                network, inputs[i : i + 2], seeds[i : i + 2], 2,
                present_NC=None if present is None else present[i : i + 2],
            )["total"]
            for i in (0, 2, 4)
        ]  # fmt: skip
        torch.testing.assert_close(whole, torch.stack(alone).mean())
    assert alone[2] == 0  # of nothing, nothing is asked


def test_an_absent_modality_costs_nothing_and_teaches_nothing() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.levels = nn.Parameter(torch.tensor([0.3, 7.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.levels.view(1, 2, 1, 1, 1).expand_as(x)

    x, seeds = crops()
    present = torch.tensor([[True, False]] * 4)
    network = Split()
    x = x * present[:, :, None, None, None]
    total = objective().loss(network, x, seeds, 4, present_NC=present)["total"]
    total.backward()
    mask = hidden(seeds)[:, 0]
    torch.testing.assert_close(total, (0.3 - x[:, 0][mask]).square().mean())
    assert network.levels.grad is not None and network.levels.grad[1] == 0 != network.levels.grad[0]


def test_equal_seeds_give_equal_losses_whatever_torchs_generator_does() -> None:
    x, seeds = crops(2)
    torch.manual_seed(0)
    pretext = objective()
    network = pretext.network(EncoderSpec(size="nano", in_channels=2)).eval()
    with torch.no_grad():
        first = pretext.loss(network, x, seeds, 1)["total"]
        torch.manual_seed(99)
        assert torch.equal(pretext.loss(network, x, seeds, 1)["total"], first)
        assert not torch.equal(pretext.loss(network, x, seeds + 1, 1)["total"], first)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = pretext.loss(network, x, seeds, 1)["total"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, first, rtol=0.05, atol=0.02)


def test_masking_never_waits_for_the_device() -> None:
    with NoHostTensors():
        mask = hidden(torch.empty(2, dtype=torch.int64, device="meta"))
    assert mask.device.type == "meta" and mask.shape == (2, 1, *CROP)


# ---------------------------------------------------------------------------------------------------------
# The network, and training it


def test_the_network_is_the_papers_without_two_heads() -> None:
    spec = EncoderSpec(size="nano", in_channels=2)
    found = []
    for make in (objective().network, SSLNetwork):
        torch.manual_seed(0)
        found.append(make(spec))
    ours, paper = (network.state_dict() for network in found)
    assert set(paper) - set(ours) == {
        f"{head}.{what}" for head in ("rotation_head", "contrastive_head") for what in ("weight", "bias")
    }
    same = [name for name in ours if name.startswith("swinViT.")]
    assert same and all(torch.equal(ours[name], paper[name]) for name in same)  # one seed, one start
    found[0].load_state_dict({name: paper[name] for name in ours})
    x, _ = crops(1)
    with torch.no_grad():
        torch.testing.assert_close(found[0](x), found[1](x).rebuilt)


def test_gradients_reach_every_parameter_also_through_distributed_data_parallel(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        gradients = []
        for wrap in (False, True):
            torch.manual_seed(0)
            bare = objective().network(EncoderSpec(size="nano", in_channels=2))
            wrapped = nn.parallel.DistributedDataParallel(bare, broadcast_buffers=False) if wrap else bare
            objective().loss(wrapped, *crops(1), 1)["total"].backward()
            gradients.append([p.grad for p in bare.parameters()])
        for plain, parallel in zip(*gradients, strict=True):
            assert plain is not None and parallel is not None
            torch.testing.assert_close(parallel, plain)
        assert sum(bool(g.any()) for g in gradients[0] if g is not None) > 0.9 * len(gradients[0])
    finally:
        dist.destroy_process_group()


def test_the_engine_trains_on_it_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    pretext = build_objective(NAME, ("share=0.5",))
    network = pretext.network(EncoderSpec(size="nano", in_channels=2))
    config = OptimConfig(steps=30, warmup=0, lr=2e-3, precision="fp32", schedule="constant")
    engine = Engine(network, pretext, config, "zscore_nonzero", torch.device("cpu"))
    assert engine.record_names == ("total", "reconstruction", "saturated", "grad_norm")
    batch = make_batch(0, 1)
    records = torch.stack([engine.step(step, batch) for step in range(30)])
    assert torch.isfinite(records).all() and torch.equal(records[:, 0], records[:, 1])
    assert records[-1, 0] < 0.7 * records[0, 0]


def test_its_encoder_goes_on_to_segmentation() -> None:
    spec = EncoderSpec(size="nano", in_channels=2)
    source = objective().network(spec)
    target = build_segmenter(spec, 3)
    table = transfer(
        target, source.state_dict(), source_modalities=("T1w", "FLAIR"), target_modalities=("T1w", "FLAIR")
    )
    encoder = [name for name in target.state_dict() if name.startswith("swinViT.")]
    assert {row.name for row in table.rows if row.action == "copied"} == set(encoder)
    assert all(torch.equal(target.state_dict()[name], source.state_dict()[name]) for name in encoder)


def test_pictures_show_what_was_hidden() -> None:
    x, seeds = crops(2)
    pretext = objective()
    shown = pretext.pictures(Constant(0.25), x, seeds, 2)
    mask = hidden(seeds).expand_as(x)
    assert torch.equal(shown["input"], x) and not shown["cut"][mask].any()
    assert torch.equal(shown["cut"][~mask], x[~mask]) and (shown["rebuilt"] == 0.25).all()
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in shown.values())


# ---------------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize(
    ("crop", "fields", "says"),
    [
        ((32, 32, 32), {}, "nearest valid sizes are"),
        ((60, 32, 32), {}, "multiple of 32"),
        (
            (64, 64, 64),
            {"patch": 24},
            "not whole patches of 24 voxels.*multiples of 96",
        ),
        ((64, 32, 32), {"patch": 32}, "2 patches of 32 voxels, and share 0.75 hides 2"),
        ((64, 32, 32), {"share": 0.01}, "16 patches of 16 voxels, and share 0.01 hides 0"),
    ],
)
def test_unusable_crops_are_refused(crop: tuple[int, int, int], fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        objective(**fields).check_crop(crop)
    with pytest.raises(ConfigError, match=says):
        objective(**fields).loss(Constant(), torch.zeros(2, 1, *crop), torch.arange(2), 2)


@pytest.mark.parametrize("crop", [(64, 32, 32), (64, 64, 64), (96, 96, 96), (64, 96, 32)])
def test_usable_crops_need_not_be_square(crop: tuple[int, int, int]) -> None:
    objective().check_crop(crop)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.0}, "share is 1.0"),
        ({"patch": 0}, "patch is 0"),
        ({"loss": "l3"}, "loss 'l3' does not exist. Fix: choose one of l2, l1"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        objective(**fields)


def test_it_is_an_objective_and_takes_groups_of_one_crop() -> None:
    assert NAME in available() and isinstance(objective(), Objective)
    objective().check_group(1)
    assert objective().views_per_crop == 1
