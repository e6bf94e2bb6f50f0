"""nnU-Net at work on an export: plans, preprocesses, trains so many steps, predicts the test cases.

    FOLDER/run.json       what decides the result: another is refused
    FOLDER/preprocessed/  nnU-Net's own; planned.json in it says that it is finished
    FOLDER/results/       checkpoints; summary.json beside them says that training is finished
    FOLDER/predictions/   a mask a test case
    FOLDER/logs/          everything that nnU-Net printed

Killed and started again, it goes on: finished steps are not repeated, training continues from its newest
checkpoint (one an epoch), predictions that are there whole stay.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from brainfoundry.core import files
from brainfoundry.core.errors import ClusterError, ConfigError, DataError
from brainfoundry.core.progress import Counter, progress
from brainfoundry.experiments.nnunet.environment import Environment, lines_of, trainers_folder
from brainfoundry.experiments.nnunet.export import Export, read_mask
from brainfoundry.training.resources import device_name

TRAINER = "BrainFoundryTrainer"
STEPS, EPOCH_STEPS = 250_000, 250
"""nnU-Net's own: 1,000 epochs of 250 steps."""
_FOLD = "0"
"""Of splits_final.json, which has one."""
_PLANS = {
    "default": ("ExperimentPlanner", "nnUNetPlans"),
    "resenc_m": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
}
"""Planner and the name of its plans."""
_BAR = re.compile(r"\b(\d+)/\d+ \[")
"""Of tqdm."""
_STEP = re.compile(r"brainfoundry step (\d+) loss (\S+)")
_PREDICTED = re.compile(r"done with \S+")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What decides nnU-Net's result, besides the data."""

    steps: int = STEPS
    epoch_steps: int = EPOCH_STEPS
    """Steps an epoch: the learning rate falls, validation looks and a checkpoint is written once an epoch."""
    plans: Literal["default", "resenc_m", "resenc_l"] = "default"
    configuration: Literal["3d_fullres", "2d", "3d_lowres"] = "3d_fullres"
    flips: bool = True
    """Predict the mean over mirror images, as nnU-Net does."""

    def __post_init__(self) -> None:
        for name in ("steps", "epoch_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}", fix="give 1 or more")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training."""

    checkpoint: Path
    summary: Mapping[str, Any]
    """steps, parameters, seconds, gpu, losses."""
    device: str
    started: str
    attempts: int


class NnunetRun:
    """nnU-Net's steps on one export.

    Args:
        device: auto (CUDA where there is some), cuda, cpu or mps.
        processes: that preprocess, augment and write; 0 = a core each, at most 8.
    """

    def __init__(
        self,
        export: Export,
        spec: RunSpec,
        environment: Environment,
        *,
        device: str = "auto",
        processes: int = 0,
    ) -> None:
        self.export, self.spec, self.environment = export, spec, environment
        self.device = device if device != "auto" else "cuda" if environment.cuda else "cpu"
        if self.device == "cuda" and not environment.cuda:
            raise ConfigError(
                "this Python's torch sees no CUDA device", file=environment.python,
                fix="ray job submit --entrypoint-num-gpus 1, or --device cpu",
            )  # fmt: skip
        self.processes = str(processes or min(8, os.cpu_count() or 1))
        self._folder = Path(export.folder)

    def commands(self) -> tuple[tuple[str, ...], ...]:
        """What is run, in order: nnU-Net's commands and their options."""
        planner, plans = _PLANS[self.spec.plans]
        number, configuration = str(self.export.dataset_id), self.spec.configuration
        which = ("-tr", TRAINER, "-p", plans)
        return (
            (
                "nnUNetv2_plan_and_preprocess", "-d", number, "-pl", planner, "-c", configuration,
                "-np", self.processes, "-npfp", self.processes, "--verify_dataset_integrity", "--clean",
            ),
            ("nnUNetv2_train", number, configuration, _FOLD, *which, "-device", self.device, "--c"),
            (
                "nnUNetv2_predict", "-i", str(self.export.images_test), "-o", str(self.export.predictions),
                "-d", number, "-c", configuration, "-f", _FOLD, *which, "-device", self.device,
                "-npp", self.processes, "-nps", self.processes, "--continue_prediction",
                "--disable_progress_bar",
                *(() if self.spec.flips else ("--disable_tta",)),
            ),
        )  # fmt: skip

    def run(self) -> Trained:
        """Whatever is not done.

        Raises:
            ConfigError: another run is in the folder.
            ClusterError: somebody else is at work there.
            DataError: nnU-Net failed; the log is named.
        """
        with alone(self._folder):
            _claim(self.export, self.spec, self.environment)
            plan, train, predict = self.commands()
            planned = self.export.splits.with_name("planned.json")
            if not planned.exists():
                self._plan(plan)
                files.write_json(str(planned), {"configuration": self.spec.configuration})
            if not summary_of(self.export, self.spec).exists():
                self._train(train)
            missing = _missing(self.export)
            if missing:
                self._predict(predict, len(missing))
        return trained(self.export)

    def _plan(self, command: tuple[str, ...]) -> None:
        cases, before = len(self.export.of("train", "val")), 0
        with progress("nnU-Net plans and preprocesses", 2 * cases, "passes over a case") as bar:
            for line in self._lines(command):
                if line.startswith("Preprocessing..."):  # after the fingerprints, which pass over them once
                    before = cases
                found = _BAR.search(line)
                if found:
                    _reach(bar, before + int(found[1]))

    def _train(self, command: tuple[str, ...]) -> None:
        with progress("nnU-Net trains", self.spec.steps, "steps") as bar:
            for line in self._lines(command):
                found = _STEP.match(line)
                if found:
                    _reach(bar, int(found[1]), f"loss {found[2]}")

    def _predict(self, command: tuple[str, ...], cases: int) -> None:
        with progress("nnU-Net predicts", cases, "cases") as bar:
            for line in self._lines(command):
                if _PREDICTED.match(line):
                    bar.advance()

    def _lines(self, command: tuple[str, ...]) -> Iterator[str]:
        limit = {"steps": self.spec.steps, "epoch_steps": self.spec.epoch_steps}
        variables = {
            **{f"nnUNet_{name}": str(self._folder / name) for name in ("raw", "preprocessed", "results")},
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_n_proc_DA": self.processes,
            "nnUNet_def_n_proc": self.processes,
            "BRAINFOUNDRY_NNUNET": json.dumps(limit),
        }
        log = self._folder / "logs" / f"{command[0]}.log"
        yield from lines_of(self.environment, command, variables, log, folder=self._folder)


