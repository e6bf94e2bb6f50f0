"""What validation found of each checkpoint: small files beside them, written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brainfoundry.core import files


@dataclass(frozen=True)
class Verdict:
    """Scores of one checkpoint on the held-out volumes."""

    step: int
    metrics: Mapping[str, float]
    """Means over the subjects, `val/<score>`; empty where validation failed."""
    rows: Sequence[Mapping[str, Any]]
    """subject, session and scores, one a session."""
    seconds: float
    problem: str = ""
    """Why there are no scores."""


def verdict_of(step: int, rows: Sequence[Mapping[str, Any]], seconds: float) -> Verdict:
    """The verdict that per-session scores give: means over those that are defined."""
    names = [name for name in (rows[0] if rows else {}) if name not in ("subject", "session")]
    means = {}
    for name in names:
        defined = [float(row[name]) for row in rows if math.isfinite(row[name])]
        if defined:
            means[f"val/{name}"] = sum(defined) / len(defined)
    return Verdict(step, means, rows, seconds)


def verdict_uri(folder: str, step: int) -> str:
    """Where the verdict on a step lies."""
    return files.join(folder, f"step-{step:08d}.json")


def write_verdict(folder: str, verdict: Verdict) -> None:
    """Leave it for rank 0 and for the report. Undefined scores are null."""
    files.make_folder(folder)
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in verdict.rows
    ]
    value = {
        "step": verdict.step, "metrics": dict(verdict.metrics), "rows": rows,
        "seconds": verdict.seconds, "problem": verdict.problem,
    }  # fmt: skip
    files.write_json(verdict_uri(folder, verdict.step), value)


def read_verdict(folder: str, step: int) -> Verdict | None:
    """The verdict on a step; None where there is none yet."""
    uri = verdict_uri(folder, step)
    if not files.exists(uri):
        return None
    value = files.read_json(uri)
    rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in value["rows"]]
    return Verdict(value["step"], value["metrics"], rows, value["seconds"], value["problem"])
