"""The paper's objective as a whole, and how objectives are found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.losses import ContrastiveLoss
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import brainfoundry.pretext
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64
from brainfoundry.models import EncoderSpec, SSLNetwork
from brainfoundry.pretext import Objective, load_objective
from brainfoundry.pretext.base import available

NAME = "inpaint_rotate_contrast"
CROP = (64, 32, 32)


def objective(**fields: object) -> Objective:
    found = load_objective(NAME)
    return found(found.Config(**fields))


def crops(count: int = 4, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, channels, *CROP), torch.from_numpy(hash64(5, np.arange(count)).view(np.int64))


@pytest.fixture(scope="module")
def network() -> SSLNetwork:
    torch.manual_seed(0)
    return SSLNetwork(EncoderSpec(size="nano"))


class Echo(nn.Module):
    """A stand-in network whose answers can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.calls: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.calls.append(x)
        features = self.gain * x.flatten(1)[:, :32]
        return features[:, :4], features, self.gain * x


def test_losses_are_the_released_ones_over_both_views_in_one_forward_pass() -> None:
    x, seeds = crops(8)
    pretext, echo = objective(), Echo()
    losses = pretext.loss(echo, x, seeds, 4)
    assert len(echo.calls) == 1 and echo.calls[0].shape == (16, 1, *CROP)
    views = pretext.views(x, seeds, 4)  # type: ignore[attr-defined]
    assert torch.equal(echo.calls[0], views.cut)
    # Each view is the crop turned; the target is the whole turned volume, not only what was cut.
    for i in range(16):
        assert torch.equal(views.target[i], torch.rot90(x[i % 8], int(views.turns[i]), (2, 3)))
    features = views.cut.flatten(1)[:, :32]
    contrast = torch.stack(
        [ContrastiveLoss(0.5)(features[g : g + 4], features[g + 8 : g + 12]) for g in (0, 4)]
    ).mean()
    torch.testing.assert_close(losses["rotation"], F.cross_entropy(features[:, :4], views.turns))
    torch.testing.assert_close(losses["contrast"], contrast)
    torch.testing.assert_close(losses["reconstruction"], (views.cut - views.target).abs().mean())
    parts = [losses[name] for name in pretext.loss_names]
    torch.testing.assert_close(losses["total"].detach(), torch.stack(parts).sum())
    assert losses["total"].requires_grad and not any(part.requires_grad for part in parts)


def test_views_of_a_crop_differ_from_each_other() -> None:
    x, seeds = crops(64)
    views = objective().views(x, seeds, 4)  # type: ignore[attr-defined]
    first, second = views.turns[:64], views.turns[64:]
    assert 0.1 < float((first == second).double().mean()) < 0.45  # 1 in 4 by chance
    assert not any(torch.equal(views.cut[i], views.cut[64 + i]) for i in range(64))


def test_weights_scale_their_part() -> None:
    x, seeds = crops()
    plain = objective().loss(Echo(), x, seeds, 4)
    weighted = objective(rotation_weight=2.0, contrast_weight=0.0, reconstruction_weight=0.5).loss(
        Echo(), x, seeds, 4
    )
    torch.testing.assert_close(weighted["total"], 2 * plain["rotation"] + 0.5 * plain["reconstruction"])
    assert torch.equal(weighted["contrast"], plain["contrast"])


