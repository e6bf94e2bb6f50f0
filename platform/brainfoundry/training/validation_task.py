"""Validation beside training: what Ray Train runs on a checkpoint, on resources that no worker holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
import torch

from brainfoundry.core.errors import BrainFoundryError
from brainfoundry.training.checkpoint import step_of
from brainfoundry.training.verdicts import Verdict, verdict_of, write_verdict
from brainfoundry.training.volumes import Scored, VolumeSpec, load_segmenter, score_sessions


def validate_guarded(
    _: Any, *, spec: VolumeSpec, folder: str, resources: Mapping[str, float], uri: str
) -> dict[str, float]:
    """What Ray Train calls: `validate_checkpoint` in a process of its own, which may die.

    Ray Train (2.60) survives a validation that raises, but gives the training up where the process of one is
    killed, for its memory or with its node. A validation must never stop a training.

    Args:
        _: Ray Train's own checkpoint, which only points at ours.
        resources: what the process takes, as options of a Ray task.
    """
    began = time.perf_counter()
    try:
        remote: Any = ray.remote
        task = remote(validate_checkpoint).options(**resources, max_retries=2)
        metrics: dict[str, float] = ray.get(task.remote(spec=spec, folder=folder, uri=uri))
        return metrics
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        write_verdict(folder, Verdict(step_of(uri), {}, (), time.perf_counter() - began, problem))
        return {}


def validate_checkpoint(*, spec: VolumeSpec, folder: str, uri: str) -> dict[str, float]:
    """Score a checkpoint and leave the verdict in `folder`; returns the means. A fault is a verdict too.

    Args:
        spec: what is scored.
        uri: the checkpoint's folder.
    """
    step, began = step_of(uri), time.perf_counter()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        network, _card = load_segmenter(uri, device)
        rows = [row_of(scored) for scored in score_sessions([network], spec, spec.sessions, device=device)]
        verdict = verdict_of(step, rows, time.perf_counter() - began)
    except BrainFoundryError as error:
        verdict = Verdict(step, {}, (), time.perf_counter() - began, error.line())
    except Exception as error:
        verdict = Verdict(step, {}, (), time.perf_counter() - began, f"{type(error).__name__}: {error}")
    write_verdict(folder, verdict)
    return dict(verdict.metrics)


def row_of(scored: Scored) -> dict[str, Any]:
    """A session's line of a score table."""
    return {"subject": scored.session.subject, "session": scored.session.session, **scored.scores}
