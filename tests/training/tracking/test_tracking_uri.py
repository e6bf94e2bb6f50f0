"""Which MLflow: explicit, environment, local; several nodes and a file of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.core.errors import ClusterError, ConfigError
from brainfoundry.training.tracking import spool
from brainfoundry.training.tracking.uri import (
    artifact_location,
    destination_of,
    refuse_if_multinode,
    resolve_uri,
    view_command,
)


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.lab:5000/")
    assert resolve_uri(None, tmp_path) == "http://mlflow.lab:5000"
    assert resolve_uri("http://other:5000", tmp_path) == "http://other:5000"


def test_local_paths_come_back_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri("sqlite:///x.db", "/h") == f"sqlite:///{tmp_path}/x.db"
    assert resolve_uri(None, "h") == f"sqlite:///{tmp_path}/h/mlflow.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns"])
def test_a_plain_folder_is_refused_with_the_fix(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ConfigError, match=r"plain folder.*Fix: use sqlite:////.*mlruns/mlflow\.db"):
        resolve_uri(uri, "/h")


def test_artifacts_have_an_absolute_place_of_their_own() -> None:
    assert artifact_location("sqlite:////h/mlflow.db", "/runs/a") == "file:///h/mlartifacts"
    assert artifact_location("http://mlflow:5000", "/runs/a") is None
    assert artifact_location("postgresql://db/x", "s3://bucket/runs/a") == "s3://bucket/runs/mlartifacts"
    assert "file:///h/mlartifacts" in view_command("sqlite:////h/mlflow.db")


@pytest.mark.parametrize("uri", ["sqlite:////h/mlflow.db", "file:///h/mlruns", "/h/mlruns"])
def test_several_nodes_need_a_server(uri: str) -> None:
    refuse_if_multinode(uri, 1)
    with pytest.raises(
        ClusterError, match=r"8 nodes cannot share.*Fix: .*mlflow server.*MLFLOW_TRACKING_URI="
    ):
        refuse_if_multinode(uri, 8)


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "https://mlflow", "postgresql://db/x", "databricks"])
def test_servers_serve_any_number(uri: str) -> None:
    refuse_if_multinode(uri, 8)
    assert resolve_uri(uri, "/h") == uri


def test_a_spool_knows_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tmp_path / "run")
    writer = spool.SpoolWriter(run)
    writer.append([{"kind": "start", "time": 1, "uri": "http://mlflow:5000", "tags": {}, "params": {}}])
    writer.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert destination_of(run, None, tmp_path) == "http://mlflow:5000"
    assert destination_of(run, "http://given:2", tmp_path) == "http://given:2"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    assert destination_of(run, None, tmp_path) == "http://me:secret@mlflow:5000"
