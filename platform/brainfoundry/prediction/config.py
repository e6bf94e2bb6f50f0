"""What a prediction is asked for: which checkpoints, which scans, how, and where the masks go."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from brainfoundry.core import paths
from brainfoundry.core.errors import ConfigError
from brainfoundry.inference.windows import Mode, Weights
from brainfoundry.models.crops import check_crop
from brainfoundry.training.config import TrackingOptions

Allowed = Literal["space", "skull"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """All that decides what a mask looks like; kept beside every mask, so that a rerun knows its own."""

    window: tuple[int, int, int]
    overlap: float
    weights: Weights
    mode: Mode
    flips: bool
    threshold: float
    precision: str
    preprocess: str
    assume_orientation: str
    save_probabilities: bool
    save_entropy: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self) | {"window": list(self.window)}


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of `jobs/predict.py`."""

    checkpoint: tuple[str, ...] = ()
    """Fine-tuned runs (their best checkpoint) or single checkpoints; several are averaged."""
    input: str = ""
    """Scans: a folder, a BIDS dataset, a BraTS or ATLAS tree, a cohort manifest, or a shard set."""
    out: str = str(paths.home() / "predictions")
    """Folder (or URI) for the BIDS derivative; its own, or one that an interrupted run of this job began."""

    pattern: str = ""
    """How files of a folder are named, such as "{subject}/{subject}-{modality}.nii.gz"; * is anything,
    {session} may be there; without a / it is held against the file's name alone."""
    channels: tuple[str, ...] = ()
    """What {modality} texts mean, such as 0000=FLAIR 0001=T1ce (nnU-Net), besides the usual names."""
    run: int | None = None
    """bids: which run, where a session has several of a modality."""
    entities: tuple[str, ...] = ()
    """bids: further entities to choose by, such as acq-mprage or space-MNI152NLin6Asym."""
    split: Literal["", "train", "val", "test"] = ""
    """Manifest or shard set: sessions of this split only; empty: all that are included."""
    limit: int | None = None
    """Most cases to predict, the first ones by id; None: all."""

    allow: tuple[Allowed, ...] = ()
    """Refusals to let pass: space (another template space than in training), skull (a whole head where brains
    are expected)."""
    assume_orientation: str = ""
    """Axis codes, such as LAS, of scans whose header says nothing of orientation; empty: they are refused."""
    preprocess: str = ""
    """Command run on every scan first, such as "hd-bet -i {input} -o {output}"; no shell. The mask then lies
    on the grid of its output."""
    preprocess_timeout_s: float = 1_800.0
    """Seconds one run of it may take."""

    overlap: float = 0.5
    """Overlap of neighbouring windows, share of a window, 0 to below 1 (released validation: 0.5)."""
    weights: Weights = "gaussian"
    """How overlapping windows are blended (released code: constant)."""
    window: tuple[int, int, int] | None = None
    """Window in voxels along R-L, P-A, I-S, multiples of 32; None: the crop of training."""
    mode: Mode = "box"
    """box: windows over the foreground alone; exact: over the whole volume, as MONAI does."""
    flips: bool = False
    """Average over the 8 mirror images: 8 times the time."""
    threshold: float = 0.5
    """A voxel belongs to a region where its probability is above this, 0 to 1."""
    batch: int | None = None
    """Windows at once; None: 4 on a GPU (released code), 1 on a CPU. Changes speed and memory only."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, fp16 on others, fp32 on CPUs."""

    save_probabilities: bool = False
    """Write each region's probability, a float32 map on the scan's grid."""
    save_entropy: bool = False
    """Write the uncertainty: entropy of the probabilities, mean over the regions, in nats (0 to ln 2)."""
    overwrite: bool = False
    """Replace what another run of this job wrote to --out."""
    dry_run: bool = False
    """Show what was found, the checks, windows a case and an estimate; predict and write nothing."""

    workers: int | None = None
    """Networks at work at once; None: one a GPU, or one for every 4 CPUs where there is no GPU."""
    cpus: int | None = None
    """CPUs of the private Ray session without a cluster; None: all of this machine."""
    tracking: TrackingOptions = field(
        default_factory=lambda: TrackingOptions(experiment="brainfoundry-predict")
    )
    """Tracking."""

    def __post_init__(self) -> None:
        for wrong, name, fix in (
            (not 0 <= self.overlap < 1, "overlap", "give 0 to below 1, such as 0.5"),
            (not 0 <= self.threshold < 1, "threshold", "give 0 to below 1, such as 0.5"),
            (self.batch is not None and self.batch < 1, "batch", "give 1 or more"),
            (self.limit is not None and self.limit < 1, "limit", "give 1 or more, or leave it out"),
            (self.workers is not None and self.workers < 1, "workers", "give 1 or more, or leave it out"),
            (not 0 < self.preprocess_timeout_s < math.inf, "preprocess-timeout-s", "give seconds, above 0"),
        ):
            if wrong:
                value = getattr(self, name.replace("-", "_"))
                raise ConfigError(f"--{name} is {value}", fix=fix)
        if self.window is not None:
            check_crop(self.window, min_tokens=2)  # the deepest block normalises over them
        check_orientation(self.assume_orientation)
        command_of(self.preprocess)

    def options(self, window: tuple[int, int, int]) -> Options:
        """What decides the masks, with the window that is really used."""
        return Options(
            window=window, overlap=self.overlap, weights=self.weights, mode=self.mode, flips=self.flips,
            threshold=self.threshold, precision=self.precision, preprocess=self.preprocess,
            assume_orientation=self.assume_orientation, save_probabilities=self.save_probabilities,
            save_entropy=self.save_entropy,
        )  # fmt: skip


def check_orientation(codes: str) -> None:
    """Refuse what are no three axis codes (ConfigError); "" is none."""
    axes = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    if codes and sorted(axes.get(code, -1) for code in codes) != [0, 1, 2]:
        raise ConfigError(
            f"--assume-orientation is {codes!r}", fix="give one of R L, one of A P, one of S I, such as LAS"
        )


def command_of(text: str) -> list[str]:
    """A preprocessing command as its arguments; none where there is no command.

    Raises:
        ConfigError: it cannot be taken apart, or does not name {input} and {output}.
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--preprocess cannot be read: {error}", fix="close its quotes") from error
    for name in ("{input}", "{output}"):
        if parts and not any(name in part for part in parts):
            raise ConfigError(
                f"--preprocess does not say where {name} goes",
                fix='write it as "command {input} {output}"; both are .nii.gz files',
            )
    return parts
