"""Who was seen when: reads a run's receipt, regenerates its visits from the plan, and checks the digests.

A step counts as seen each time a worker did it: what a crash made the run do again is counted again, and
marked as not kept where the weights it made were lost. Steps that a killed worker may have done without
writing them down are counted apart, as possible.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.training.receipt_log import (
    PLAN_FILE_VERSION,
    PLAN_KEY,
    add_step,
    attempts,
    folder_of,
    rank_file,
)

_VISITS_AT_ONCE = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps [first, last) of one worker, written down or only possible."""

    attempt: str
    rank: int
    world: int
    plan: str
    first: int
    last: int
    certain: bool
    time: float | None = None
    """Seconds since 1970 when it was written down; the steps were done before."""
    digest: str | None = None
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the worker group."""

    name: str
    world: int
    plan: str
    first: int
    last: int
    """Past the last step that every worker wrote down."""
    begun: float
    state: str
    """finished, failed, or killed: no worker could say good-bye."""
    kept_until: int | None = None
    """Steps from here on were done again by a later attempt, their weights lost; None: all kept."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The held-out subjects were looked at after a step."""

    attempt: str
    step: int
    plan: str
    groups: int
    time: float


@dataclass
class Receipt:
    """A run's receipt as read; `problems` are lines about what is damaged or missing."""

    run_dir: str
    plans: dict[str, Plan] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per plan: run, stage, cohort, manifest_hash, modalities, role."""
    attempts: list[Attempt] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def subjects(self) -> set[str]:
        """Everybody in any of its plans."""
        return {subject for plan in self.plans.values() for subject in plan.sessions[0]}

    def time_of(self, attempt: str, step: int) -> float | None:
        """When the step was written down, seconds since 1970; None where it was not."""
        lasts, times = self._times.get(attempt, (np.empty(0), []))
        place = int(np.searchsorted(lasts, step, side="right"))
        return times[place] if place < len(times) else None

    @functools.cached_property
    def _times(self) -> dict[str, tuple[np.ndarray, list[float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for s in self.stretches:
            if s.certain and s.rank == 0 and s.time is not None:
                found.setdefault(s.attempt, []).append((s.last, s.time))
        return {
            name: (np.array([last for last, _ in sorted(pairs)]), [time for _, time in sorted(pairs)])
            for name, pairs in found.items()
        }


def read_receipt(run_dir: str) -> Receipt:
    """Read `RUN/receipt`.

    Raises:
        DataError: there is none.
    """
    run_dir = files.absolute(run_dir)
    folder = folder_of(run_dir)
    receipt = Receipt(run_dir)
    for name in files.list_names(folder):
        if name.startswith("plan-") and name.endswith(".parquet"):
            _read_plan(files.join(folder, name), receipt)
    names = attempts(run_dir)
    if not names and not receipt.plans:
        raise DataError("no receipt here", file=folder, fix="name the folder of a run: STORAGE/NAME")
    for name in names:
        _read_attempt(files.join(folder, name), name, receipt)
    _settle(receipt)
    return receipt


def _read_plan(uri: str, receipt: Receipt) -> None:
    try:
        table = pq.read_table(io.BytesIO(files.read_bytes(uri)))
        about = json.loads(table.schema.metadata[PLAN_KEY])
        if about["version"] != PLAN_FILE_VERSION:
            raise ValueError(f"version {about['version']}, this program reads {PLAN_FILE_VERSION}")
        spec = about.pop("spec")
        plan = Plan(table, PlanSpec(**{**spec, "crop": tuple(spec["crop"])}))
        if not uri.endswith(f"plan-{plan.hash}.parquet"):
            raise ValueError("its sessions do not have the hash in its name")
    except (pa.ArrowException, BrainFoundryError, ValueError, KeyError, TypeError, OSError) as error:
        receipt.problems.append(
            DataError(f"plan cannot be used: {error}", file=uri, fix="restore the file from a copy").line()
        )
        return
    receipt.plans[plan.hash], receipt.about[plan.hash] = plan, about


def _lines(uri: str) -> Iterator[dict[str, Any]]:
    for line in files.read_bytes(uri).splitlines():
        try:
            value = json.loads(line)
            if isinstance(value, dict) and "kind" in value:
                yield value
        except ValueError:  # the last line of a process that was killed while it wrote
            continue


def durations(run_dir: str) -> list[tuple[str, int, float]]:
    """(attempt, workers, seconds) of each attempt of a run, from its start to the last line of its worker 0.

    Attempts whose lines are damaged or missing are left out.
    """
    found = []
    for attempt in attempts(run_dir):
        with contextlib.suppress(BrainFoundryError, OSError, KeyError, TypeError, ValueError):
            lines = list(_lines(rank_file(run_dir, attempt, 0)))
            if lines:
                begun, ended = float(lines[0]["time"]), float(lines[-1]["time"])
                found.append((attempt, int(lines[0]["world"]), ended - begun))
    return found


@dataclass
class _Worker:
    """What one worker of an attempt wrote."""

    start: dict[str, Any]
    reached: int
    end: str = ""
    stretches: list[Stretch] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)


def _read_worker(uri: str, attempt: str, problems: list[str]) -> _Worker:
    lines = _lines(uri)
    start = next(lines, {})
    rank, world, plan = int(start["rank"]), int(start["world"]), str(start["plan"])
    worker = _Worker({**start, "rank": rank, "world": world, "plan": plan}, int(start["first_step"]))
    common: dict[str, Any] = {"attempt": attempt, "rank": rank, "world": world, "plan": plan, "file": uri}
    for line in lines:
        if line["kind"] == "steps":
            keys = {k: line[k] for k in ("first", "last", "digest", "time")}
            if line["first"] != worker.reached:
                problem = f"steps {worker.reached} to {line['first'] - 1} are not written down"
                problems.append(DataError(problem, file=uri, fix="restore the file from a copy").line())
                gap = {"first": worker.reached, "last": line["first"], "certain": False}
                worker.stretches.append(Stretch(**common, **gap))
            worker.stretches.append(Stretch(**common, **keys, certain=True))
            worker.reached = int(line["last"])
        elif line["kind"] == "validation":
            keys = {k: line[k] for k in ("step", "plan", "groups", "time")}
            worker.validations.append(Validation(attempt=attempt, **keys))
        elif line["kind"] == "end":
            worker.end = str(line["state"])
    return worker


def _read_attempt(folder: str, name: str, receipt: Receipt) -> None:
    workers: dict[int, _Worker] = {}
    for file in files.list_names(folder):
        if not (file.startswith("rank-") and file.endswith(".jsonl")):
            continue
        uri = files.join(folder, file)
        try:
            worker = _read_worker(uri, name, receipt.problems)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"not a receipt's lines: {type(error).__name__} {error}"
            receipt.problems.append(DataError(problem, file=uri, fix="restore the file from a copy").line())
            continue
        workers[worker.start["rank"]] = worker
        receipt.stretches += worker.stretches
        receipt.validations += worker.validations
    if not workers:
        return
    start = next(iter(workers.values())).start
    world, first_step, stop = start["world"], int(start["first_step"]), int(start["stop_step"])
    furthest = max(worker.reached for worker in workers.values())
    for rank in range(world):
        known = workers.get(rank)
        if known is None or not known.end:
            low = known.reached if known else first_step
            high = min((known.reached if known else furthest) + int(start["unflushed"]), stop)
            receipt.stretches.append(
                Stretch(
                    attempt=name,
                    rank=rank,
                    world=world,
                    plan=start["plan"],
                    first=low,
                    last=high,
                    certain=False,
                )
            )
    states = {workers[rank].end if rank in workers else "" for rank in range(world)}
    state = "killed" if "" in states else "finished" if states == {"finished"} else "failed"
    receipt.attempts.append(
        Attempt(
            name=name,
            world=world,
            plan=start["plan"],
            first=first_step,
            last=min(workers[rank].reached if rank in workers else first_step for rank in range(world)),
            begun=min(float(worker.start["time"]) for worker in workers.values()),
            state=state,
        )
    )


def _settle(receipt: Receipt) -> None:
    """What the later attempts say of the earlier: where they went on, the steps before had been done."""
    starts = [a.first for a in receipt.attempts]
    resumed: dict[str, int] = {}
    for i, attempt in enumerate(receipt.attempts):
        later = min(starts[i + 1 :], default=None)
        if later is not None:
            receipt.attempts[i] = replace(attempt, kept_until=max(later, attempt.first))
            resumed[attempt.name] = starts[i + 1]
    settled: list[Stretch] = []
    for s in receipt.stretches:
        until = min(max(resumed.get(s.attempt, 0), s.first), s.last)
        if not s.certain and until > s.first:
            settled.append(replace(s, last=until, certain=True))
            s = replace(s, first=until)
        if s.last > s.first:
            settled.append(s)
    receipt.stretches = settled
    missing = {s.plan for s in settled} | {v.plan for v in receipt.validations}
    for plan in sorted(missing - set(receipt.plans)):
        uri = files.join(folder_of(receipt.run_dir), f"plan-{plan}.parquet")
        if not any(uri in line for line in receipt.problems):
            receipt.problems.append(
                DataError("the plan of some steps is missing", file=uri, fix="restore the file").line()
            )


def check(receipt: Receipt, advance: Callable[[int], Any] = lambda n: None) -> list[str]:
    """Regenerate every stretch from its plan and compare digests; a line for each that does not agree.

    Args:
        advance: called with the number of stretches just checked.
    """
    problems = []
    for s in receipt.stretches:
        advance(1)
        if s.digest is None or s.plan not in receipt.plans:
            continue
        plan, digest = receipt.plans[s.plan], hashlib.sha256()
        names, crops = plan.sessions[0], plan.spec.crops_per_subject
        try:
            step_V, _, session_V = plan.visits(s.first, s.last, s.rank, s.world)
        except BrainFoundryError:  # a world that cannot have been
            step_V, session_V = np.empty(0, np.int64), np.empty(0, np.int64)
        visits = zip(step_V.tolist(), session_V.tolist(), strict=True)
        for step, some in itertools.groupby(visits, lambda visit: visit[0]):
            add_step(digest, step, [names[session] for _, session in some for _ in range(crops)])
        if digest.hexdigest() != s.digest:
            problem = (
                f"steps {s.first} to {s.last - 1} of worker {s.rank} are not what the plan says: the receipt "
                "or the plan was changed, or other subjects were delivered"
            )
            problems.append(DataError(problem, file=s.file, fix="restore both from a copy").line())
    return problems


def whole_stretches(receipt: Receipt) -> list[Stretch]:
    """The stretches with those that follow one another joined, and workers in step taken as one."""
    joined: dict[tuple[str, int, bool], list[Stretch]] = {}
    for s in sorted(receipt.stretches, key=lambda s: (s.attempt, s.rank, not s.certain, s.first)):
        run = joined.setdefault((s.attempt, s.rank, s.certain), [])
        if run and run[-1].last == s.first and run[-1].plan == s.plan:
            run[-1] = replace(run[-1], last=s.last, digest=None, time=s.time)
        else:
            run.append(s)
    together: dict[tuple[Any, ...], list[Stretch]] = {}
    for run in joined.values():
        for s in run:
            together.setdefault((s.attempt, s.certain, s.plan, s.first, s.last), []).append(s)
    whole: list[Stretch] = []
    for some in together.values():
        if len(some) == some[0].world:
            whole.append(replace(some[0], rank=0, world=1, digest=None))
        else:
            whole += some
    return sorted(whole, key=lambda s: (s.attempt, s.first, s.rank))


@dataclass(frozen=True)
class Visits:
    """Visits of one stretch, a chunk at a time; arrays of one entry a visit."""

    stretch: Stretch
    step: np.ndarray
    epoch: np.ndarray
    session: np.ndarray
    """Positions in `Plan.sessions` of the stretch's plan."""


def iter_visits(receipt: Receipt) -> Iterator[Visits]:
    """Everything the run did or may have done, in memory that does not grow with it."""
    for s in whole_stretches(receipt):
        plan = receipt.plans.get(s.plan)
        if plan is None:
            continue
        per_step = plan.spec.groups_per_step * plan.spec.subjects_per_group // s.world
        chunk = max(_VISITS_AT_ONCE // max(per_step, 1), 1)
        for first in range(s.first, s.last, chunk):
            yield Visits(s, *plan.visits(first, min(first + chunk, s.last), s.rank, s.world))
