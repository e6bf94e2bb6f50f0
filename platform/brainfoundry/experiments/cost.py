"""What a study will cost before it starts, and what is left of it: device-hours, days, disk.

cost = estimate_study(nodes, records, calibration_of(nodes, records))
print(cost.text(devices=(8, 64)))
"""

from __future__ import annotations

import heapq
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from brainfoundry.experiments.axes import DEFAULTS
from brainfoundry.experiments.calibration import (
    ARITHMETIC,
    Calibration,
    StepTime,
    calibration_of,
    read_calibration,
)
from brainfoundry.experiments.node import Node, search_name, waves
from brainfoundry.experiments.records import TrialRecord, by_run, named_after
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.report import PAPER_TIMES

__all__ = ["Calibration", "StudyCost", "calibration_of", "estimate_study", "read_calibration"]

# Parameters in millions, of the SSL networks and of those that segment (four channels, three regions).
_PRETRAINED_M = {"nano": 1.3, "tiny": 19.1, "small": 21.0, "big": 26.6}
_SEGMENTER_M = {
    "nano": 4.1, "tiny": 62.2, "small": 64.1, "big": 69.7, "dynunet": 31.2, "mednext": 5.6,
    "resenc_unet": 102.4, "segresnet": 18.8, "transbts": 33.0, "unetr": 102.2,
}  # fmt: skip
_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: the weight in fp32 and AdamW's two moments."""
_WIDTH = 108

State = Literal["done", "failed", "to do", "external"]
_NOT_RUN: Mapping[str, State] = {"external": "external", "given": "done"}
"""Kind of node that the driver does not run -> its state without a record."""


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """One run."""

    node: Node
    state: State
    """failed: it will be tried again."""
    steps: int
    time: StepTime | None
    """Of a step; None where nothing is known of the network."""
    runs: int
    """That are still to be run: 1, or as many as its search has points to try."""
    spent_hours: float | None
    """Device-hours of what is done, where they were measured."""
    disk_gb: float

    @property
    def workers(self) -> int:
        """Devices at once."""
        return self.node.config.cluster.workers

    @property
    def waiting(self) -> bool:
        """Whether it is still to be run here."""
        return self.state in ("failed", "to do")

    @property
    def hours(self) -> tuple[float, float]:
        """Of one run, from start to end, at best and at worst; 0 where nothing is known."""
        if self.time is None:
            return 0.0, 0.0
        return self.time.low_s * self.steps / 3600, self.time.high_s * self.steps / 3600

    @property
    def device_hours(self) -> tuple[float, float]:
        """Of all its runs on all its devices."""
        low, high = self.hours
        return low * self.workers * self.runs, high * self.workers * self.runs


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """All runs of a study."""

    rows: tuple[NodeCost, ...]
    device: str

    def device_hours(self, of: Callable[[NodeCost], bool] = lambda row: True) -> tuple[float, float]:
        """Device-hours that are still to be spent, at best and at worst."""
        left = [row.device_hours for row in self.rows if row.waiting and of(row)]
        return sum(low for low, _ in left), sum(high for _, high in left)

    @property
    def spent_hours(self) -> float:
        """Device-hours that finished runs took, as far as they were measured."""
        return sum(row.spent_hours or 0.0 for row in self.rows)

    @property
    def disk_gb(self) -> float:
        """Checkpoints of all runs."""
        return sum(row.disk_gb for row in self.rows)

    @property
    def unknown(self) -> tuple[NodeCost, ...]:
        """Runs to be done of whose cost nothing is known."""
        return tuple(row for row in self.rows if row.waiting and row.time is None)

    def wall_hours(self, devices: int) -> tuple[float, float] | None:
        """From now to the end on so many devices, wave after wave; None where a run needs more."""
        left = {row.node.id: row for row in self.rows if row.waiting}
        if any(row.workers > devices for row in left.values()):
            return None
        totals = [0.0, 0.0]
        for wave in waves([row.node for row in left.values()]):
            for i in (0, 1):
                jobs = [
                    (row.workers, row.hours[i])
                    for node in wave
                    for row in [left[node.id]] * left[node.id].runs
                ]
                totals[i] += makespan(jobs, devices)
        return totals[0], totals[1]

    def text(self, *, devices: Sequence[int] = ()) -> str:
        """Tables and lines for `--dry-run`.

        Args:
            devices: how many there may be, for the time it takes.
        """
        out = io.StringIO()
        console = Console(file=out, width=_WIDTH, markup=False, highlight=False)
        console.print(self._table())
        for line in (*self._paper(), *self._notes(), *map(self._wall, devices)):
            console.print(line)
        return out.getvalue().rstrip()

    def _table(self) -> Table:
        table = Table(title_justify="left", title=f"cost on {self.device}")
        table.add_column("runs")
        for name in ("planned", "done", "failed", "external", "to do", "device-hours to do", "disk GB"):
            table.add_column(name, justify="right")
        roles = (("ancestors", "ancestor"), ("choices", "choice"), ("trials", "trial"))
        for label, role in roles:
            self._row(table, label, [row for row in self.rows if row.node.role == role])
        trials = [row for row in self.rows if row.node.role == "trial"]
        for axis in DEFAULTS:
            mine = [row for row in trials if axis != "size" or row.node.point["family"] == SWINUNETR]
            values = list(dict.fromkeys(row.node.point[axis] for row in mine))
            if len(values) > 1:
                table.add_section()
            for value in values if len(values) > 1 else ():
                self._row(table, f"{axis} {value}", [row for row in mine if row.node.point[axis] == value])
        table.add_section()
        self._row(table, "all", self.rows)
        return table

    def _row(self, table: Table, label: str, rows: Sequence[NodeCost]) -> None:
        if not rows:
            return
        mine = {id(row) for row in rows}
        counts = [
            sum(row.state == state for row in rows) for state in ("done", "failed", "external", "to do")
        ]
        table.add_row(
            label, *(f"{n:,}" if n else "-" for n in (len(rows), *counts)),
            _span(self.device_hours(lambda row: id(row) in mine)),
            f"{sum(row.disk_gb for row in rows):,.1f}",
        )  # fmt: skip

    def _paper(self) -> list[str]:
        """Each kind of pretraining beside what the paper says of its own."""
        lines = []
        for job, told in PAPER_TIMES.items():
            rows = [row for row in self.rows if row.node.kind == "pretrain" and row.node.config.job == job]
            if rows and any(row.time for row in rows):
                each = [row.device_hours for row in rows if row.time]
                span = _span((min(low for low, _ in each), max(high for _, high in each)))
                lines.append(f"{job}: {len(rows)} run(s) of {span} device-hours each; the paper: {told}")
        return lines

    def _notes(self) -> list[str]:
        lines = []
        if self.device == ARITHMETIC:
            lines.append("arithmetic, not measured, and without validation: finished runs calibrate it")
        if self.spent_hours:
            lines.append(f"spent so far: {self.spent_hours:,.1f} device-hours, measured")
        if self.unknown:
            networks = ", ".join(sorted({row.node.config.model.label for row in self.unknown}))
            lines.append(
                f"not in the hours: {len(self.unknown)} run(s) whose cost nobody knows yet ({networks})"
            )
        external = dict.fromkeys(row.node.command for row in self.rows if row.state == "external")
        if external:
            lines.append(
                f"external trials are not run here; the first of {len(external)} commands that fill them:"
            )
            lines.append(f"  {next(iter(external))}")
        return lines

    def _wall(self, devices: int) -> str:
        hours = self.wall_hours(devices)
        what = "A100(s)" if self.device == ARITHMETIC else "device(s)"
        if hours is None:
            most = max((row for row in self.rows if row.waiting), key=lambda row: row.workers)
            return f"on {devices} {what}: too few, {most.node.id} needs {most.workers} (--cluster.workers)"
        return f"on {devices} {what}: {_duration(hours[0])} to {_duration(hours[1])}"


