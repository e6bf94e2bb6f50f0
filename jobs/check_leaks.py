#!/usr/bin/env python
"""Has a checkpoint, or any ancestor of it, seen subjects of a test set? By id, and by image whatever the id.

Reads the table of seen scans that lies in every checkpoint, and the fingerprints of the test set. Exit
status: 0 nobody was seen, 3 somebody was, 1 or 2 the question cannot be answered.

    python jobs/check_leaks.py --checkpoint RUN/checkpoints/step-00200000 --test /data/atlas-shards
    python jobs/check_leaks.py --checkpoint A B --test /data/brats-shards --fold 0 --report leaks.csv
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pacsv

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.training.leak_gate import hold, open_test_set
from brainfoundry.training.seen import load_seen

LEAK = 3


@dataclass(frozen=True, kw_only=True)
class CheckLeaksConfig:
    checkpoint: tuple[str, ...] = ()
    """Checkpoints (step-... folders or URIs), each held against the test set with all its ancestors."""
    test: str = ""
    """Shard set with the test subjects."""
    split: str = "test"
    """Its split that is the test set."""
    fold: int | None = None
    """Its fold that is the test set, instead of a split."""
    report: str | None = None
    """CSV file for the pairs found: test subject, seen subject, run, stage, how."""


def main(config: CheckLeaksConfig) -> int:
    if not config.checkpoint or not config.test:
        raise ConfigError(
            "a checkpoint and a test set are needed", fix="give --checkpoint URI and --test URI"
        )
    test = open_test_set(config.test, split=config.split, fold=config.fold)
    held = hold([test], {uri: load_seen(uri) for uri in config.checkpoint})
    for one in held:
        print(f"{'LEAK' if one.leaks.subjects else 'clean'}: {one.source}: {one.line()}")
        if one.leaks.without_image:
            print(f"  {one.leaks.without_image} test scans have no fingerprint: compared by id only")
    if config.report:
        sources = [h.source for h in held for _ in range(h.leaks.rows.num_rows)]
        found = pa.concat_tables([h.leaks.rows for h in held]).add_column(
            0, "checkpoint", pa.array(sources, pa.string())
        )
        sink = io.BytesIO()
        pacsv.write_csv(found, sink)
        files.write_bytes(config.report, sink.getvalue())
        print(f"{found.num_rows} pairs -> {config.report}")
    return LEAK if any(h.leaks.subjects for h in held) else 0


if __name__ == "__main__":
    run_job(CheckLeaksConfig, main, description=__doc__)
