"""Answers from receipts: who was seen in a run, how often and when; which runs and checkpoints saw them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.stream.plan import Plan
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.receipt_log import folder_of
from brainfoundry.training.receipt_read import Receipt, Visits, iter_visits, read_receipt
from brainfoundry.training.seen import SEEN, load_seen

_DEPTH = 3
"""Folders below the one named in which runs are looked for."""

_NEVER = np.iinfo(np.int64).max

WHO = pa.schema(
    [
        ("subject", pa.string()),
        ("role", pa.string()),
        ("visits", pa.int64()),
        ("not_kept", pa.int64()),
        ("possible", pa.int64()),
        ("first_step", pa.int64()),
        ("last_step", pa.int64()),
        ("epochs", pa.int64()),
        ("attempts", pa.int64()),
        ("validations", pa.int64()),
    ]
)
"""Answer to "who, how often": one row a subject. `visits` counts every time the network was trained on them,
of which `not_kept` were lost in a crash and done again; `possible` visits may have happened besides. Steps
count from 0. `epochs` in which they were visited; `validations` in which they were looked at."""

WHEN = pa.schema(
    [
        ("subject", pa.string()),
        ("session", pa.string()),
        ("what", pa.string()),
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("attempt", pa.string()),
        ("written", pa.string()),
        ("kept", pa.bool_()),
        ("certain", pa.bool_()),
    ]
)
"""Answer to "when": one row a visit (`what`: trained) or look (`what`: validated, after so many steps).
`written`: UTC time by which it had happened, "" where it was not written down."""


@dataclass(frozen=True, kw_only=True)
class SawThem:
    """A run that saw at least one of the subjects asked for."""

    run: str
    """Its folder."""
    stage: str
    checkpoints: tuple[str, ...]
    """URIs of those of its checkpoints that come after the first time."""
    subjects: tuple[str, ...]
    """Those of the subjects asked for that it saw, in order."""
    first_step: int | None
    """First step (from 0) that trained on one of them; None where only looked at, inherited or unknown."""
    last_step: int | None
    visits: int
    """How often it was trained on one of them, replays and possible ones included."""
    validations: int = 0
    """How often one of them was in a validation."""
    inherited: bool = False
    """True: not this run but an ancestor, whose weights it started from, saw them."""
    via: str = ""
    """Names of the ancestors, where inherited."""
    problem: str = ""
    """Why this answer may be incomplete: a line about a damaged or missing receipt."""


class _Tally:
    """Counts of one plan's subjects; arrays of one entry a subject, ascending."""

    def __init__(self, plan: Plan) -> None:
        names, self.subject_of = np.unique(np.asarray(plan.sessions[0], object), return_inverse=True)
        self.subjects: list[str] = names.tolist()
        n = len(names)
        self.visits, self.not_kept, self.possible = (np.zeros(n, np.int64) for _ in range(3))
        self.first, self.last = np.full(n, _NEVER), np.full(n, -1, np.int64)
        self.epochs: dict[int, np.ndarray] = {}
        self.attempts: dict[str, np.ndarray] = {}

    def add(self, chunk: Visits, kept_until: int | None) -> None:
        n, who_V = len(self.subjects), self.subject_of[chunk.session]
        if not chunk.stretch.certain:
            self.possible += np.bincount(who_V, minlength=n)
            return
        self.visits += np.bincount(who_V, minlength=n)
        if kept_until is not None:
            self.not_kept += np.bincount(who_V[chunk.step >= kept_until], minlength=n)
        np.minimum.at(self.first, who_V, chunk.step)
        np.maximum.at(self.last, who_V, chunk.step)
        self.attempts.setdefault(chunk.stretch.attempt, np.zeros(n, bool))[who_V] = True
        for epoch in np.unique(chunk.epoch).tolist():
            self.epochs.setdefault(epoch, np.zeros(n, bool))[who_V[chunk.epoch == epoch]] = True


