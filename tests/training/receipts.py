"""Runs that only read: receipts as workers would leave them, without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from brainfoundry.core import files
from brainfoundry.stream.batch import CropBatch
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.training import checkpoint
from brainfoundry.training.receipt_log import ReceiptWriter, attempt_name, write_plan
from brainfoundry.training.seen import SEEN, encode_seen
from tests.stream.builders import CROP, make_index
from tests.training.test_checkpoint import MODEL, STATE, card

SPEC = PlanSpec(seed=3, crop=CROP, groups_per_step=6, frame="box")


def about(cohort: str = "ukb", run: str = "r", role: str = "train") -> dict[str, Any]:
    return {
        "run": run,
        "stage": "pretrain-1",
        "cohort": cohort,
        "manifest_hash": "m",
        "modalities": ["T1w"],
        "role": role,
    }


def batch(plan: Plan, step: int, rank: int = 0, world: int = 1, **changes: Any) -> CropBatch:
    """What a worker is given of a step, without the voxels."""
    subjects = plan.rows(step, step + 1, rank, world)["subject"].to_pylist()
    nothing = torch.zeros(len(subjects), 1)
    fields = {f.name: nothing for f in dataclasses.fields(CropBatch)}
    fields |= {"step": step, "crops_per_group": plan.crops_per_group, "subjects": subjects, **changes}
    return CropBatch(**fields)  # type: ignore[arg-type]


def writer_of(
    run_dir: str,
    plan: Plan,
    *,
    number: int = 1,
    rank: int = 0,
    world: int = 1,
    first: int = 0,
    stop: int = 9,
    flush_every: int = 1,
) -> ReceiptWriter:
    """What one worker of an attempt writes with."""
    return ReceiptWriter(
        run_dir, attempt=attempt_name(number), rank=rank, world=world, first_step=first, stop_step=stop,
        plan=plan.hash, flush_every=flush_every,
    )  # fmt: skip


def attempt(
    run_dir: str,
    index: pa.Table,
    number: int,
    steps: range,
    *,
    world: int = 1,
    flush_every: int = 4,
    end: str = "finished",
    spec: PlanSpec = SPEC,
    ranks: Sequence[int] | None = None,
    cohort: str = "ukb",
    stop: int = 1_000,
) -> None:
    """One start of the worker group: flushed every few steps, `end` "" is a kill."""
    plan = Plan.from_index(index, spec)
    write_plan(run_dir, index, spec, about(cohort))
    for rank in range(world) if ranks is None else ranks:
        writer = writer_of(
            run_dir, plan, number=number, rank=rank, world=world, first=steps.start, stop=stop,
            flush_every=flush_every,
        )  # fmt: skip
        for step in steps:
            writer.consumed(batch(plan, step, rank, world))
            if (step + 1) % flush_every == 0:
                writer.flush()
        if end:
            writer.close(end)


def save_checkpoint(run_dir: str, step: int, seen: pa.Table | None, run: str = "r") -> str:
    """A checkpoint of the run, with a table of seen scans unless None."""
    blob = None if seen is None else encode_seen(seen)
    return checkpoint.save(files.join(run_dir, "checkpoints"), card(step, run=run), MODEL, STATE, blob)


def seen_by(run: str, subjects: Sequence[str], cohort: str = "ukb") -> pa.Table:
    """A table of seen scans without images."""
    n = len(subjects)
    fixed = {"run": run, "stage": "pretrain-1", "cohort": cohort, "manifest_hash": "m", "session": "2"}
    fixed |= {"split": "train", "modality": "T1w"}
    columns: dict[str, Any] = {name: [fixed[name]] * n for name in fixed}
    columns |= {"subject": list(subjects), "fingerprint": [None] * n}
    return pa.table({name: pa.array(columns[name], SEEN.field(name).type) for name in SEEN.names})


__all__ = ["SPEC", "about", "attempt", "batch", "make_index", "save_checkpoint", "seen_by"]