def _reach(bar: Counter, step: int, note: str = "") -> None:
    """Count up to a step; a run that goes on begins where it was."""
    if step > bar.done:
        bar.advance(step - bar.done, note)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The only one at work in a folder.

    Raises:
        ClusterError: somebody else is.
    """
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                "nnU-Net is at work in this folder",
                file=folder,
                fix="wait for it to end, or name another --out",
            ) from None
        yield


def results_of(export: Export, spec: RunSpec) -> Path:
    """Where nnU-Net keeps the checkpoints of a run."""
    name = f"{TRAINER}__{_PLANS[spec.plans][1]}__{spec.configuration}"
    return Path(export.folder, "results", export.dataset, name, f"fold_{_FOLD}")


def summary_of(export: Export, spec: RunSpec) -> Path:
    """What our trainer leaves behind at its end."""
    return results_of(export, spec) / "summary.json"


def trained(export: Export) -> Trained:
    """The finished training of an export.

    Raises:
        DataError: there is none.
    """
    about = files.read_json(str(_claim_of(export)))
    spec = RunSpec(**{f.name: about[f.name] for f in fields(RunSpec)})
    summary = files.read_json(str(summary_of(export, spec)))
    folder = results_of(export, spec)
    return Trained(
        checkpoint=folder / "checkpoint_final.pth",
        summary=summary,
        device=summary["gpu"] or device_name(torch.device("cpu")),
        started=about["started"],
        attempts=len(list(folder.glob("training_log_*.txt"))),
    )


def _claim_of(export: Export) -> Path:
    return Path(export.folder, "run.json")


def _claim(export: Export, spec: RunSpec, environment: Environment) -> None:
    """Say what is run here, or refuse where it is something else."""
    now = {**asdict(spec), "nnunetv2": environment.version}
    where = str(_claim_of(export))
    if not files.exists(where):
        files.write_json(where, {**now, "started": datetime.now(UTC).isoformat(timespec="seconds")})
        return
    then = files.read_json(where)
    for name, value in now.items():
        if then.get(name) != value:
            raise ConfigError(
                f"this folder holds another run: {name} was {then.get(name)}, now it is {value}",
                file=export.folder, fix="name another --out, or give the option as it was",
            )  # fmt: skip


def _missing(export: Export) -> list[str]:
    """Test cases without a whole prediction. What a kill left half written goes: nnU-Net would keep it."""
    missing = []
    for case in export.of("test"):
        path = export.prediction(case)
        if path.exists():
            try:
                read_mask(path, case)
                continue
            except DataError:
                path.unlink()
        missing.append(case.name)
    return missing