def estimate_study(
    nodes: Sequence[Node],
    records: Mapping[str, TrialRecord],
    calibration: Calibration | None = None,
    *,
    searched: int = 0,
) -> StudyCost:
    """What the runs of a study cost, and which are done.

    Args:
        calibration: measured steps; None or empty: arithmetic for A100s.
        searched: points that a search tries for each trial; the best of them is the trial. 0 = no search.
    """
    known = calibration or Calibration()
    rows = []
    for node in nodes:
        record = records.get(node.id)
        idle = node.kind in _NOT_RUN
        state = _NOT_RUN.get(node.kind, "to do")
        if record is not None:
            state = "done" if record.done else "failed"
        config = node.config.in_steps(node.subjects)
        points = searched if node.role == "trial" and node.kind == "finetune" else 0
        tried = named_after(search_name(node.id), records) if points else {}
        made = by_run([*tried.values(), *([record] if record is not None else [])])
        spent = [one.device_hours for one in made if one.device_hours is not None]
        rows.append(
            NodeCost(
                node=node,
                state=state,
                steps=config.optim.steps,
                time=None if idle else known.step_time(config),
                runs=max(0, points - sum(one.done for one in tried.values())) if points else 1,
                spent_hours=sum(spent) if spent else None,
                disk_gb=0.0 if idle else (points or 1) * _disk_gb(config, record),
            )
        )
    return StudyCost(rows=tuple(rows), device=known.device)


def makespan(jobs: Sequence[tuple[int, float]], devices: int) -> float:
    """Hours until jobs (devices that each takes, hours) are all done, each started as soon as it fits."""
    now, free = 0.0, devices
    waiting, running = list(jobs), list[tuple[float, int]]()
    while waiting or running:
        left = []
        for taken, hours in waiting:
            if taken <= free:
                free -= taken
                heapq.heappush(running, (now + hours, taken))
            else:
                left.append((taken, hours))
        waiting = left
        now, taken = heapq.heappop(running)
        free += taken
    return now


def _disk_gb(config: TrainConfig, record: TrialRecord | None) -> float:
    """Checkpoints that stay: the newest, and the best."""
    millions = _SEGMENTER_M if isinstance(config, FinetuneConfig) else _PRETRAINED_M
    parameters = millions.get(config.model.label, 0.0) * 1e6
    if record is not None and record.parameters:
        parameters = record.parameters
    every = config.keep.checkpoint_every or config.optim.steps
    kept = min(config.keep.keep_last + 1, math.ceil(config.optim.steps / every))
    return kept * parameters * _BYTES_PER_PARAMETER / 1e9


def _span(hours: tuple[float, float]) -> str:
    low, high = (f"{h:,.0f}" if h >= 10 else f"{h:.2g}" for h in hours)
    return low if low == high else f"{low} to {high}"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
