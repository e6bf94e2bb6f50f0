"""A new local database: whole or not there, whoever else makes it at the same time."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from brainfoundry.training.tracking.database import ensure_database


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    found = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    connection.close()
    return found


def test_a_new_database_is_whole_and_alone_in_its_folder(tmp_path: Path, empty_database: Path) -> None:
    path = tmp_path / "new" / "home" / "mlflow.db"
    ensure_database(path)
    assert tables(path) == tables(empty_database) and len(tables(path)) > 20
    assert [p.name for p in path.parent.iterdir()] == ["mlflow.db"]


def test_one_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"somebody's")
    ensure_database(path)
    assert path.read_bytes() == b"somebody's"


@pytest.mark.parametrize("ending", ["another was faster", "killed in between"])
def test_a_race_or_an_end_halfway(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    from mlflow.tracking import MlflowClient

    path = tmp_path / "mlflow.db"
    real = MlflowClient.search_experiments

    def meanwhile(self: Any, **more: Any) -> Any:
        assert not path.exists()
        if ending == "killed in between":
            raise KeyboardInterrupt
        shutil.copy(empty_database, path)
        with path.open("r+b") as handle:  # a byte of the header that sqlite leaves to the application
            handle.seek(68)
            handle.write(b"FAST")
        return real(self, **more)

    monkeypatch.setattr(MlflowClient, "search_experiments", meanwhile)
    if ending == "killed in between":
        with pytest.raises(KeyboardInterrupt):
            ensure_database(path)
        assert list(tmp_path.iterdir()) == []
    else:
        ensure_database(path)
        assert path.read_bytes()[68:72] == b"FAST"
        assert list(tmp_path.iterdir()) == [path]
