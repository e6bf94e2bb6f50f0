"""Tags that say what a run was made with and where."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from brainfoundry.core.errors import ConfigError

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own: shows a run below another."""
_PACKAGES = ("brainfoundry", "torch", "monai", "ray", "mlflow", "numpy")


def asked_tags(parent: str | None, tags: Sequence[str]) -> dict[str, str]:
    """The tags that a user asks for.

    Args:
        parent: MLflow run id of the run that this one is a part of.
        tags: `name=value` texts.

    Raises:
        ConfigError: a text that is none.
    """
    found = {PARENT_TAG: parent} if parent else {}
    for text in tags:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--tracking.tags {text!r} is not name=value", fix="write it as name=value")
        found[name] = value
    return found


def run_tags() -> dict[str, str]:
    """All of them: git commit, versions, Ray job, host. What cannot be known is left out."""
    return {**git_tags(), **version_tags(), **ray_tags(), "host": socket.gethostname()}


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """`git_commit` and `git_dirty` of the checkout the package runs from; empty where it is not one.

    A driver that ships its code to a cluster without `.git` may pass them on in the environment as
    `BRAINFOUNDRY_GIT_COMMIT` and `BRAINFOUNDRY_GIT_DIRTY`.
    """
    if folder is None and os.environ.get("BRAINFOUNDRY_GIT_COMMIT"):
        commit, dirty = os.environ["BRAINFOUNDRY_GIT_COMMIT"], os.environ.get("BRAINFOUNDRY_GIT_DIRTY", "")
    else:
        root = folder if folder is not None else Path(__file__).resolve().parents[4]
        if not (root / ".git").exists():  # git would go on looking in the folders above: another project's
            return {}
        found = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain")
        if not found:
            return {}
        commit, dirty = found, "" if status is None else str(bool(status)).lower()
    tags = {"git_commit": commit, "mlflow.source.git.commit": commit}
    return {**tags, "git_dirty": dirty} if dirty else tags


def version_tags() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    tags = {"version_python": platform.python_version()}
    for package in _PACKAGES:
        try:
            tags[f"version_{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return tags


def ray_tags() -> dict[str, str]:
    """Ray's job id, and the id `ray job submit` gave; empty outside Ray."""
    tags: dict[str, str] = {}
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        tags["ray_job_id"] = ray.get_runtime_context().get_job_id()
    submission = submission_id()
    return {**tags, "ray_submission_id": submission} if submission else tags


def submission_id() -> str | None:
    """Id of the `ray job submit` this process is the driver of; known in the driver only."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        found = config.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return str(found) if found else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