def test_two_groups_in_a_batch_are_the_mean_of_each_alone(network: SSLNetwork) -> None:
    x, seeds = crops(4)
    pretext = objective()
    with torch.no_grad():
        both = pretext.loss(network, x, seeds, 2)
        alone = [pretext.loss(network, x[i : i + 2], seeds[i : i + 2], 2) for i in (0, 2)]
    for name in ("total", *pretext.loss_names):
        torch.testing.assert_close(both[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_equal_seeds_give_equal_losses_whatever_torchs_generator_does(network: SSLNetwork) -> None:
    x, seeds = crops(2)
    pretext = objective()
    with torch.no_grad():
        first = pretext.loss(network, x, seeds, 2)
        torch.manual_seed(99)
        second = pretext.loss(network, x, seeds, 2)
        other = pretext.loss(network, x, seeds + 1, 2)
    assert torch.equal(first["total"], second["total"])
    assert not torch.equal(first["total"], other["total"])


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    pretext = objective()
    learner = pretext.network(EncoderSpec(size="nano"))
    x, seeds = crops(2)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    history = []
    for _ in range(6):
        loss = pretext.loss(learner, x, seeds, 2)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.8 * history[0]


def test_autocast_computes_the_losses_in_float32(network: SSLNetwork) -> None:
    x, seeds = crops(2)
    with torch.no_grad():
        exact = objective().loss(network, x, seeds, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = objective().loss(network, x, seeds, 2)
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)


def test_works_through_distributed_data_parallel(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        gradients = []
        for wrap in (False, True):
            torch.manual_seed(0)
            bare = SSLNetwork(EncoderSpec(size="nano"))
            wrapped = nn.parallel.DistributedDataParallel(bare, broadcast_buffers=False) if wrap else bare
            objective(contrast_scope="global").loss(wrapped, *crops(2), 2)["total"].backward()
            gradients.append([p.grad for p in bare.parameters()])
        for plain, parallel in zip(*gradients, strict=True):
            assert plain is not None and parallel is not None  # no parameter is unused
            torch.testing.assert_close(parallel, plain)
    finally:
        dist.destroy_process_group()


def test_pictures_show_view_1(network: SSLNetwork) -> None:
    x, seeds = crops(4, channels=1)
    pretext = objective()
    shown = pretext.pictures(network, x, seeds, 4)
    views = pretext.views(x, seeds, 4)  # type: ignore[attr-defined]
    assert set(shown) == {"input", "cut", "rebuilt"}
    assert torch.equal(shown["input"], views.target[:4])
    assert torch.equal(shown["cut"], views.cut[:4])
    assert all(
        v.shape == x.shape and v.dtype == torch.float32 and not v.requires_grad for v in shown.values()
    )
    assert not torch.equal(shown["rebuilt"], shown["input"])


@pytest.mark.parametrize(
    ("crop", "says"),
    [
        ((32, 32, 32), "nearest valid sizes are 64x32x32"),
        ((96, 64, 96), "last two sides must be equal"),
        ((24, 24, 24), "multiple of 32"),
    ],
)
def test_unusable_crops_are_refused(crop: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        objective().check_crop(crop)
    with pytest.raises(ConfigError, match=says):
        objective().loss(Echo(), torch.zeros(2, 1, *crop), torch.arange(2), 2)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"rotation_weight": -1.0}, "rotation_weight is -1.0"),
        ({"contrast_weight": float("nan")}, "contrast_weight is nan"),
        (
            {"contrast_scope": "world"},
            "contrast_scope 'world' does not exist. Fix: choose one of group, global",
        ),
        ({"max_drop": 2.0}, "max_drop is 2.0"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        objective(**fields)


class NoHostTensors(TorchDispatchMode):
    """Refuses every operation that gives a tensor on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(value, torch.Tensor) or value.device.type == "meta", func
        return out


def test_augmentation_never_waits_for_the_device() -> None:
    # On the meta device there are no values to ask for, so whatever would wait for one fails.
    x, seeds = (t.to("meta") for t in crops(8))
    with NoHostTensors():
        views = objective().views(x, seeds, 4)  # type: ignore[attr-defined]
    assert views.cut.shape == (16, 1, *CROP) and views.cut.device.type == "meta"


# --- finding objectives -----------------------------------------------------------------------------------


def test_only_objectives_are_listed() -> None:
    assert NAME in available()
    assert not {"base", "contrast", "cutout", "intensity", "rotation"} & set(available())


@pytest.mark.parametrize("name", ["masked", "base", "cutout", "../evil", "os.path", ""])
def test_unknown_objectives_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_objective(name)
    assert f"objective '{name}' does not exist. Fix: choose one of {NAME}" in str(caught.value)


class Rebuilder(Echo):
    """Answers with a constant reconstruction, whatever it is shown."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, features, _ = super().forward(x)
        return logits, features, self.gain * torch.full_like(x, 0.5)


def with_absent(present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, seeds = crops(len(present), present.shape[1])
    return x * present[:, :, None, None, None], seeds


def test_with_every_modality_there_the_loss_is_bit_for_bit_that_without_a_mask() -> None:
    torch.manual_seed(0)
    x, seeds = crops(4, 2)
    found = []
    for mask in (None, torch.ones(4, 2, dtype=torch.bool)):
        torch.manual_seed(1)
        network = objective().network(EncoderSpec(size="nano", in_channels=2))
        losses = objective().loss(network, x, seeds, 2, present_NC=mask)
        losses["total"].backward()
        found.append([losses[name] for name in sorted(losses)] + [p.grad for p in network.parameters()])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_absent_modality_is_neither_shown_nor_rebuilt() -> None:
    present = torch.tensor([[True, False], [True, True], [False, True], [True, True]])
    x, seeds = with_absent(present)
    pretext, network = objective(), Rebuilder()
    found = pretext.loss(network, x, seeds, 4, present_NC=present)["reconstruction"]
    (shown,) = network.calls
    assert not shown[~present.repeat(2, 1)].any()  # no noise, nothing lent by another crop
    assert (shown[present.repeat(2, 1)] != 0).float().mean() > 0.5
    targets = pretext.views(x, seeds, 4).target  # type: ignore[attr-defined]
    pairs = [(0.5 - targets[i, c]).abs().mean() for i in range(8) for c in range(2) if present[i % 4, c]]
    torch.testing.assert_close(found, torch.stack(pairs).mean())
    assert not torch.isclose(found, (0.5 - targets).abs().mean())


def test_what_is_said_of_an_absent_channel_costs_nothing_and_teaches_nothing() -> None:
    present = torch.tensor([[True, False]] * 4)
    x, seeds = with_absent(present)

    class Split(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.levels = nn.Parameter(torch.tensor([0.3, 7.0]))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits, features, rebuilt = super().forward(x)
            return logits, features, rebuilt * 0 + self.levels.view(1, 2, 1, 1, 1)

    network = Split()
    pretext = objective(rotation_weight=0.0, contrast_weight=0.0)
    pretext.loss(network, x, seeds, 4, present_NC=present)["total"].backward()
    assert network.levels.grad is not None and network.levels.grad[1] == 0 != network.levels.grad[0]


def test_groups_with_absent_modalities_are_the_mean_of_each_alone() -> None:
    # Else the loss would depend on how many workers share the groups.
    present = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 1], [0, 0], [0, 0]]).bool()
    x, seeds = with_absent(present)
    pretext, rebuilder = objective(), Rebuilder()
    whole = pretext.loss(rebuilder, x, seeds, 2, present_NC=present)
    alone = [
        pretext.loss(rebuilder, x[i : i + 2], seeds[i : i + 2], 2, present_NC=present[i : i + 2])
        for i in (0, 2, 4)
    ]
    mean = torch.stack([losses["reconstruction"] for losses in alone]).mean()
    torch.testing.assert_close(whole["reconstruction"], mean)
    assert alone[2]["reconstruction"] == 0 and all(torch.isfinite(v) for v in whole.values())


ANOTHER = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass(frozen=True, kw_only=True)
class Settings:
    share: float = 0.5

class Objective:
    Config = Settings
    loss_names = ("masked",)
    views_per_crop = 1
    def __init__(self, config=None): self.config = config or Settings()
    def check_crop(self, crop): pass
    def check_group(self, crops_per_group): pass
    def network(self, encoder): return nn.Conv3d(encoder.in_channels, encoder.in_channels, 1)
    def loss(self, network, x, seeds, crops_per_group, *, present_NC=None):
        masked = (network(x) - x).abs().mean()
        return {"total": masked, "masked": masked.detach()}
    def pictures(self, network, x, seeds, crops_per_group):
        return {"input": x, "cut": x, "rebuilt": network(x)}
"""


def test_another_objective_joins_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "masked_toy.py").write_text(ANOTHER)
    monkeypatch.setattr(brainfoundry.pretext, "__path__", [*brainfoundry.pretext.__path__, str(tmp_path)])
    try:
        assert available() == sorted([NAME, "masked_autoencoder", "masked_toy"])
        found = load_objective("masked_toy")
        pretext = found(found.Config(share=0.25))
        assert isinstance(pretext, Objective)
        losses = pretext.loss(pretext.network(EncoderSpec(size="nano")), *crops(2), 2)
        assert set(losses) == {"total", *pretext.loss_names}
    finally:
        sys.modules.pop("brainfoundry.pretext.masked_toy", None)
