#!/usr/bin/env python
"""Deliver the metrics, pictures and files that runs still keep in their spools to MLflow.

    python jobs/sync_tracking.py RUN [RUN ...]

RUN is STORAGE/NAME of a run, a folder or any URI. Nothing is sent twice; a run that is still being
tracked by a live process is left to it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from brainfoundry.core import files, paths
from brainfoundry.core.errors import BrainFoundryError, ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.training.tracking.delivery import deliver
from brainfoundry.training.tracking.uri import destination_of, view_command


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """What to deliver and where to."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders (STORAGE/NAME), paths or URIs."""
    uri: str | None = None
    """MLflow tracking URI; default: the one each run began with, else $MLFLOW_TRACKING_URI, else local."""
    end_status: Literal["", "FINISHED", "FAILED", "KILLED"] = ""
    """Status to give a run whose last process died without one; empty = leave it as it is (RUNNING)."""
    timeout_s: float = 120.0
    """Seconds to keep trying for each run while the server does not answer."""


def main(config: SyncConfig) -> int:
    """Deliver run after run; one that fails does not stop the others."""
    if not config.runs:
        raise ConfigError("no run given", fix="name one or more run folders: sync_tracking.py STORAGE/NAME")
    failed = 0
    for run in config.runs:
        run_dir = files.absolute(run)
        try:
            uri = destination_of(run_dir, config.uri, paths.home())
            done = deliver(run_dir, uri, timeout_s=config.timeout_s, end_status=config.end_status or None)
        except BrainFoundryError as error:
            failed += 1
            print(f"error: {error.line()}", file=sys.stderr, flush=True)
            continue
        look = "" if uri.startswith("http") else f"; look at it with: {view_command(uri)}"
        print(
            f"{run_dir}: {done.accepted} metrics sent, nothing left; MLflow run {done.run_id}{look}",
            flush=True,
        )
        for item in done.refused:
            print(f"  refused for good: {item['reason']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run_job(SyncConfig, main, description=__doc__)
