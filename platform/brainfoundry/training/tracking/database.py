"""A local MLflow database, made whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import uuid
from pathlib import Path


def ensure_database(path: Path) -> None:
    """Make MLflow's tables in a new sqlite file; does nothing if the file is there.

    Processes that open the same new file at once run MLflow's migrations into one another (its tracking
    store takes no lock) and may leave tables that no later start can mend. So the tables are made in a
    file nobody else knows, which then gets its name in one step; of several processes the first wins,
    and one killed in between leaves nothing but that unnamed file.

    Raises:
        OSError: the folder cannot be written.
    """
    if path.exists():
        return
    from mlflow.tracking import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic"):  # they tell of every table they make
        logging.getLogger(name).setLevel(logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = [path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{part}") for part in ("made", "whole")]
    made, whole = unnamed
    try:
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        # MLflow keeps its connection to `made`: a copy through sqlite is complete whatever its journal holds.
        with (
            contextlib.closing(sqlite3.connect(made)) as source,
            contextlib.closing(sqlite3.connect(whole)) as copy,
        ):
            source.backup(copy)
        try:
            os.link(whole, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                whole.rename(path)
    finally:
        for file in unnamed:
            file.unlink(missing_ok=True)
