#!/usr/bin/env python
"""nnU-Net itself (nnunetv2) on our subjects, folds and few-shot subsets, scored by our metrics.

Steps: export (its raw format and splits), run (plan, preprocess, train, predict), score, all. nnunetv2 is
called as another program, in any Python environment that has it. Safe to run again: it resumes.

    python -m venv nnunet-env; nnunet-env/bin/pip install nnunetv2
    python jobs/nnunet.py --shards /data/brats-shards --fold 0 --test fold --out nnunet-0 \\
        --python nnunet-env/bin/python
    python jobs/nnunet.py score --out nnunet-0 --lesionwise
    ray job submit --entrypoint-num-gpus 1 -- python jobs/nnunet.py --study STORAGE/table4 --point fold=0
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.experiments.nnunet.cases import Selection
from brainfoundry.experiments.nnunet.environment import find_environment
from brainfoundry.experiments.nnunet.export import DATASET_ID, Export, export_dataset, plan_export
from brainfoundry.experiments.nnunet.run import EPOCH_STEPS, STEPS, NnunetRun, RunSpec, trained
from brainfoundry.experiments.nnunet.score import score_predictions
from brainfoundry.experiments.nnunet.trial import StudyTrial, find_trial, record_trial


@dataclass(frozen=True, kw_only=True)
class NnunetConfig:
    step: Annotated[Literal["all", "export", "run", "score"], tyro.conf.Positional] = "all"
    """What is done of it. run and score go on from what is in --out."""
    shards: str = ""
    """Shard set with masks; with --study the trial's."""
    out: str = ""
    """Local folder of everything; with --study by default beside the study's own runs."""
    task: str = ""
    """brats or atlas; empty: whichever understands the masks."""
    fold: int | None = None
    """Fold held out of training; None: the split columns as they are."""
    test: Literal["test", "fold"] = "test"
    """What is predicted and scored: the test split, or the fold held out."""
    share: float = 100.0
    """Per cent of the training subjects, of the shard set's few-shot recipe."""
    draw: int = 0
    """Which few-shot subset of that share."""
    modalities: tuple[str, ...] = ()
    """Channels in order; empty: the shard set's."""
    feed: tuple[str, ...] = ()
    """Channels that are shown another scan, as CHANNEL=MODALITY."""
    allow_leak: bool = False
    """Go on although a test subject is trained on under another id; the record says so."""
    dataset_id: int = DATASET_ID
    """nnU-Net's number of the data set, 1 to 999; any will do."""
    python: str = ""
    """Python of the environment that has nnunetv2; empty: this one."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """Where it trains and predicts; auto: on CUDA where that Python sees some."""
    steps: int | None = None
    """Optimiser steps; None: with --study those of the trial, else nnU-Net's 250,000."""
    epoch_steps: int = EPOCH_STEPS
    """Steps an epoch: the learning rate falls and a checkpoint is written once an epoch."""
    plans: Literal["default", "resenc_m", "resenc_l"] = "default"
    """nnU-Net's planner: the one of the 2021 paper, or its residual encoders of two sizes."""
    configuration: Literal["3d_fullres", "2d", "3d_lowres"] = "3d_fullres"
    """nnU-Net's configuration."""
    flips: bool = True
    """Predict the mean over mirror images, as nnU-Net does."""
    processes: int = 0
    """Processes that preprocess, augment and write; 0: a core each, at most 8."""
    lesionwise: bool = False
    """Also the BraTS 2023 lesion-wise scores (slower)."""
    study: str = ""
    """Study of which this is a trial, STORAGE/NAME; its record makes it part of the study's tables."""
    node: str = ""
    """The trial's id, as jobs/study.py prints it."""
    point: tuple[str, ...] = ()
    """Or what it alone has among the study's trials of nnunetv2, as axis=value: fold=0 share=5."""
    dry_run: bool = False
    """Show cases and commands; write and start nothing."""


def main(config: NnunetConfig) -> None:
    selection = Selection(
        shards=files.absolute(config.shards) if config.shards else "", task=config.task, fold=config.fold,
        test=config.test, share=config.share, draw=config.draw, modalities=config.modalities,
        feed=config.feed,
    )  # fmt: skip
    trial = find_trial(config.study, node=config.node, point=config.point) if config.study else None
    if trial is not None:
        trial.check(selection)
        selection = trial.selection
    out = config.out or (trial.folder if trial else "")
    exports = config.step in ("export", "all")
    if not out or (exports and not selection.shards):
        raise ConfigError("--shards and --out are needed, or --study", fix="name them; see --help")
    out = files.absolute(out)

    # --- what is done; all that can be wrong with it is found before anything is written
    environment = find_environment(config.python) if config.step in ("run", "all") else None
    export = (
        plan_export(selection, out, dataset_id=config.dataset_id, allow_leak=config.allow_leak)
        if exports else Export.open(out)
    )  # fmt: skip
    if trial is not None and not exports:
        trial.check_export(export)
    run = None
    if environment is not None:
        steps = config.steps or (trial.steps if trial else STEPS)
        spec = RunSpec(
            steps=steps, epoch_steps=config.epoch_steps, plans=config.plans,
            configuration=config.configuration, flips=config.flips,
        )  # fmt: skip
        run = NnunetRun(export, spec, environment, device=config.device, processes=config.processes)
    announce(export, run, trial)
    if config.dry_run:
        print("dry run: nothing was written")
        return

    if exports:
        export_dataset(export)
    if run is not None:
        done = run.run()
        print(f"trained {done.summary['steps']:,} steps: {done.checkpoint}")
    if config.step in ("score", "all"):
        table = score_predictions(export, lesionwise=config.lesionwise)
        table.print_table(f"nnU-Net on {export.shards}")
        print(f"scores: {files.join(out, 'scores.csv')}")
        if trial is not None:
            record = record_trial(trial, export, trained(export), table)
            print(f"record: {trial.study.record(record.id)}")


def announce(export: Export, run: NnunetRun | None, trial: StudyTrial | None) -> None:
    """Who is trained, validated and tested on, and the commands."""
    counts = {part: len(export.of(part)) for part in ("train", "val", "test")}
    print(
        f"{export.dataset} in {export.folder}: {counts['train']} training, {counts['val']} validation and "
        f"{counts['test']} test cases, channels {', '.join(export.modalities)}"
    )
    if trial is not None:
        print(f"trial {trial.node.id} of study {trial.study.name}")
    if run is not None:
        print(f"nnunetv2 {run.environment.version} of {run.environment.python}, on {run.device}:")
        for command in run.commands():
            print(f"  {shlex.join(command)}")


if __name__ == "__main__":
    run_job(NnunetConfig, main, description=__doc__)
