"""Validation beside training: what Ray Train runs on a checkpoint, on resources that no worker holds."""

from __future__ import annotations

import time
from typing import Any

import torch

from brainfoundry.core.errors import BrainFoundryError
from brainfoundry.training.checkpoint import read_card
from brainfoundry.training.verdicts import Verdict, verdict_of, write_verdict
from brainfoundry.training.volumes import Scored, VolumeSpec, load_segmenter, score_sessions


def validate_checkpoint(_: Any, *, spec: VolumeSpec, folder: str, uri: str) -> dict[str, float]:
    """Score a checkpoint and leave the verdict in `folder`; returns the means.

    A fault becomes a verdict without scores: a validation must never stop a training.

    Args:
        _: Ray Train's own checkpoint, which only points at ours.
        spec: what is scored.
        uri: the checkpoint's folder.
    """
    step, began = read_card(uri).step, time.perf_counter()
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
