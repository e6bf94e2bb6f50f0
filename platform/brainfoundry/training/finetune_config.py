"""Every field of a fine-tuning run (stage 3) that pretraining does not have, or has with another default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from brainfoundry.core.errors import ConfigError
from brainfoundry.tasks.augment import AugmentConfig
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.config import DataConfig, KeepConfig, ModelConfig, OptimConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneData(DataConfig):
    """What is read: crops with their masks."""

    crop: tuple[int, int, int] = (128, 128, 128)
    """Crop in voxels along R-L, P-A, I-S (code: 128x128x128; the paper names 96 for pretraining only)."""
    crops_per_subject: int = 1
    """Crops cut from a subject at each visit (code: 1)."""
    subjects_per_group: int = 1
    """Always 1: nothing is shared between the crops of a batch."""
    groups_per_step: int = 4
    """Crops of one optimiser step, over all workers; must divide by them (code: 2 GPUs, 2 each)."""
    foreground: float = 0.0
    """Share of crops that are centred on a voxel of the mask, 0 to 1 (code: 0; nnU-Net: 0.33)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneModel(ModelConfig):
    """The network: the encoder with the U-Net decoder."""

    size: Literal["nano", "tiny", "small", "big"] = "tiny"
    """Size of Table 2; that of the checkpoint it starts from."""
    drop_rate: float = 0.0
    """Dropout in the encoder, 0 to 1 (ATLAS: 0.1, paper 1.2)."""
    objective: str = "segmentation"
    """Always segmentation; its settings are under --task and --augment."""
    family: str = SWINUNETR
    """Architecture: a file of brainfoundry.models.families. swinunetr goes on from a pretraining run; the
    others start at random, and no option of --model but --model.family-options is theirs."""
    family_options: tuple[str, ...] = ()
    """Options of another family as name=value, such as `filters=16`; defaults are its authors'."""

    @property
    def label(self) -> str:
        """The size; of another family than swinunetr its name."""
        return self.size if self.family == SWINUNETR else self.family


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is asked of the network."""

    name: Literal["brats", "atlas"] = "brats"
    """brats: tumour core, whole tumour, enhancing tumour; atlas: lesion."""
    loss: Literal["dice", "dice_ce"] = "dice"
    """dice: mean soft Dice loss of the regions (paper, code); dice_ce: plus binary cross-entropy."""
    squared: bool = False
    """Squared terms in the Dice loss's denominator (code: an option)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptim(OptimConfig):
    """The optimiser and its schedule; epochs, where given, decide over steps."""

    steps: int = 50_000
    """Optimiser steps (Table 3: 50,000); --optim.epochs decides where it is given."""
    epochs: float | None = None
    """Visits of every training subject (code: 300; ATLAS paper: 600)."""
    lr: float = 1e-4
    """Peak learning rate of AdamW (paper and code: 1e-4)."""
    weight_decay: float = 1e-5
    """AdamW weight decay (code: 1e-5)."""
    warmup: int = 0
    """Steps of linear warm-up from 0; --optim.warmup-epochs decides where it is given."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up (code: 50)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneKeep(KeepConfig):
    """Validation on whole volumes, checkpoints, logging."""

    validate_every: int = 1_000
    """Steps between validations, each with a checkpoint; 0 = only at the end. --keep.validate-epochs decides
    where it is given."""
    validate_epochs: float | None = None
    """Epochs between validations (code: 5)."""
    validate_subjects: int = 251
    """Held-out subjects scored at each validation, at most (a fold of BraTS 2021 has 250 or 251); the report
    at the end scores all of them."""
    validation: Literal["auto", "async", "inline"] = "auto"
    """async: by Ray Train beside the training, on resources that the workers do not hold; inline: by the
    workers, while training waits; auto: async where the cluster has such resources."""
    overlap: float = 0.5
    """Overlap of the sliding windows, share of a window (code: 0.5)."""
    weights: Literal["gaussian", "constant"] = "gaussian"
    """What a window's voxels weigh where windows overlap (code: constant)."""
    window: tuple[int, int, int] | None = None
    """Window of validation in voxels along R-L, P-A, I-S, multiples of 32; None: the crop (code)."""
    windows: Literal["box", "exact"] = "box"
    """Windows over the box of the brain, or over the whole volume (code)."""
    best_by: str = "dice_mean"
    """Score that names the best checkpoint (code: mean of the three regions' Dice)."""
    pictures: int = 6
    """Held-out subjects drawn at the end: the worst and the best by Dice; 0 = none."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """A fine-tuning run (stage 3): the pretrained encoder, a fresh U-Net decoder, masks."""

    job: str = "finetune-brats"
    """Begins the run's default name (set by the job)."""
    data: FinetuneData = field(default_factory=FinetuneData)
    """Data."""
    model: FinetuneModel = field(default_factory=FinetuneModel)
    """Model."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """Task and loss."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    """Optimiser."""
    keep: FinetuneKeep = field(default_factory=FinetuneKeep)
    """Validation, checkpoints, logging."""

    def check(self) -> None:
        """As `TrainConfig.check`, and what crops with masks need."""
        super().check()
        if self.crops_per_group != 1:
            raise ConfigError(
                "fine-tuning takes one crop of one subject a group",
                fix="set --data.groups-per-step to the batch, and leave the other two at 1",
            )
        for flag, value in (
            ("--optim.epochs", self.optim.epochs),
            ("--keep.validate-epochs", self.keep.validate_epochs),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"{flag} is {value}", fix="give a number above 0, or leave it out")
        if (self.model.objective, self.model.objective_options) != ("segmentation", ()):
            raise ConfigError(
                "fine-tuning has one objective, segmentation",
                fix="leave --model.objective and --model.objective-options out; see --task and --augment",
            )
        self._check_family()
        if not 0 <= self.keep.overlap < 1:
            raise ConfigError(f"--keep.overlap is {self.keep.overlap}", fix="give 0 to below 1, such as 0.5")

    def _check_family(self) -> None:
        family, init = self.model.family, self.init
        if family == SWINUNETR:
            if self.model.family_options:
                raise ConfigError(
                    "--model.family-options are for other families than swinunetr",
                    fix="set --model.size, --model.merging and --model.drop-rate",
                )
            return
        for flag, given in (
            ("--init.checkpoint", init.checkpoint is not None),
            ("--init.ct-weights", init.ct_weights is not None),
            (f"--init.freeze {init.freeze}", init.freeze != "none"),
            (f"--init.layer-decay {init.layer_decay:g}", init.layer_decay != 1),
        ):
            if given:
                raise ConfigError(
                    f"{flag} means the encoder of swinunetr, which family {family} does not have",
                    fix=f"leave it out: {family} starts at random, and all of it learns",
                )

    @property
    def folder(self) -> str:
        """Where runs of this kind live by default, below the home folder."""
        return "finetune"

    @property
    def stage(self) -> str:
        """For the card."""
        return "finetune"

    def in_steps(self, n_subjects: int) -> Self:
        """The same with epochs turned into steps: an epoch visits each of `n_subjects` once."""

        def steps(epochs: float) -> int:
            return math.ceil(epochs * n_subjects / self.data.groups_per_step)

        optim, keep = self.optim, self.keep
        if optim.epochs is not None:
            optim = replace(optim, steps=steps(optim.epochs))
        if optim.warmup_epochs is not None:
            optim = replace(optim, warmup=steps(optim.warmup_epochs))
        if keep.validate_epochs is not None:
            keep = replace(keep, validate_every=steps(keep.validate_epochs))
        return replace(self, optim=optim, keep=keep)
