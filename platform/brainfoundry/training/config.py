"""Every field of a pretraining run: what it is, its unit, and where its default comes from.

"paper" is Cox et al. 2024, "BrainSegFounder"; "code" is what its authors released. Where the paper's
text and its Table 3 disagree, both are named and one is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

from brainfoundry.core.errors import ConfigError
from brainfoundry.pretext.base import load_objective


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and in what units."""

    shards: str | None = None
    """Shard set: a folder or any URI that pyarrow or fsspec opens (made by the jobs/prepare_*.py). The
    demo preset makes its own when this is not given."""
    modalities: tuple[str, ...] = ()
    """Input channels by modality, in order: any of the shard set's; empty = all of them, in its order."""
    feed: tuple[str, ...] = ()
    """Channels fed by another modality, as CHANNEL=MODALITY: `FLAIR=T1w` keeps the channel FLAIR (and its
    pretrained weights) and shows it the T1w (the paper's two channels of one scan)."""
    fold: int | None = None
    """Train on every fold but this one, which is held out (0 to 4 are the paper's Fold 1 to 5); None: the
    split column decides."""
    share: float = 100.0
    """Per cent of the training subjects to learn from, one of the shard set's nested few-shot subsets
    (jobs/split.py --few-shot; paper: 5, 10, 20, 40, 100); the others are not seen at all. 100 = everybody."""
    draw: int = 0
    """Which of the few-shot subsets of that share (jobs/split.py --draws)."""
    crop: tuple[int, int, int] = (96, 96, 96)
    """Crop in voxels along R-L, P-A, I-S (paper 1.2: 96x96x96)."""
    crops_per_subject: int = 2
    """Crops cut from a subject at each visit (code: sw_batch_size 2)."""
    subjects_per_group: int = 2
    """Subjects of one group: the crops that share a contrast matrix and lend voxels to each other (paper:
    batch 2 a GPU)."""
    groups_per_step: int = 64
    """Groups of one optimiser step, over all workers; must divide by them (paper: 64 GPUs, one group each =
    256 crops, 512 views)."""
    frame: Literal["box", "reference"] = "box"
    """Where crops are drawn: the foreground box padded to at least the crop, or the released code's frame
    (182x218x182 -> 192x288x192)."""
    intensity: Literal["zscore_nonzero", "zscore_crop", "ct_window"] = "zscore_nonzero"
    """Intensity rule: z-score over the scan's non-zero voxels (the paper's BraTS recipe), the same over the
    crop's (the released fine-tuning), or the released pretraining's window -1000..1000 -> 0..1."""
    seed: int = 20240614
    """Seed of the order, the crops and every augmentation."""
    guard: tuple[str, ...] = ()
    """Test sets this run must not see a scan of, by id or by image: URI of a shard set (its test split),
    URI#split=NAME or URI#fold=K. The test split of --data.shards is always among them."""
    allow_leak: bool = False
    """Go on although a test subject is seen, and record the leak on the card, in the tags and in the
    report."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    size: Literal["nano", "tiny", "small", "big"] = "small"
    """Size of Table 2 (tiny 19.1 M, small 21.0 M, big 26.6 M parameters with the SSL heads); nano is for CPUs
    and tests."""
    merging: Literal["legacy", "current"] = "current"
    """Patch merging: `legacy` repeats two slices and misses two, as MONAI before 1.5 did and all published
    weights expect; `current` is correct."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 1.5 times the time."""
    attention: Literal["monai", "segments"] = "monai"
    """Window attention: MONAI's, or ours, equal up to rounding and about 2.5 times as fast in pretraining on
    a CPU; on a GPU both are MONAI's."""
    objective: str = "inpaint_rotate_contrast"
    """Pretext objective: a file of brainfoundry.pretext."""
    objective_options: tuple[str, ...] = ()
    """Options of the objective as name=value, such as `contrast_weight=0.5 contrast_scope=global`; defaults
    are the paper's."""

    @property
    def label(self) -> str:
        """What to call the network in a word."""
        return self.size


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where the weights come from, and which of them learn."""

    checkpoint: str | None = None
    """Checkpoint to start from: a step-... folder, or a run's folder (its best checkpoint by validation, else
    its newest); None: random weights."""
    mode: Literal["paper", "reference", "mean", "repeat"] = "paper"
    """What the first convolution gets. paper: shared modalities keep their slices, new ones are drawn
    (Kaiming), by name. reference: all drawn anew, as the released code did. mean: new ones get the mean of
    the slices. repeat: slices in turn, whatever their names."""
    parts: tuple[str, ...] = ("encoder",)
    """What is taken over: encoder, heads (of a pretrained network), decoder (of a fine-tuned one)."""
    freeze: Literal["none", "encoder", "encoder_but_stem", "stem"] = "none"
    """Weights that do not learn: the encoder, the encoder without its first convolution (released code's
    option), or that first convolution alone."""
    layer_decay: float = 1.0
    """Learning rate of each encoder stage relative to the one above it, 0 to 1; 1 = all alike."""
    ct_weights: str | None = None
    """Instead of a checkpoint: a file of encoder weights from CT in the key scheme of MONAI's
    model_swinvit.pt. All channels get the weights of its one, unless --init.mode is mean or reference."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    steps: int = 200_000
    """Optimiser steps (Table 3: 2x10^5; the paper's text says 15,000 iterations; code default 100,000)."""
    lr: float = 6e-6
    """Peak learning rate of AdamW (paper's text: 6e-6; Table 3: 1e-6; code default 4e-4)."""
    weight_decay: float = 0.1
    """AdamW weight decay (code: 0.1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moments (code: torch's defaults)."""
    warmup: int = 500
    """Steps of linear warm-up from 0 (paper: 500)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine to 0 at the last step, or constant."""
    clip_norm: float | None = 1.0
    """Largest gradient norm, after unscaling (code: 1.0, but skipped under mixed precision); None = no
    clipping."""
    accumulate: int = 1
    """Micro-batches a step: each worker's groups are cut into this many parts (saves memory, same
    gradients)."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Autocast precision; fp16 scales the loss (code: fp16)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999: what checkpoints then hold;
    None = none."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What the run takes from the cluster."""

    workers: int = 64
    """Ray Train workers (paper: 64 A100, 8 nodes)."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU a worker: where the cluster has any, always, or never."""
    cpus_per_worker: float = 1.0
    """Logical CPUs reserved for a worker."""
    threads: int = 0
    """torch threads of a CPU worker; 0 = cores of the node divided by its workers. Fixed threads make a CPU
    run repeat to the bit."""
    keep_freed_memory: bool = True
    """CPU workers: keep freed memory for the next tensor: about half the time, more memory."""
    fetch_cpus: float = 0.5
    """Logical CPUs of a process that reads crops."""
    fetchers: int = 1
    """Processes a worker that read crops (one gives over 100 crops of 96^3 x 2 a second)."""
    max_failures: int = 3
    """How often the workers may die and be started again from the newest checkpoint within one job."""
    timeout_s: int = 600
    """Seconds a collective may take before the worker group counts as hung."""


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Validation, checkpoints, logging."""

    validate_every: int = 1_000
    """Steps between validations on the held-out subjects; 0 = only at the end."""
    validate_subjects: int = 1_896
    """Held-out subjects used, at most (paper: 1,896 held out)."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; 0 = only at the end."""
    keep_last: int = 3
    """Newest checkpoints kept; the best by validation is kept besides."""
    best_by: str = "total"
    """Validation loss that names the best checkpoint: total, or one of the objective's (code:
    reconstruction)."""
    log_every: int = 20
    """Steps between two looks at the losses: the device is only waited for here."""
    pictures: int = 2
    """Held-out crops drawn as input, cut and rebuilt at each validation."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Looks at what the frozen encoder is worth for masks, while it is pretrained."""

    shards: str | None = None
    """Labelled shard set to look at; None: no probe. Its test split is never touched."""
    task: str | None = None
    """What its masks are: brats, atlas; None: whichever reads the set's label scheme."""
    every: int = 1_000
    """Steps between two looks; there is one before the first step and one after the last besides. 0 = only
    those."""
    subjects: int = 8
    """Labelled training subjects that the linear head is fitted on."""
    test_subjects: int = 16
    """Others that it is scored on: of the val split, without one further training subjects."""


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where the numbers go."""

    uri: str | None = None
    """MLflow tracking server or store; default $MLFLOW_TRACKING_URI, else a local sqlite file below the home
    folder."""
    experiment: str = "brainfoundry-pretrain"
    """MLflow experiment."""
    subjects: bool = True
    """Also log what names single subjects, their scores and pictures: a server cannot be told to forget who
    withdraws."""
    parent: str | None = None
    """MLflow run of which this one is a part: it is shown below it (the tag mlflow.parentRunId)."""
    tags: tuple[str, ...] = ()
    """Further tags of the MLflow run as name=value, to search and group by."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run has, whatever its stage."""

    job: str = "pretrain-ukb"
    """Begins the run's default name (set by the job)."""
    preset: str = ""
    """Name of the preset this came from (set by --preset)."""
    name: str | None = None
    """Run name; the same name and storage continue an unfinished run. Default: built from preset, size and a
    hash of the configuration."""
    storage: str | None = None
    """Folder or URI that all nodes see; the run lives in STORAGE/NAME. Default: pretrain/ or finetune/ below
    $BRAINFOUNDRY_HOME."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue an unfinished run of this name; never: start a new one beside it; must: refuse to start
    from scratch."""
    dry_run: bool = False
    """Print data found, steps, memory, GPU-hours and start nothing."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model."""
    init: InitConfig = field(default_factory=InitConfig)
    """Start."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Cluster."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    """Validation, checkpoints, logging."""
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    """Tracking."""

    @property
    def crops_per_group(self) -> int:
        """Crops of one group."""
        return self.data.crops_per_subject * self.data.subjects_per_group

    def check(self) -> None:
        """Refuse what can never run, before anything is read or started.

        Raises:
            ConfigError: names the field.
        """
        positive = {
            "--optim.steps": self.optim.steps,
            "--optim.lr": self.optim.lr,
            "--optim.accumulate": self.optim.accumulate,
            "--data.groups-per-step": self.data.groups_per_step,
            "--data.subjects-per-group": self.data.subjects_per_group,
            "--data.crops-per-subject": self.data.crops_per_subject,
            "--cluster.workers": self.cluster.workers,
            "--cluster.fetchers": self.cluster.fetchers,
            "--keep.keep-last": self.keep.keep_last,
            "--keep.log-every": self.keep.log_every,
        }
        for flag, value in positive.items():
            if value <= 0:
                raise ConfigError(f"{flag} is {value}", fix="give a value above 0")
        if self.name is not None and (not self.name or "/" in self.name or self.name.startswith(".")):
            raise ConfigError(
                f"--name {self.name!r} cannot name a folder", fix="use letters, digits, - and _"
            )
        if not 0 < self.data.share <= 100:
            raise ConfigError(f"--data.share is {self.data.share:g}", fix="give per cent above 0, up to 100")
        if self.data.draw < 0:
            raise ConfigError(f"--data.draw is {self.data.draw}", fix="give 0 or more")
        if self.init.checkpoint is not None and self.init.ct_weights is not None:
            raise ConfigError(
                "--init.checkpoint and --init.ct-weights both say where the weights come from",
                fix="give one of them",
            )
        if not 0 < self.init.layer_decay <= 1:
            raise ConfigError(f"--init.layer-decay is {self.init.layer_decay}", fix="give 0 to 1, 1 = off")
        if self.optim.ema is not None and not 0 < self.optim.ema < 1:
            raise ConfigError(f"--optim.ema is {self.optim.ema}", fix="give a decay below 1, such as 0.999")
        local_groups, rest = divmod(self.data.groups_per_step, self.cluster.workers)
        if not rest and local_groups % self.optim.accumulate:
            raise ConfigError(
                f"--optim.accumulate {self.optim.accumulate} does not divide {local_groups} groups a worker",
                fix=f"use a divisor of {local_groups}",
            )

    @property
    def folder(self) -> str:
        """Where runs of this kind live by default, below the home folder."""
        return "pretrain"

    @property
    def stage(self) -> str:
        """For the card: pretrain-1, pretrain-2 or finetune."""
        return "pretrain-1" if self.init.checkpoint is None else "pretrain-2"

    def in_steps(self, n_subjects: int) -> Self:
        """The same with everything counted in optimiser steps."""
        return self


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """A self-supervised pretraining run (stage 1 from random weights, stage 2 from a checkpoint)."""

    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Probe."""

    def check(self) -> None:
        """As `TrainConfig.check`, and what the objective and the probe need."""
        super().check()
        load_objective(self.model.objective)().check_group(self.crops_per_group)
        least = {"every": 0, "subjects": 1, "test_subjects": 1}
        for name, value in least.items():
            if getattr(self.probe, name) < value:
                raise ConfigError(
                    f"--probe.{name.replace('_', '-')} is {getattr(self.probe, name)}",
                    fix=f"give {value} or more",
                )
