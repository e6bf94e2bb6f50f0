"""How long a step takes: as finished runs measured it, else scaled from the nearest of them, else arithmetic.

The arithmetic is that of `training.estimate`, for A100s. A measured step has its share of validation and
checkpoints in it; the arithmetic has not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.estimate import estimate
from brainfoundry.training.finetune_config import FinetuneConfig

ARITHMETIC = "A100 (arithmetic)"
VERSION = 1
# Forward and backward of one crop of 96^3 with four channels and three regions, in TFLOP (FMA = 2), counted
# by torch's FlopCounterMode on each family at its defaults.
_TFLOP_PER_CROP = {
    "dynunet": 1.216, "mednext": 0.742, "resenc_unet": 1.824, "segresnet": 1.474, "transbts": 0.720,
    "unetr": 0.449,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a step of a finished run took."""

    device: str
    network: str
    """Size, or family with its options."""
    objective: str
    """Of pretraining, or segmentation."""
    crop: tuple[int, int, int]
    batch: float
    """Crops of a worker's step."""
    precision: str
    tflop: float | None
    """Of a worker's step; None for a family that nobody has counted."""
    step_s: float
    steps: int

    @property
    def workload(self) -> tuple[Any, ...]:
        """What makes two steps equal."""
        return self.network, self.objective, tuple(self.crop), self.batch, self.precision


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, from the best to the worst case, and where they come from."""

    low_s: float
    high_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured steps, on any devices."""

    measured: tuple[Measured, ...] = ()

    @property
    def device(self) -> str:
        """The device that estimates are for: the one with the most steps measured."""
        steps: Counter[str] = Counter()
        for one in self.measured:
            steps[one.device] += one.steps
        return steps.most_common(1)[0][0] if steps else ARITHMETIC

    def step_time(self, config: TrainConfig) -> StepTime | None:
        """Seconds of a step of a run; None where nothing is known of its network."""
        mine = _workload(config, device=self.device, step_s=0.0, steps=0)
        here = [one for one in self.measured if one.device == self.device]
        equal = [one.step_s for one in here if one.workload == mine.workload]
        if equal:
            return StepTime(low_s=min(equal), high_s=max(equal), source="measured")
        for near in (("network", "objective"), ("objective",), ()):
            alike = [one for one in here if all(getattr(one, f) == getattr(mine, f) for f in near)]
            scaled = [s for s in (_scaled(one, mine) for one in alike) if s is not None]
            if scaled:
                return StepTime(low_s=min(scaled), high_s=max(scaled), source="scaled from others")
        return None if here else _arithmetic(config)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {"version": VERSION, "measured": [asdict(one) for one in self.measured]}


def calibration_of(nodes: Sequence[Node], records: Mapping[str, TrialRecord]) -> Calibration:
    """What the finished runs of a study took."""
    found: dict[tuple[Any, ...], list[Measured]] = {}
    for node in nodes:
        record = records.get(node.id)
        if record is None or record.state != "finished" or node.kind in ("external", "given"):
            continue
        if not (record.seconds and record.steps and record.device):
            continue
        step_s = record.seconds / record.steps
        one = _workload(node.config, device=record.device, step_s=step_s, steps=record.steps)
        found.setdefault((one.device, *one.workload), []).append(one)
    return Calibration(
        measured=tuple(
            replace(same[0], step_s=fmean(one.step_s for one in same), steps=sum(one.steps for one in same))
            for same in found.values()
        )
    )


def read_calibration(uri: str) -> Calibration:
    """A calibration that was written as JSON (`Calibration.to_dict`).

    Raises:
        ConfigError: no such file, or something else in it.
    """
    try:
        value = files.read_json(uri)
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']!r}")
        rows = [Measured(**{**row, "crop": tuple(row["crop"])}) for row in value["measured"]]
        if any(not row.step_s > 0 for row in rows):
            raise ValueError("a step of no time")
    except Exception as error:
        raise ConfigError(
            f"not a calibration: {error}",
            file=uri,
            fix="check the path, or leave it out: finished runs calibrate",
        ) from error
    return Calibration(measured=tuple(rows))


def tflop_of(config: TrainConfig) -> float | None:
    """Work of a worker's step; None for a family that nobody has counted."""
    if not isinstance(config, FinetuneConfig) or config.model.family == SWINUNETR:
        return estimate(config, 1)["tflop_per_worker_step"]
    each = _TFLOP_PER_CROP.get(config.model.family)
    if each is None or config.model.family_options:
        return None
    return each * math.prod(config.data.crop) / 96**3 * config.data.groups_per_step / config.cluster.workers


def _workload(config: TrainConfig, *, device: str, step_s: float, steps: int) -> Measured:
    options = getattr(config.model, "family_options", ())
    return Measured(
        device=device,
        network=" ".join((config.model.label, *options)),
        objective=config.model.objective,
        crop=config.data.crop,
        batch=config.data.groups_per_step * config.crops_per_group / config.cluster.workers,
        precision=config.optim.precision,
        tflop=tflop_of(config),
        step_s=step_s,
        steps=steps,
    )


def _scaled(one: Measured, mine: Measured) -> float | None:
    """The step of another workload by what mine has to do; of one network in crops, else in TFLOP."""
    if (one.network, one.objective) == (mine.network, mine.objective):
        return one.step_s * (math.prod(mine.crop) * mine.batch) / (math.prod(one.crop) * one.batch)
    if one.tflop is None or mine.tflop is None:
        return None
    return one.step_s * mine.tflop / one.tflop


def _arithmetic(config: TrainConfig) -> StepTime | None:
    tflop = tflop_of(config)
    if tflop is None:
        return None
    like = config
    if isinstance(config, FinetuneConfig):
        like = replace(config, model=replace(config.model, family=SWINUNETR, family_options=()))
    cost = estimate(like, 1)
    share = tflop / cost["tflop_per_worker_step"]
    return StepTime(low_s=cost["step_s_low"] * share, high_s=cost["step_s_high"] * share, source=ARITHMETIC)
