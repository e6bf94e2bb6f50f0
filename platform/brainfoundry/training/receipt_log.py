"""What a run writes of whom it saw, while it runs: its plans, and from each worker a line a stretch of steps.

    RUN/receipt/plan-<hash>.parquet      the sessions a plan was made of; its spec and the run in the schema
    RUN/receipt/attempt-1795470000000/   one start of the worker group, by the time it was (ms since 1970)
        rank-00000.jsonl                 one worker's lines

Lines are JSON objects with `kind` and `time` (s since 1970): `start` (rank, world, first_step, stop_step,
plan, unflushed: steps that may be done and not yet written), `steps` (first, last: past the end; digest of
what was delivered), `validation` (step, plan, groups; rank 0 only) and `end` (state). The plan is a pure
function, so its steps name everybody; the digest proves that what was delivered is what the plan says.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.stream.batch import CropBatch
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.sessions import eligible

PLAN_KEY = b"brainfoundry.plan"
PLAN_FILE_VERSION = 1
# An object store cannot append: there a line waits for so many steps, and the file is written anew with it.
_REMOTE_STEPS = 1_000
_ATTEMPT = re.compile(r"attempt-\d{13,}$")

log = logging.getLogger("brainfoundry.receipt")


def folder_of(run_dir: str) -> str:
    """`RUN/receipt`."""
    return files.join(run_dir, "receipt")


def attempt_name(started_ms: int) -> str:
    """Folder of the attempt that began then; names sort by time."""
    return f"attempt-{started_ms:013d}"


def attempts(run_dir: str) -> list[str]:
    """Folders of the attempts so far, in order."""
    return [n for n in files.list_names(folder_of(run_dir)) if _ATTEMPT.match(n)]


def rank_file(run_dir: str, attempt: str, rank: int) -> str:
    """The lines of one worker."""
    return files.join(folder_of(run_dir), attempt, f"rank-{rank:05d}.jsonl")


def add_step(digest: Any, step: int, subjects: Sequence[str]) -> None:
    """Feed a step's subjects, one a crop and in order, to a stretch's digest."""
    digest.update(f"{step}\n{chr(10).join(subjects)}\n\n".encode())


def write_plan(
    run_dir: str,
    index: pa.Table,
    spec: PlanSpec,
    about: Mapping[str, Any],
    subset: Collection[str] | None = None,
) -> str:
    """Keep the sessions a plan is made of, so that its rows can be had after the shard set has changed.

    Args:
        about: run, stage, cohort, manifest_hash, modalities, role (train or val).
        subset: `subset_of` the shard set, for a plan over a share of the subjects.

    Returns:
        The plan's hash, which names the file. What is there already stays.
    """
    table = eligible(index, spec, subset=subset)
    plan = Plan(table, spec)
    uri = files.join(folder_of(run_dir), f"plan-{plan.hash}.parquet")
    if not files.exists(uri):
        text = json.dumps({**about, "version": PLAN_FILE_VERSION, "spec": spec.to_dict()}, sort_keys=True)
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({PLAN_KEY: text}), sink, compression="zstd")
        files.make_folder(folder_of(run_dir))
        files.write_bytes(uri, sink.getvalue())
    return plan.hash


class ReceiptWriter:
    """One worker's lines. `consumed` costs microseconds and waits for nothing; `flush` appends a line.

    A stretch that was not flushed when the process was killed is at most `unflushed` steps long. Storage that
    fails later than at the start is told once and tried again at each flush; it stops no step.

    Args:
        attempt: folder name, the same on all workers of a start.
        first_step: the first step this attempt will do.
        stop_step: one past the last.
        plan: hash of the plan.
        flush_every: steps between two calls of `flush`, at most.

    Raises:
        DataError: the storage cannot be written at the start.
    """

    def __init__(
        self,
        run_dir: str,
        *,
        attempt: str,
        rank: int,
        world: int,
        first_step: int,
        stop_step: int,
        plan: str,
        flush_every: int,
    ) -> None:
        self.uri = rank_file(files.absolute(run_dir), attempt, rank)
        self._local = files.is_local(self.uri)
        self._least = 1 if self._local else _REMOTE_STEPS
        # Remote: a line that waits, and the one before it that may still be on its way.
        unflushed = flush_every if self._local else 2 * (_REMOTE_STEPS + flush_every)
        self._first = self._last = first_step
        self._digest = hashlib.sha256()
        self._waiting: list[bytes] = []  # lines not yet written (local), or all lines (remote)
        self._pool = None if self._local else ThreadPoolExecutor(1, thread_name_prefix="receipt")
        self._writing: Future[None] | None = None
        self._warned = False
        start = {"rank": rank, "world": world, "first_step": first_step, "stop_step": stop_step, "plan": plan}
        start["unflushed"] = unflushed
        try:
            files.make_folder(files.join(folder_of(files.absolute(run_dir)), attempt))
            self._waiting.append(_line("start", **start))
            self._write()
        except OSError as error:
            raise DataError(
                f"the receipt cannot be written: {error}", file=self.uri, fix="free space or change --storage"
            ) from error

    def consumed(self, batch: CropBatch) -> None:
        """Count a batch that the network was trained on."""
        add_step(self._digest, batch.step, batch.subjects)
        self._last = batch.step + 1

    def flush(self, *, force: bool = False) -> None:
        """Write down what was consumed since the last line; on an object store only every thousand steps."""
        if self._last > self._first and (force or self._last - self._first >= self._least):
            self._add("steps", first=self._first, last=self._last, digest=self._digest.hexdigest())
            self._first, self._digest = self._last, hashlib.sha256()

    def validated(self, step: int, plan: str, groups: int) -> None:
        """The held-out subjects of the first `groups` groups of a plan were looked at."""
        self._add("validation", step=step, plan=plan, groups=groups)

    def close(self, state: str) -> None:
        """Write down the rest; waits for it."""
        self.flush(force=True)
        self._add("end", state=state)
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _add(self, kind: str, **values: Any) -> None:
        if self._writing is not None:
            self._writing.result()
        self._waiting.append(_line(kind, **values))
        if self._pool is None:
            self._try()
        else:
            self._writing = self._pool.submit(self._try)

    def _try(self) -> None:
        try:
            self._write()
        except (OSError, DataError) as error:
            if not self._warned:
                log.warning("the receipt cannot be written for now: %s (%s)", error, self.uri)
            self._warned = True

    def _write(self) -> None:
        if not self._local:
            files.write_bytes(self.uri, b"".join(self._waiting))
            return
        with Path(self.uri).open("ab", buffering=0) as file:  # what is written survives a kill of the process
            data, size = b"".join(self._waiting), os.fstat(file.fileno()).st_size
            try:
                if file.write(data) != len(data):
                    raise OSError("no space left for a whole line")
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
        self._waiting.clear()


def _line(kind: str, **values: Any) -> bytes:
    return (json.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n").encode()
