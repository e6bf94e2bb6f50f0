#!/usr/bin/env python
"""Score fine-tuned checkpoints on whole volumes of a shard set, with the challenge's own metrics.

Writes a row a subject (CSV, Parquet), means with intervals (JSON, MLflow, here), and a page with pictures of
the worst and the best. Several checkpoints are an ensemble. A subject that a checkpoint, or any ancestor of
it, has seen in training is refused.

    python jobs/evaluate.py --checkpoints RUN --shards /data/brats-shards --split test --out scores
    python jobs/evaluate.py --checkpoints RUN0 --shards /data/brats-shards --fold 0 --lesionwise --flips
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.core.ray_session import connect
from brainfoundry.experiments.external import find_external, record_evaluation
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.models import check_crop
from brainfoundry.training.config import TrackingOptions
from brainfoundry.training.ensemble import find_models, window_of
from brainfoundry.training.evaluation import evaluate, log_evaluation
from brainfoundry.training.evaluation_spec import tracker_for, volumes_of


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    checkpoints: tuple[str, ...] = ()
    """Fine-tuned checkpoints: step-... folders, or runs' folders (the best by validation of each)."""
    shards: str = ""
    """Shard set with masks."""
    split: Literal["train", "val", "test"] = "test"
    """Split that is scored."""
    fold: int | None = None
    """Score this fold (its sessions outside the test split) instead of a split; 0 to 4 are the paper's Fold 1
    to 5."""
    out: str = "evaluation"
    """Folder for scores, pictures and page; what an earlier evaluation wrote there is replaced."""
    limit: int | None = None
    """Subjects scored at most; None: all."""
    window: tuple[int, int, int] | None = None
    """Window in voxels along R-L, P-A, I-S, multiples of 32; None: the crop of training."""
    overlap: float = 0.5
    """Overlap of the sliding windows, share of a window."""
    weights: Literal["gaussian", "constant"] = "gaussian"
    """What a window's voxels weigh where windows overlap."""
    mode: Literal["box", "exact"] = "box"
    """box: only the box of the brain is computed; exact: the whole volume, as MONAI's inferer does."""
    flips: bool = False
    """Average over the eight mirror images."""
    lesionwise: bool = False
    """Also the BraTS 2023 lesion-wise scores (slower)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """In which the network computes."""
    pictures: int = 6
    """Subjects drawn, half of them the worst by Dice; 0 = none."""
    allow_leak: bool = False
    """Go on although a checkpoint has seen a subject, and say so on the page."""
    study: str = ""
    """Folder of a study (STORAGE/NAME) of which this fills a trial that its driver does not run, such as that
    of a Model Zoo bundle."""
    node: str = ""
    """That trial's id, as jobs/study.py prints it."""
    tracking: TrackingOptions = field(
        default_factory=lambda: TrackingOptions(experiment="brainfoundry-evaluate")
    )
    """Tracking."""

    def __post_init__(self) -> None:
        if self.window is not None:
            check_crop(self.window, min_tokens=2)  # the deepest block normalises over them


def main(config: EvaluateConfig) -> None:
    if not config.checkpoints or not config.shards:
        raise ConfigError("--checkpoints and --shards are needed", fix="name both; see --help")
    trial = find_external(config.study, node=config.node) if config.study else None
    models = find_models(config.checkpoints)
    uris = [model.uri for model in models]

    # Everything is checked here, before anything runs: same task, same channels, nobody seen before.
    spec, notes, leaks = volumes_of(
        models, config.shards, split=config.split, fold=config.fold, limit=config.limit,
        allow_leak=config.allow_leak, flips=config.flips, lesionwise=config.lesionwise,
        precision=config.precision,
        window=WindowSpec(
            window=window_of(models, config.window), overlap=config.overlap, weights=config.weights,
            mode=config.mode,
        ),
    )  # fmt: skip
    if trial is not None:
        trial.check_volumes(spec, split=config.split, fold=config.fold, limit=config.limit)
    what = f"fold {config.fold}" if config.fold is not None else f"split {config.split}"
    print(f"{len(spec.sessions)} subjects of {what}, {len(uris)} checkpoint(s)")
    for note in notes:
        print(f"note: {note}")

    print(f"joined {connect()}", flush=True)
    out = files.absolute(config.out)
    found = evaluate(
        uris, spec, out, title=f"{what} of {config.shards}", lead=", ".join(uris),
        pictures=config.pictures, notes=notes,
    )  # fmt: skip
    found.table.print_table(what)
    tracker = tracker_for(out, config.tracking, uris, spec)
    log_evaluation(tracker, found, step=0, subjects=config.tracking.subjects)
    tracker.close("FINISHED", timeout_s=120.0)
    if trial is not None:
        record_evaluation(trial, models, found, leaks)
        print(f"recorded as trial {trial.node.id} of {config.study}")
    print(f"scores: {found.scores}\npage:   {found.page}\n{tracker.where()}")


ALIASES = {"--checkpoint": "--checkpoints"}

if __name__ == "__main__":
    run_job(EvaluateConfig, main, description=__doc__, aliases=ALIASES)
