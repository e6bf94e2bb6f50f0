#!/usr/bin/env python
"""Take participants who withdrew consent out of shard sets, and list every run and checkpoint that saw them.

Of a participant only a tombstone stays (the id, and that consent was withdrawn). Rewritten are the shards
that hold them; splits and folds of all others stay. Streams skip them from the next plan on. Safe to run
again: what is done stays done, what was interrupted is finished.

    python jobs/withdraw.py --ids withdrawn.txt --shards runs/demo/shards --runs runs
    python jobs/withdraw.py --ids withdrawn.txt --shards s3://bucket/a s3://bucket/b --runs runs --dry-run

The source files are not touched: give the same list to the prepare job (--withdrawn) from now on.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from brainfoundry.cohorts.left_out import read_ids, same_ids
from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.store.withdraw import Withdrawal, withdraw
from brainfoundry.training.receipt import SawThem, runs_that_saw


@dataclass(frozen=True, kw_only=True)
class WithdrawConfig:
    ids: str = ""
    """List of the participants: one id a line, or a table with a column subject, participant_id or eid."""
    shards: tuple[str, ...] = ()
    """Shard sets to take them out of, folders or URIs."""
    runs: tuple[str, ...] = ()
    """Folders of runs (or single runs) to search for what saw them."""
    report: str | None = None
    """File to write that list to as CSV; the console shows it too."""
    dry_run: bool = False
    """Say what would be done and what saw them; change nothing."""


def main(config: WithdrawConfig) -> int:
    if not config.ids or not (config.shards or config.runs):
        fix = "--ids FILE --shards SHARDS [SHARDS ...] [--runs FOLDER ...]"
        raise ConfigError("nothing to do: a list of ids and shard sets or runs are needed", fix=fix)
    ids = read_ids(config.ids)

    # --- out of the shard sets, one after the other; one that fails does not keep them in the next
    done: list[Withdrawal] = []
    failed = 0
    for uri in config.shards:
        try:
            done.append(withdraw(uri, ids, dry_run=config.dry_run))
            tell(done[-1], config.dry_run)
        except BrainFoundryError as error:
            failed += 1
            print(f"error: {error.line()}", file=sys.stderr, flush=True)
    known = {spelling for w in done for s in (*w.subjects, *w.earlier) for spelling in same_ids(s)}
    nobody = sorted(ids - known)
    if done and nobody:
        some = ", ".join(nobody[:10]) + (", ..." if len(nobody) > 10 else "")
        print(f"{len(nobody):,} of {len(ids):,} ids are of nobody in these shard sets: {some}")

    # --- what saw them, in this and earlier states of the sets; elsewhere the same id is somebody else
    cohorts: set[str | None] = {w.cohort for w in done} if config.shards and not failed else {None}
    asked = {spelling for i in ids for spelling in same_ids(i)} | known
    saw = [
        found
        for folder in config.runs
        for cohort in sorted(cohorts, key=str)
        for found in runs_that_saw(folder, asked, cohort)
    ]
    if config.runs:
        show(saw)
        if config.report:
            write(config.report, saw)
    if config.dry_run:
        print("dry run: nothing was changed")
    return 1 if failed else 0


def tell(w: Withdrawal, dry_run: bool) -> None:
    """What was done to one set."""
    resumed = " (an interrupted withdrawal was finished)" if w.resumed else ""
    earlier = f", {len(w.earlier):,} had gone before" if w.earlier else ""
    verb = "would go" if dry_run else "gone"
    print(
        f"{w.uri}: {len(w.subjects):,} participants with {w.sessions:,} stored sessions {verb}{earlier}; "
        f"{len(w.shards):,} of {w.meta.shards:,} shards {'to rewrite' if dry_run else 'rewritten'}{resumed}",
        flush=True,
    )
    if w.subjects and not dry_run:
        print(f"  manifest is now {w.meta.manifest_hash[:12]}, {w.meta.rows:,} sessions left", flush=True)


def show(saw: Iterable[SawThem]) -> None:
    """Runs and checkpoints that saw them."""
    saw = list(saw)
    if not saw:
        print("no run saw any of them")
        return
    table = Table(title="Runs that saw them (paths: --report FILE)", title_justify="left")
    for name in ("run", "stage", "subjects", "steps", "visits", "how", "in checkpoints"):
        table.add_column(name, justify="right" if name in ("subjects", "visits") else "left", overflow="fold")
    for s in saw:
        steps = "" if s.first_step is None else f"{s.first_step:,}-{s.last_step:,}"
        how = f"through {s.via}" if s.inherited else "itself" if s.subjects else "cannot be told"
        numbers = [f"{int(uri.rsplit('-', 1)[-1]):,}" for uri in s.checkpoints]
        name = s.run.rsplit("/", 1)[-1]
        in_ = ", ".join(numbers) or "none"
        table.add_row(name, s.stage, f"{len(s.subjects):,}", steps, f"{s.visits:,}", how, in_)
    Console().print(table)
    for s in saw:
        if s.problem:
            print(f"- {s.run}: may be incomplete: {s.problem}")


def write(where: str, saw: Iterable[SawThem]) -> None:
    """The list as CSV, a line a run; subjects and checkpoints separated by spaces."""
    text = io.StringIO()
    names = list(SawThem.__dataclass_fields__)
    out = csv.DictWriter(text, names, lineterminator="\n")
    out.writeheader()
    for s in saw:
        row = asdict(s)
        out.writerow(row | {name: " ".join(row[name]) for name in ("subjects", "checkpoints")})
    files.write_bytes(files.absolute(where), text.getvalue().encode())
    print(f"list written to {where}")


if __name__ == "__main__":
    run_job(WithdrawConfig, main, description=__doc__)
