"""A real MLflow database, made once and copied: making one takes seconds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from brainfoundry.training.tracking.mlflow_run import set_mlflow_environment
from brainfoundry.training.tracking.tracker import Tracker


@pytest.fixture(scope="session", autouse=True)
def mlflow_limits() -> Iterator[None]:
    """Short limits for every request of these tests, gone afterwards."""
    saved = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
    for key in saved:
        del os.environ[key]
    set_mlflow_environment()
    yield
    for key in [k for k in os.environ if k.startswith("MLFLOW_")]:
        del os.environ[key]
    os.environ.update(saved)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory, mlflow_limits: None) -> Path:
    """An MLflow database with its tables and nothing in them."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> str:
    """Tracking URI of a fresh database."""
    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def make_tracker(tmp_path: Path) -> Iterator[Callable[..., Tracker]]:
    """Trackers of one run; left open ones are closed at the end."""
    made: list[Tracker] = []

    def make(uri: str, **changes: Any) -> Tracker:
        arguments: dict[str, Any] = {
            "run_dir": str(tmp_path / "run"),
            "uri": uri,
            "experiment": "test",
            "run_name": "demo",
            "run_key": "key-of-demo",
            "tags": {"stage": "pretrain"},
            "params": {"size": "nano", "steps": 40},
            "every_s": 0.2,
        }
        made.append(Tracker(**{**arguments, **changes}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close("KILLED", timeout_s=0.1)