def who(receipt: Receipt) -> pa.Table:
    """Everybody in the run's plans, in order: `WHO`."""
    tallies = {plan: _Tally(receipt.plans[plan]) for plan in receipt.plans}
    kept_until = {a.name: a.kept_until for a in receipt.attempts}
    for chunk in iter_visits(receipt):
        tallies[chunk.stretch.plan].add(chunk, kept_until.get(chunk.stretch.attempt))
    rows: dict[str, dict[str, Any]] = {}
    roles: dict[str, set[str]] = {}
    tried: dict[str, set[str]] = {}
    for plan, tally in tallies.items():
        epochs = sum(tally.epochs.values(), np.zeros(len(tally.subjects), np.int64))
        for i, subject in enumerate(tally.subjects):
            row = rows.setdefault(
                subject, {**dict.fromkeys(WHO.names, 0), "first_step": None, "last_step": None}
            )
            roles.setdefault(subject, set()).add(str(receipt.about[plan]["role"]))
            tried.setdefault(subject, set()).update(a for a, seen in tally.attempts.items() if seen[i])
            for name in ("visits", "not_kept", "possible"):
                row[name] += int(getattr(tally, name)[i])
            row["epochs"] += int(epochs[i])
            if tally.visits[i]:
                first, last = int(tally.first[i]), int(tally.last[i])
                row["first_step"] = first if row["first_step"] is None else min(first, row["first_step"])
                row["last_step"] = last if row["last_step"] is None else max(last, row["last_step"])
    for _, _, looked in _looks(receipt):
        for subject in looked:
            rows[subject]["validations"] += 1
    for subject, row in rows.items():
        row |= {"subject": subject, "role": "+".join(sorted(roles[subject])), "attempts": len(tried[subject])}
    return pa.Table.from_pylist([rows[subject] for subject in sorted(rows)], schema=WHO)


def when(receipt: Receipt, subjects: Collection[str]) -> pa.Table:
    """Every visit of some subjects, in the order of steps and attempts: `WHEN`."""
    kept_until = {a.name: a.kept_until for a in receipt.attempts}
    rows: list[dict[str, Any]] = []
    for chunk in iter_visits(receipt):
        stretch = chunk.stretch
        names, sessions = receipt.plans[stretch.plan].sessions
        wanted = np.array([name in subjects for name in names])
        for i in np.flatnonzero(wanted[chunk.session]).tolist():
            step, session = int(chunk.step[i]), int(chunk.session[i])
            until = kept_until.get(stretch.attempt)
            rows.append(
                {
                    "subject": names[session],
                    "session": sessions[session],
                    "what": "trained",
                    "step": step,
                    "epoch": int(chunk.epoch[i]),
                    "attempt": stretch.attempt,
                    "written": _utc(receipt.time_of(stretch.attempt, step)) if stretch.certain else "",
                    "kept": until is None or step < until,
                    "certain": stretch.certain,
                }
            )
    for validation, sessions_of, looked in _looks(receipt):
        rows += [
            {
                "subject": subject,
                "session": sessions_of[subject],
                "what": "validated",
                "step": validation.step,
                "epoch": None,
                "attempt": validation.attempt,
                "written": _utc(validation.time),
                "kept": True,
                "certain": True,
            }
            for subject in looked
            if subject in subjects
        ]
    rows.sort(key=lambda r: (r["attempt"], r["step"], r["what"], r["subject"]))
    return pa.Table.from_pylist(rows, schema=WHEN)


def _looks(receipt: Receipt) -> Iterator[tuple[Any, dict[str, str], list[str]]]:
    """(validation, session of each subject, subjects) of every validation."""
    for v in receipt.validations:
        plan = receipt.plans.get(v.plan)
        if plan is not None:
            names, sessions = plan.sessions
            _, _, session_V = plan.visits(0, v.groups)
            seen = {names[i]: sessions[i] for i in session_V.tolist()}
            yield v, seen, sorted(seen)


