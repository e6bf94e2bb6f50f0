"""A whole prediction: what is done already, the rest spread over the workers, and the tables of all of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.core.remote import StorageError
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.outputs import LESION_COLUMNS, Outputs, tsv
from brainfoundry.prediction.predictor import Job, Outcome
from brainfoundry.prediction.spread import Executor

TABLE_EVERY_S = 10.0
"""Seconds between two writings of predictions.jsonl while cases come in."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of all cases, in their order."""

    outcomes: tuple[Outcome, ...]
    before: int
    """Cases that an earlier run had finished."""
    seconds: float
    """Wall-clock time of the rest."""

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The cases without a mask."""
        return tuple(outcome for outcome in self.outcomes if outcome.error)

    @property
    def predicted(self) -> int:
        """Cases predicted by this run."""
        return len(self.outcomes) - self.before - len(self.failed)


def predict_all(job: Job, cases: Sequence[Case], executor: Executor) -> Result:
    """Predict every case that is not there yet, and write the tables of all that the folder holds.

    The folder must be ours (`Outputs.prepare`). A case that fails costs a line and leaves no files.

    Raises:
        ClusterError: the cluster was lost.
        StorageError: the output storage does not answer.
    """
    outputs = Outputs(job.out, job.models, job.options)
    found: dict[tuple[str, str], Outcome] = {}
    with ThreadPoolExecutor(16, thread_name_prefix="resume") as pool:
        for outcome in pool.map(lambda case: _earlier(outputs, case), cases):
            if outcome is not None:
                found[_key(outcome)] = outcome
        # The tables are of the whole folder: earlier runs may have had other cases.
        marks = pool.map(lambda uri: _of_another_run(outputs, uri), outputs.others(cases))
        kept = [outcome for outcome in marks if outcome is not None]
    before = sum(not outcome.error for outcome in found.values())
    began = written = time.monotonic()
    waiting = [case for case in cases if (case.subject, case.session) not in found]
    with progress("predicting", len(waiting), "cases") as bar:
        for outcome in executor(job, waiting) if waiting else ():
            found[_key(outcome)] = outcome
            failed = sum(bool(o.error) for o in found.values())
            bar.advance(1, f"({failed:,} failed)" if failed else "")
            if time.monotonic() - written > TABLE_EVERY_S:
                written = time.monotonic()
                _write_lines(job.out, [*kept, *found.values()])
    outcomes = tuple(found[case.subject, case.session] for case in cases)
    everything = sorted([*kept, *outcomes], key=_key)
    _write_lines(job.out, everything)
    files.write_bytes(files.join(job.out, "lesions.tsv"), _lesions(everything))
    return Result(outcomes=outcomes, before=before, seconds=time.monotonic() - began)


def _key(outcome: Outcome) -> tuple[str, str]:
    return outcome.case.subject, outcome.case.session


def _earlier(outputs: Outputs, case: Case) -> Outcome | None:
    """What an earlier run left of a case; None where there is work to do."""
    try:
        record = outputs.done(case)
    except StorageError:
        raise
    except DataError as error:
        return Outcome(case=case, error=error.line())
    return None if record is None else Outcome(case=case, record=record, seconds=record["seconds"])


def _of_another_run(outputs: Outputs, uri: str) -> Outcome | None:
    """A case that is there and not among today's; None where the file is somebody else's."""
    try:
        record = outputs.read(uri)
    except StorageError:
        raise
    except DataError:
        return None
    case = Case(subject=record["subject"], session=record["session"], scans=())
    return Outcome(case=case, record=record, seconds=record["seconds"])


def _write_lines(out: str, outcomes: Iterable[Outcome]) -> None:
    text = "".join(json.dumps(_line(outcome), sort_keys=True) + "\n" for outcome in outcomes)
    files.write_bytes(files.join(out, "predictions.jsonl"), text.encode())


def _line(outcome: Outcome) -> dict[str, Any]:
    """A case's line of predictions.jsonl."""
    case, record = outcome.case, outcome.record
    line = {"subject": case.subject, "session": case.session, "id": case.stem}
    if record is None:
        return {**line, "status": "failed", "error": outcome.error, "seconds": round(outcome.seconds, 2)}
    return {
        **line,
        "status": "predicted",
        "mask": record["files"][0],
        "volume_mm3": record["volume_mm3"],
        "lesions": {
            region: sum(row["region"] == region for row in record["lesions"])
            for region in record["volume_mm3"]
        },
        "notes": record["notes"],
        "seconds": record["seconds"],
    }


def _lesions(outcomes: Sequence[Outcome]) -> bytes:
    def rows() -> Iterator[Mapping[str, Any]]:
        for outcome in outcomes:
            for row in outcome.record["lesions"] if outcome.record else ():
                session = {"session": outcome.case.session} if outcome.case.session else {}
                yield {"subject": outcome.case.subject, **session, **row}

    return tsv(("subject", "session", *LESION_COLUMNS), rows())
