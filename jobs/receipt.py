#!/usr/bin/env python
"""Who was seen when, and how often: answers from the receipts that runs write while they train.

Regenerates every step from the run's plans and checks it against what was delivered. Exit status: 0; 1 where
a receipt is damaged or does not agree with its plan, told in a line for each.

    python jobs/receipt.py --run runs/pretrain/NAME
    python jobs/receipt.py --run runs/pretrain/A runs/pretrain/B --subject 9900001 --csv visits.csv
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.core.progress import progress
from brainfoundry.training.receipt import when, who
from brainfoundry.training.receipt_read import Receipt, check, read_receipt

SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class ReceiptConfig:
    run: tuple[str, ...] = ()
    """Folders of runs (STORAGE/NAME)."""
    subject: tuple[str, ...] = ()
    """Only these: every visit of theirs, by step and time. Default: everybody, one line each in --csv."""
    csv: str | None = None
    """CSV file for the whole answer; the console shows the first lines."""
    check: bool = True
    """Compare the receipt with what the plan says, step by step (minutes for a run of weeks)."""


def main(config: ReceiptConfig) -> int:
    if not config.run:
        raise ConfigError("no run is named", fix="give --run STORAGE/NAME")
    answers, problems = [], []
    for run in config.run:
        receipt = read_receipt(run)
        problems += receipt.problems
        if config.check:
            with progress("checking", len(receipt.stretches), "stretches") as counter:
                problems += check(receipt, counter.advance)
        answer = when(receipt, frozenset(config.subject)) if config.subject else who(receipt)
        show(receipt, answer, config.subject)
        names = pa.array([receipt.run_dir] * answer.num_rows, pa.string())
        answers.append(answer.add_column(0, "run", names))
    if config.csv:
        sink = io.BytesIO()
        pacsv.write_csv(pa.concat_tables(answers), sink)
        files.write_bytes(config.csv, sink.getvalue())
        print(f"{sum(a.num_rows for a in answers)} lines -> {config.csv}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def show(receipt: Receipt, answer: pa.Table, subjects: tuple[str, ...]) -> None:
    print(f"\n{receipt.run_dir}")
    for about in receipt.about.values():
        who_for = {"train": "trained on", "val": "held out"}.get(about["role"], about["role"])
        print(
            f"  plan, {who_for}: {about['cohort']}, manifest {about['manifest_hash'][:12]}, {about['stage']}"
        )
    for a in receipt.attempts:
        lost = (
            "" if a.kept_until is None or a.kept_until >= a.last else f", from {a.kept_until} on done again"
        )
        begun = datetime.fromtimestamp(a.begun, UTC).isoformat(timespec="seconds")
        print(f"  {begun}  {a.world} worker(s), steps {a.first} to {a.last - 1}, {a.state}{lost}")
    if subjects:
        for subject in subjects:
            mine = answer.filter(pc.equal(answer["subject"], subject))
            sure = mine.filter(pc.and_(mine["certain"], pc.equal(mine["what"], "trained")))
            looks = pc.sum(pc.equal(mine["what"], "validated")).as_py() or 0
            print(
                f"  subject {subject}: trained on {sure.num_rows} times, possibly "
                f"{mine.num_rows - looks - sure.num_rows} more, in {looks} validations"
            )
        rows = answer.to_pylist()
        for r in rows[:SHOWN]:
            sure_text = "" if r["certain"] else "  possibly"
            kept = "" if r["kept"] else "  (done again later)"
            epoch = "" if r["epoch"] is None else f" epoch {r['epoch']}"
            print(f"    {r['subject']} session {r['session']} {r['what']} step {r['step']}{epoch}  "
                  f"by {r['written'] or '?'}{kept}{sure_text}")  # fmt: skip
        if len(rows) > SHOWN:
            print(f"    ... {len(rows) - SHOWN} more: see --csv")
        return
    trained = answer.filter(pc.greater(answer["visits"], 0))
    if trained.num_rows:
        least, most = pc.min_max(trained["visits"]).as_py().values()
        replays, possible = (pc.sum(answer[n]).as_py() for n in ("not_kept", "possible"))
        print(f"  {trained.num_rows} subjects trained on, {least} to {most} times each; {replays} visits "
              f"were lost and done again, {possible} more are possible")  # fmt: skip


if __name__ == "__main__":
    run_job(ReceiptConfig, main, description=__doc__)