def _utc(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------------------------------------------------
# Over all runs


def runs_that_saw(runs_uri: str, subjects: Collection[str], cohort: str | None = None) -> list[SawThem]:
    """Every run below a folder that saw one of these subjects, itself or through an ancestor.

    Args:
        runs_uri: folder of runs (STORAGE), of such folders, or of one run (STORAGE/NAME).
        subjects: ids.
        cohort: only subjects of this cohort; None: whatever the cohort.

    Returns:
        Ascending by run. A run whose receipt is damaged or missing is listed by its checkpoints' tables, or,
        where those are missing too, with the `problem` and no subjects: it cannot be ruled out that it saw
        them.

    Raises:
        DataError: there is no such folder.
    """
    runs_uri, wanted = files.absolute(runs_uri), frozenset(subjects)
    if not files.exists(runs_uri):
        raise DataError("no such folder of runs", file=runs_uri, fix="check the path")
    return [found for folder in _runs(runs_uri) for found in _saw(folder, wanted, cohort)]


def _runs(folder: str, depth: int = _DEPTH) -> Iterator[str]:
    """The runs in a folder, or in folders of it, or the folder itself; none inside of another run."""
    if _is_run(folder):
        yield folder
    elif depth:
        fs, path = files.filesystem(folder)
        inside = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        for name in sorted(i.base_name for i in inside if i.type == pafs.FileType.Directory):
            yield from _runs(files.join(folder, name), depth - 1)


def _is_run(folder: str) -> bool:
    return any(files.exists(files.join(folder, name)) for name in ("checkpoints", "receipt", "config.yaml"))


def _saw(folder: str, wanted: frozenset[str], cohort: str | None) -> list[SawThem]:
    problems: list[str] = []
    cards = _cards(folder, problems)
    table = _newest_table(cards, problems)
    receipt = None
    if files.exists(folder_of(folder)):
        try:
            receipt = read_receipt(folder)
            problems += receipt.problems
        except BrainFoundryError as error:
            problems.append(error.line())
    elif cards:
        problems.append(f"run without a receipt: {folder}")
    problem = problems[0] if problems else ""
    answers = [a for a in (_own(folder, wanted, cohort, cards, table, receipt, problem),) if a is not None]
    if table is not None and cards:
        run = next(iter(cards.values())).run
        inherited = _filter(table, wanted, cohort).filter(pc.not_equal(pc.field("run"), run))
        if inherited.num_rows:
            answers.append(
                SawThem(
                    run=folder,
                    stage=next(iter(cards.values())).stage,
                    checkpoints=tuple(cards),
                    subjects=tuple(sorted(set(inherited["subject"].to_pylist()))),
                    first_step=None,
                    last_step=None,
                    visits=0,
                    inherited=True,
                    via=", ".join(sorted(set(inherited["run"].to_pylist()))),
                    problem=problem,
                )
            )
    if not answers and problem and (receipt is None or receipt.problems) and table is None:
        stage = next((card.stage for card in cards.values()), "")
        nothing: dict[str, Any] = {"subjects": (), "first_step": None, "last_step": None, "visits": 0}
        answers.append(SawThem(run=folder, stage=stage, checkpoints=tuple(cards), problem=problem, **nothing))
    return answers


def _own(
    folder: str,
    wanted: frozenset[str],
    cohort: str | None,
    cards: dict[str, Card],
    table: pa.Table | None,
    receipt: Receipt | None,
    problem: str,
) -> SawThem | None:
    """What the run saw itself: by its receipt, and where that says nothing, by its checkpoints' table."""
    subjects: set[str] = set()
    first = last = None
    visits = validations = since = 0
    stage = next((card.stage for card in cards.values()), "")
    if receipt is not None:
        of_cohort = {p for p, about in receipt.about.items() if cohort in (None, about.get("cohort"))}
        stage = stage or next((str(about["stage"]) for about in receipt.about.values()), "")
        for plan in set(receipt.plans) - of_cohort:
            del receipt.plans[plan], receipt.about[plan]
        if wanted & receipt.subjects:
            rows = when(receipt, wanted)
            trained = rows.filter(pc.equal(rows["what"], "trained"))
            visits, validations = trained.num_rows, rows.num_rows - trained.num_rows
            subjects |= set(rows["subject"].to_pylist())
            first, last = pc.min(trained["step"]).as_py(), pc.max(trained["step"]).as_py()
            # Step s is in the weights from checkpoint s+1 on; a validation judges its own step's checkpoint.
            since = min(
                (r["step"] + (r["what"] == "trained") for r in rows.to_pylist()),
                default=0,
            )
    if (receipt is None or receipt.problems) and table is not None and cards:
        run = next(iter(cards.values())).run
        own = _filter(table, wanted, cohort).filter(pc.equal(pc.field("run"), run))
        subjects |= set(own["subject"].to_pylist())
        first, since = None, 0  # not known when: every checkpoint counts
    if not subjects:
        return None
    after = [uri for uri, card in cards.items() if card.step >= since]
    return SawThem(
        run=folder,
        stage=stage,
        checkpoints=tuple(after),
        subjects=tuple(sorted(subjects)),
        first_step=first,
        last_step=last,
        visits=visits,
        validations=validations,
        problem=problem,
    )


def _cards(folder: str, problems: list[str]) -> dict[str, Card]:
    """Cards of the whole checkpoints by URI, ascending by step."""
    cards = {}
    checkpoints = files.join(folder, "checkpoints")
    for step in checkpoint.list_steps(checkpoints):
        uri = checkpoint.checkpoint_uri(checkpoints, step)
        try:
            cards[uri] = checkpoint.read_card(uri)
        except BrainFoundryError as error:
            problems.append(error.line())
    return cards


def _newest_table(cards: dict[str, Card], problems: list[str]) -> pa.Table | None:
    for uri in reversed(cards):
        try:
            return load_seen(uri).select([n for n in SEEN.names if n != "fingerprint"])
        except BrainFoundryError as error:
            problems.append(error.line())
    return None


def _filter(table: pa.Table, wanted: frozenset[str], cohort: str | None) -> pa.Table:
    found = table.filter(pc.is_in(table["subject"], pa.array(sorted(wanted), pa.string())))
    return found if cohort is None else found.filter(pc.equal(found["cohort"], cohort))
