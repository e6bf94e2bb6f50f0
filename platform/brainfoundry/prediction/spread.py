"""How cases are spread: over Ray Data, one actor with its networks a device, or in this process."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import torch

from brainfoundry.core.errors import ClusterError, DataError
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.predictor import Job, Outcome, Predictor, precision_on
from brainfoundry.training.resources import set_threads

_CPUS = 4
"""CPUs of a worker where there is no GPU, if nobody asks for a number of workers."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Executor(Protocol):
    """Predicts cases, in any order, and yields what became of each as it comes."""

    def __call__(self, job: Job, cases: Sequence[Case], /) -> Iterator[Outcome]:
        """One outcome a case."""
        ...


def inline(job: Job, cases: Sequence[Case], /) -> Iterator[Outcome]:
    """Executor: one after the other in this process."""
    yield from map(Predictor(job), cases)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The workers of a prediction."""

    workers: int
    cpus: int
    """CPUs of each."""
    gpu: bool
    """Whether each has a GPU of its own."""

    def __str__(self) -> str:
        each = "a GPU each" if self.gpu else f"{self.cpus} CPU{'s' if self.cpus > 1 else ''} each"
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}, {each}"


def fleet(workers: int | None, cases: int) -> Fleet:
    """The workers that the connected cluster can hold, no more than there are cases.

    Args:
        workers: as the user asks; None: as many as there is room for.

    Raises:
        ClusterError: the cluster has less than was asked for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    each = 1 if gpus else max(1, min(_CPUS, max(cpus, default=1)))
    if not gpus and workers:  # more workers than that: fewer CPUs each
        each = max(1, min(each, sum(cpus) // workers))
    room = gpus or sum(n // each for n in cpus)
    if not room or (workers or 0) > room:
        what = "GPUs" if gpus else "CPUs"
        raise ClusterError(
            f"{workers or 1} workers were asked for, the cluster has {what} for {room}",
            fix=f"use --workers {room}" if room else "start Ray with CPUs or GPUs",
        )
    return Fleet(workers=min(workers or room, max(cases, 1)), cpus=each, gpu=gpus > 0)


def on_ray(size: Fleet) -> Executor:
    """Executor: Ray Data, whose actors load the networks once. An actor has two cases in work, so that one is
    read or written while the network works on the other.

    Raises (when run):
        ConfigError: fp16 without GPUs.
        ClusterError: Ray gave up.
    """

    def run(job: Job, cases: Sequence[Case], /) -> Iterator[Outcome]:
        if not size.gpu:
            precision_on(job.options.precision, torch.device("cpu"))
        left = {(case.subject, case.session): case for case in cases}
        # A worker that dies takes its other case along. What was lost twice is tried for the last time with
        # one case a worker: the case that kills its worker is then alone, and the only one to fail.
        for at_once in (2, 1):
            for outcome in _stream(job, list(left.values()), size, at_once):
                left.pop((outcome.case.subject, outcome.case.session))
                yield outcome
            if not left:
                return
        for case in left.values():
            error = DataError(
                "the worker died over it (out of memory, or killed)", subject=case.name,
                fix="run again: what is finished is kept, and fewer --workers leave more memory to each",
            )  # fmt: skip
            yield Outcome(case=case, error=error.line())

    return run


class _Worker:
    """Actor of Ray Data: pickled cases in, pickled outcomes out."""

    def __init__(self, job: Job, size: Fleet) -> None:
        set_threads(size.cpus, 1)
        self._predict = Predictor(job, torch.device("cuda" if size.gpu else "cpu"))

    def __call__(self, block: pa.Table) -> pa.Table:
        outcomes = [pickle.dumps(self._predict(pickle.loads(c))) for c in block["case"].to_pylist()]
        return pa.table({"outcome": pa.array(outcomes, pa.binary())})


def _stream(job: Job, cases: Sequence[Case], size: Fleet, at_once: int) -> Iterator[Outcome]:
    import ray
    from ray.data import ActorPoolStrategy
    from ray.data.context import DataContext
    from ray.util.annotations import RayDeprecationWarning

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a lost case is told as such, and the rest goes on
    context.target_max_block_size = 1  # an outcome is passed on when it is there
    # One case is one block is one task: a worker asks for the next when it has room.
    rows = [pa.table({"case": pa.array([pickle.dumps(case)], pa.binary())}) for case in cases]
    with DataContext.current(context), warnings.catch_warnings():
        # A data set keeps the context that it was made under. Ray 2.60 has no other place for retries.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        outcomes = ray.data.from_arrow(rows).map_batches(
            _Worker,
            fn_constructor_kwargs={"job": job, "size": size},
            batch_size=1,  # with GPUs, Ray Data wants a number
            batch_format="pyarrow",
            num_cpus=1 if size.gpu else size.cpus,
            num_gpus=1 if size.gpu else 0,
            compute=ActorPoolStrategy(
                size=min(size.workers, len(cases)),
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            max_task_retries=at_once - 1,
        )
    try:
        for row in outcomes.iter_rows():
            yield pickle.loads(row["outcome"])
    except ray.exceptions.RayTaskError:
        raise  # a bug: its traceback is wanted
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"Ray gave up: {_cause(error)}",
            fix="read the messages above; run again: what is finished is kept",
        ) from error


def _cause(error: Exception) -> str:
    """One line of Ray's many: of a worker that could not start, the last, which is its own error."""
    lines = _COLOURS.sub("", str(error)).strip().splitlines()
    return lines[-1 if "creation task" in lines[0] else 0].strip()
