"""The supervised objective as a whole: a training step is MONAI's, on any number of workers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.losses import DiceLoss
from monai.networks.nets import SwinUNETR
from monai.transforms import (
    Compose,
    ConvertToMultiChannelBasedOnBratsClasses,
    Flip,
    NormalizeIntensity,
    ScaleIntensity,
    ShiftIntensity,
)
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64
from brainfoundry.models import EncoderSpec
from brainfoundry.pretext import base
from brainfoundry.pretext.intensity import normalise
from brainfoundry.tasks.augment import RECIPES, augment, draw
from brainfoundry.tasks.segmentation import Objective, SegmentationConfig

CROP = (64, 32, 32)
ATLAS = {"task": "atlas", "scheme": "binary"}
NANO = EncoderSpec(size="nano", in_channels=2)


def objective(**fields: object) -> Objective:
    return Objective(SegmentationConfig(**fields))  # type: ignore[arg-type]


def crops(
    count: int = 2, channels: int = 2, crop: tuple[int, int, int] = CROP
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, brighter where a box of labels 1, 2 and 4 lies; seeds; the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(count, *crop, dtype=torch.int16)
    labels[:, 10:40, 5:20, 8:25] = 2
    labels[:, 15:30, 8:15, 10:20] = 1
    labels[::2, 18:25, 9:13, 12:17] = 4  # only every other crop has an enhancing part
    x = torch.randn(count, channels, *crop, generator=generator) * 0.3 + labels[:, None]
    return x, torch.from_numpy(hash64(5, np.arange(count)).view(np.int64)), labels


class Echo(nn.Module):
    """A stand-in network: region r is a gain times the sum of the channels, less r."""

    def __init__(self, regions: int = 3) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.regions = regions
        self.calls: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(x)
        summed = self.gain * x.sum(dim=1)
        return torch.stack([summed - r for r in range(self.regions)], dim=1)


def plain_swin_unetr(spec: EncoderSpec, regions: int) -> SwinUNETR:
    """MONAI's network as its users build it, in nano's dimensions."""
    return SwinUNETR(
        in_channels=spec.in_channels, out_channels=regions, feature_size=12, window_size=4, spatial_dims=3
    )


# --- against MONAI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "regions"), [({}, 3), (ATLAS, 1)])
def test_the_network_is_monais_swin_unetr(fields: dict[str, object], regions: int) -> None:
    torch.manual_seed(0)
    ours, monais = objective(**fields).network(NANO), plain_swin_unetr(NANO, regions)
    monais.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, *CROP)
    with torch.no_grad():
        found = ours(x)
        assert found.shape == (1, regions, *CROP)
        assert torch.equal(found, monais(x))


def test_a_training_step_is_that_of_monais_transforms_network_and_loss() -> None:
    """From stored codes to gradients: the released fine-tuning, given the same draws."""
    _, seeds, labels = crops()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(1, 900, (2, 2, *CROP), generator=generator, dtype=torch.int16)
    codes[:, :, :6], codes[1, 0, :, :9] = 0, 0
    one = torch.ones(2, 2)
    batch = SimpleNamespace(
        codes_NCDHW=codes, slope_NC=one, inter_NC=0 * one, zero_code_NC=0 * one, mean_NC=one, sd_NC=one,
        present_NC=one.bool(),
    )  # fmt: skip
    segmentation = objective()
    torch.manual_seed(0)
    ours, monais = segmentation.network(NANO), plain_swin_unetr(NANO, 3)
    monais.load_state_dict(ours.state_dict())
    x, _ = normalise(batch, "zscore_crop")  # type: ignore[arg-type]
    total = segmentation.loss(ours, x, seeds, 1, labels_NDHW=labels)["total"]
    total.backward()

    draws = draw(seeds, RECIPES["brats"])
    assert draws.flip_N3.any(dim=1).all()  # else the flips are not tested
    images, masks = [], []
    for i in range(2):
        axes = draws.flip_N3[i].nonzero().flatten().tolist()
        intensity = Compose(
            [
                NormalizeIntensity(nonzero=True, channel_wise=True),
                ScaleIntensity(minv=None, maxv=None, factor=float(draws.factor_N[i])),
                ShiftIntensity(offset=float(draws.offset_N[i])),
            ]
        )
        images.append(torch.as_tensor(intensity(Flip(spatial_axis=axes)(codes[i].float()))))
        regions = ConvertToMultiChannelBasedOnBratsClasses()(labels[i : i + 1])
        masks.append(torch.as_tensor(Flip(spatial_axis=axes)(regions)).float())
    expected = DiceLoss(to_onehot_y=False, sigmoid=True)(monais(torch.stack(images)), torch.stack(masks))
    expected.backward()

    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    # Float32 sums of another order go through a dozen instance norms; biases before one have no gradient.
    largest = max(float(p.grad.norm()) for p in monais.parameters() if p.grad is not None)
    for (name, mine), theirs in zip(ours.named_parameters(), monais.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, name
        difference = float((mine.grad - theirs.grad).norm())
        assert difference < 1e-3 * float(theirs.grad.norm()) + 1e-5 * largest, name


# --- the objective's promises -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ("dice_loss", "dice_tc", "dice_wt", "dice_et")),
        ({"loss": "dice_ce"}, ("dice_loss", "ce_loss", "dice_tc", "dice_wt", "dice_et")),
        (ATLAS, ("dice_loss", "dice_lesion")),
    ],
)
def test_it_has_the_shape_of_a_pretext_objective(fields: dict[str, object], names: tuple[str, ...]) -> None:
    segmentation = objective(**fields)
    assert isinstance(segmentation, base.Objective)
    assert segmentation.loss_names == names
    x, seeds, labels = crops()
    losses = segmentation.loss(Echo(len(segmentation.task.regions)), x, seeds, 1, labels_NDHW=labels)
    assert tuple(losses) == ("total", *names)
    assert all(value.shape == () and value.dtype == torch.float32 for value in losses.values())
    assert [name for name, value in losses.items() if value.requires_grad] == ["total"]
    parts = [losses[name] for name in names if name.endswith("_loss")]
    torch.testing.assert_close(losses["total"].detach(), torch.stack(parts).sum())


def test_a_network_in_training_mode_sees_augmented_crops_and_one_in_eval_mode_plain_ones() -> None:
    x, seeds, labels = crops(4)
    segmentation, echo = objective(), Echo()
    trained = segmentation.loss(echo, x, seeds, 1, labels_NDHW=labels)
    judged = segmentation.loss(echo.eval(), x, seeds, 1, labels_NDHW=labels)
    moved, moved_labels = augment(x, labels, seeds, RECIPES["brats"])
    assert torch.equal(echo.calls[0], moved) and torch.equal(echo.calls[1], x)
    dice = DiceLoss(sigmoid=True)
    for losses, image, mask in ((trained, moved, moved_labels), (judged, x, labels)):
        regions = torch.stack([(mask == 1) | (mask == 4), mask > 0, mask == 4], dim=1).float()
        torch.testing.assert_close(losses["total"], dice(echo(image), regions))


@pytest.mark.parametrize("loss", ["dice", "dice_ce"])
@pytest.mark.parametrize("crops_per_group", [1, 2])
def test_workers_shares_averaged_are_the_whole_batch(loss: str, crops_per_group: int) -> None:
    x, seeds, labels = crops(4)
    segmentation = objective(loss=loss, rotate=0.5)
    whole = segmentation.loss(Echo(), x, seeds, crops_per_group, labels_NDHW=labels)
    shares = [
        segmentation.loss(
            Echo(), x[i : i + 2], seeds[i : i + 2], crops_per_group, labels_NDHW=labels[i : i + 2]
        )
        for i in (0, 2)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([share[name] for share in shares]).mean(), value)


def test_equal_seeds_give_equal_losses_whatever_torchs_generator_does() -> None:
    x, seeds, labels = crops()
    segmentation = objective(rotate=1.0)
    first, second = (segmentation.loss(Echo(), x, seeds, 1, labels_NDHW=labels) for _ in range(2))
    other = segmentation.loss(Echo(), x, seeds + 1, 1, labels_NDHW=labels)
    assert torch.equal(first["total"], second["total"]) and not torch.equal(first["total"], other["total"])


def test_an_absent_modality_reaches_the_network_as_zeros() -> None:
    x, seeds, labels = crops()
    present = torch.tensor([[True, False], [True, True]])
    x[~present] = 0.0
    echo = Echo()
    objective(rotate=1.0).loss(echo, x, seeds, 1, present_NC=present, labels_NDHW=labels)
    assert not echo.calls[0][~present].any() and all(crop.any() for crop in echo.calls[0][present])


def test_training_lowers_the_loss_and_raises_dice() -> None:
    torch.manual_seed(0)
    segmentation = objective()
    learner = segmentation.network(NANO)
    x, seeds, labels = crops(1)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    history = []
    for step in range(6):
        losses = segmentation.loss(learner, x, seeds + step, 1, labels_NDHW=labels)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["total"] < history[0]["total"] - 0.03
    assert history[-1]["dice_wt"] > history[0]["dice_wt"] + 0.1


def test_autocast_computes_losses_and_augmentation_in_float32() -> None:
    x, seeds, labels = crops(1)
    segmentation = objective(rotate=1.0)
    torch.manual_seed(0)
    network = segmentation.network(NANO)
    with torch.no_grad():
        exact = segmentation.loss(network, x, seeds, 1, labels_NDHW=labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = segmentation.loss(network, x, seeds, 1, labels_NDHW=labels)
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)


def test_works_through_distributed_data_parallel(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    x, seeds, labels = crops(1)
    try:
        gradients = []
        for wrap in (False, True):
            torch.manual_seed(0)
            bare = objective().network(NANO)
            wrapped = nn.parallel.DistributedDataParallel(bare, broadcast_buffers=False) if wrap else bare
            objective().loss(wrapped, x, seeds, 1, labels_NDHW=labels)["total"].backward()
            gradients.append([p.grad for p in bare.parameters()])
        for plain, parallel in zip(*gradients, strict=True):
            assert plain is not None and parallel is not None  # no parameter is unused
            torch.testing.assert_close(parallel, plain)
    finally:
        dist.destroy_process_group()


def test_nothing_waits_for_the_device() -> None:
    # On the meta device there are no values to ask for, so whatever would wait for one fails.
    x, seeds, labels = (t.to("meta") for t in crops())
    losses = objective(rotate=0.5, loss="dice_ce").loss(Echo().to("meta"), x, seeds, 1, labels_NDHW=labels)
    assert all(value.device.type == "meta" for value in losses.values())


def test_pictures_show_the_crops_as_they_are_their_masks_and_probabilities() -> None:
    x, seeds, labels = crops()
    segmentation, echo = objective(), Echo().eval()
    shown = segmentation.pictures(echo, x, seeds, 1, labels_NDHW=labels)
    assert list(shown) == ["input", "truth", "prediction"]
    assert torch.equal(shown["input"], x)
    assert torch.equal(shown["truth"], segmentation.task.to_regions(labels, "brats2021"))
    torch.testing.assert_close(shown["prediction"], echo(x).sigmoid().detach())
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in shown.values())


def test_crops_without_masks_are_refused() -> None:
    x, seeds, _ = crops()
    for ask in (objective().loss, objective().pictures):
        with pytest.raises(
            ConfigError, match=r"learnt from masks, and these crops have none\. Fix: train on"
        ):
            ask(Echo(), x, seeds, 1)


def test_crops_that_the_network_cannot_take_are_refused() -> None:
    segmentation = objective()
    for crop in ((64, 32, 32), (32, 32, 64), (128, 128, 96)):  # none need be a square, nothing is turned
        segmentation.check_crop(crop)
    with pytest.raises(ConfigError, match=r"leaves 1 bottleneck token.*nearest valid sizes are 32x32x64"):
        segmentation.check_crop((32, 32, 32))
    with pytest.raises(ConfigError, match="multiple of 32"):
        segmentation.check_crop((100, 96, 96))
    with pytest.raises(ValueError, match="more than 1 spatial element"):  # why one token is refused
        segmentation.network(NANO)(torch.zeros(1, 2, 32, 32, 32))


# --- settings ---------------------------------------------------------------------------------------------


def test_settings_are_plain_json_and_those_of_the_augmentation_are_the_recipes() -> None:
    config = SegmentationConfig(**ATLAS, **dataclasses.asdict(RECIPES["atlas"]))  # type: ignore[arg-type]
    for settings, recipe in ((SegmentationConfig(), RECIPES["brats"]), (config, RECIPES["atlas"])):
        card = json.loads(json.dumps(dataclasses.asdict(settings)))
        assert SegmentationConfig(**card) == settings
        assert dataclasses.asdict(recipe).items() <= card.items()


def test_no_augmentation_means_the_crops_as_they_are() -> None:
    config = SegmentationConfig(flip=0.0, rotate=0.0, scale=0.0, shift=0.0)
    x, seeds, labels = crops()
    echo = Echo()
    Objective(config).loss(echo, x, seeds, 1, labels_NDHW=labels)
    assert torch.equal(echo.calls[0], x)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "liver"}, "task 'liver' does not exist"),
        ({"task": "atlas"}, "task 'atlas' does not understand masks of the label scheme 'brats2021'"),
        ({"loss": "focal"}, "loss 'focal' does not exist"),
        ({"flip": 2.0}, "flip is 2.0"),
        ({"shift": -0.5}, "shift is -0.5"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        objective(**fields)
