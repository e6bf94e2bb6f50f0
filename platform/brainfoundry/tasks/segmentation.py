"""The supervised objective: a network on labelled crops, for any task, in the shape of a pretext objective.

The engine that trains pretext objectives trains this one; it only has to hand over the crops' labels. Which
labels make which region is the task's (`tasks.base`), what is done to a crop before is `tasks.augment`, what
a wrong answer costs is `tasks.losses`. A network in eval mode is shown the crops as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.models import EncoderSpec, build_segmenter, check_crop
from brainfoundry.models.families import load_family
from brainfoundry.tasks.augment import AugmentConfig, augment
from brainfoundry.tasks.base import load_task
from brainfoundry.tasks.losses import RegionLoss, hard_dice


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(AugmentConfig):
    """Settings of the objective, those of the augmentation among them; the defaults are the released BraTS
    fine-tuning's, whatever the task (`augment.RECIPES` has the others').

    Raises:
        ConfigError: an impossible value, or a label scheme that the task does not know.
    """

    task: str = "brats"
    """What is segmented: a file of brainfoundry.tasks."""
    scheme: str = "brats2021"
    """Which label number means which tissue, as the cohort's manifest names it."""
    loss: str = "dice"
    """`dice` (released code), or `dice_ce`: with binary cross-entropy."""
    squared: bool = False
    """Squares in Dice's denominator (released code: `--squared_dice`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        load_task(self.task).check_scheme(self.scheme)
        RegionLoss(self.loss)


SWINUNETR = "swinunetr"
"""The family whose encoder a pretraining run hands over; built from an `EncoderSpec`, not from options."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Which network segments: its family, and what that family needs to know."""

    family: str = SWINUNETR
    """A file of brainfoundry.models.families."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The family's; those left out are at their default. SwinUNETR has none here."""
    crop: tuple[int, int, int] = (96, 96, 96)
    """The crop it is trained on."""

    def check_crop(self, crop: Sequence[int]) -> None:
        """Refuse a crop that the network cannot take (ConfigError).

        Of SwinUNETR one bottleneck token is too few: its deepest block normalises over them.
        """
        if self.family == SWINUNETR:
            check_crop(crop, min_tokens=2)
        else:
            load_family(self.family).check_crop(crop)

    def build(self, encoder: EncoderSpec, regions: int) -> nn.Module:
        """A freshly initialised network with one map a region.

        Args:
            encoder: SwinUNETR's; the others take the number of input channels from it, and no more.
        """
        if self.family == SWINUNETR:
            return build_segmenter(encoder, regions)
        return load_family(self.family).build(encoder.in_channels, regions, self.crop, self.options)


class Objective:
    """Segmentation of a task's regions: see the module's docstring, and `pretext.base.Objective`.

    Its loss names are the parts of the loss (`dice_loss`, and `ce_loss` where there is one), whose sum is the
    total, and `dice_<region>`, the batch's Dice at probability 0.5.

    Args:
        spec: the network. It is no part of `config`: the checkpoint's card has fields of its own for it.
    """

    Config = SegmentationConfig
    views_per_crop = 1

    def __init__(self, config: SegmentationConfig | None = None, spec: NetworkSpec | None = None) -> None:
        self.config = config or SegmentationConfig()
        self.spec = spec or NetworkSpec()
        self.task = load_task(self.config.task)
        self._loss = RegionLoss(self.config.loss, squared=self.config.squared)
        self._dice_names = tuple(f"dice_{region.name}" for region in self.task.regions)
        self.loss_names: tuple[str, ...] = (*self._loss.parts, *self._dice_names)

    def check_crop(self, crop: Sequence[int]) -> None:
        """Refuse a crop that the network cannot take (ConfigError)."""
        self.spec.check_crop(crop)

    def check_group(self, crops_per_group: int) -> None:
        """Any number of crops: nothing passes between them."""

    def network(self, encoder: EncoderSpec) -> nn.Module:
        """The network, one map a region."""
        return self.spec.build(encoder, len(self.task.regions))

    def loss(
        self,
        network: nn.Module,
        x_NCDHW: torch.Tensor,
        seeds_N: torch.Tensor,
        crops_per_group: int,
        *,
        present_NC: torch.Tensor | None = None,
        labels_NDHW: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The total, its parts and the regions' Dice, float32 scalars; only `total` carries a gradient.

        Crops are augmented where the network is in training mode. Nothing passes between crops, so the means
        over them are means over groups.

        Args:
            labels_NDHW: label numbers in the scheme of the configuration; a ConfigError where there are none.
        """
        labels = _there(labels_NDHW)
        if network.training:
            x_NCDHW, labels = augment(x_NCDHW, labels, seeds_N, self.config, present_NC=present_NC)
        truth = self.task.to_regions(labels, self.config.scheme)
        logits = network(x_NCDHW)
        parts = self._loss(logits, truth)
        dice = dict(zip(self._dice_names, hard_dice(logits, truth), strict=True))
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: part.detach() for name, part in parts.items()}, **dice}

    @torch.no_grad()
    def pictures(
        self,
        network: nn.Module,
        x_NCDHW: torch.Tensor,
        seeds_N: torch.Tensor,
        crops_per_group: int,
        *,
        labels_NDHW: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """`input` (N, C, D, H, W), `truth` and `prediction` (N, R, D, H, W; probabilities), float32; the
        crops as they are."""
        truth = self.task.to_regions(_there(labels_NDHW), self.config.scheme)
        return {"input": x_NCDHW.float(), "truth": truth, "prediction": network(x_NCDHW).float().sigmoid()}


def _there(labels_NDHW: torch.Tensor | None) -> torch.Tensor:
    if labels_NDHW is None:
        raise ConfigError(
            "segmentation is learnt from masks, and these crops have none",
            fix="train on a shard set made with labels, and read its label channel",
        )
    return labels_NDHW
