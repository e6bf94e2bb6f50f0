"""Which MLflow a run goes to."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from brainfoundry.core.errors import ClusterError, ConfigError
from brainfoundry.training.tracking.marker import without_secrets
from brainfoundry.training.tracking.spool import last_start

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def resolve_uri(explicit: str | None, home: str | os.PathLike[str]) -> str:
    """Tracking URI: the explicit one, else `$MLFLOW_TRACKING_URI`, else a local sqlite file below `home`.

    Local paths come back absolute: Ray workers run in another folder. Call it on the driver.

    Raises:
        ConfigError: a plain folder, which MLflow no longer writes to.
    """
    uri = (
        explicit
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{Path(home).expanduser().resolve()}/mlflow.db"
    )
    path = sqlite_path(uri)
    if path is not None:
        return f"sqlite:///{path}"
    folder = _is_folder(uri)
    if folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
        path = Path(uri.removeprefix("file://")).expanduser().resolve()
        raise ConfigError(
            "MLflow no longer keeps runs in a plain folder",
            file=uri,
            fix=f"use sqlite:///{path}/mlflow.db, or the address of an MLflow server",
        )
    if folder:
        return Path(uri.removeprefix("file://")).expanduser().resolve().as_uri()
    return uri.rstrip("/") if is_server(uri) else uri


def destination_of(run_dir: str, explicit: str | None, home: str | os.PathLike[str]) -> str:
    """Where a run's spool belongs: the explicit URI, else the run's own, else `resolve_uri`'s.

    A spool holds no passwords: where `$MLFLOW_TRACKING_URI` names the same server with one, that is used.
    """
    start = last_start(run_dir)
    recorded = None if start is None else str(start.get("uri") or "")
    environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    if explicit is None and recorded and without_secrets(environment).rstrip("/") != recorded:
        explicit = recorded
    return resolve_uri(explicit, home)


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).expanduser().resolve()


def artifact_location(uri: str, run_dir: str) -> str | None:
    """Where a new experiment keeps its artifacts; None where a server decides.

    Left to itself MLflow would use `./mlruns` of whatever folder the worker happens to run in.
    """
    path = sqlite_path(uri)
    if path is not None:
        return (path.parent / "mlartifacts").as_uri()
    if urlsplit(uri).scheme.split("+")[0] in _DATABASES:
        parent = run_dir.rstrip("/").rpartition("/")[0]
        return (
            f"{parent}/mlartifacts" if "://" in parent else (Path(parent).resolve() / "mlartifacts").as_uri()
        )
    return None


def refuse_if_multinode(uri: str, n_nodes: int) -> None:
    """Refuse a file of one machine as the tracking store of several.

    Raises:
        ClusterError: more than one node and a local store.
    """
    if n_nodes > 1 and (_is_folder(uri) or sqlite_path(uri) is not None):
        raise ClusterError(
            f"{n_nodes} nodes cannot share a tracking store that is a file of one machine",
            file=uri,
            fix="start `mlflow server --host 0.0.0.0 --port 5000` on one node that all can reach, and set "
            "MLFLOW_TRACKING_URI=http://THAT-NODE:5000 (or --tracking.uri)",
        )


def _is_folder(uri: str) -> bool:
    scheme = urlsplit(uri).scheme
    return scheme == "file" or (not scheme and uri.split("-")[0] not in ("databricks", "uc"))


def is_server(uri: str) -> bool:
    """True for an MLflow server, False for a store this process writes itself."""
    return urlsplit(uri).scheme in ("http", "https")


def view_command(uri: str) -> str:
    """What to type to look at a store without a server."""
    path = sqlite_path(uri)
    artifacts = f" --default-artifact-root {(path.parent / 'mlartifacts').as_uri()}" if path else ""
    return f"mlflow ui --backend-store-uri {uri}{artifacts}"
