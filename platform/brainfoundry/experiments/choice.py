"""Options of a trial that were picked on validation: of its choice nodes, those of the best mean score.

All options are tried with the same budget. A record's test scores are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from brainfoundry.core.errors import DataError
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.recipes import with_options
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.study import Options
from brainfoundry.tasks.scores import higher_is_better
from brainfoundry.training.config import TrainConfig


def with_choice(node: Node, records: Mapping[str, TrialRecord]) -> TrainConfig:
    """The node's configuration with the options that validation picked; its own where it has no choices.

    Raises:
        DataError: a choice node is not finished, or has no such score.
    """
    return with_options(node.config, choose(node, records))


def choose(node: Node, records: Mapping[str, TrialRecord]) -> dict[str, Any]:
    """The options of the best mean validation score over their choice nodes; the first of equals.

    Raises:
        DataError: a choice node is not finished, or has no such score.
    """
    scores: dict[str, list[float]] = {}
    tried: dict[str, Options] = {}
    for name, options in node.chosen.items():
        key = repr(sorted(options.items()))
        tried.setdefault(key, options)
        scores.setdefault(key, []).append(_validated(node, records.get(name), name))
    if not tried:
        return {}
    sign = 1.0 if higher_is_better(node.chosen_by) else -1.0
    return dict(tried[max(tried, key=lambda key: sign * fmean(scores[key]))])


def _validated(node: Node, record: TrialRecord | None, name: str) -> float:
    finished = record is not None and record.state == "finished"
    score = record.validation.get(f"val/{node.chosen_by}") if record is not None and finished else None
    if score is None or not math.isfinite(score):
        what = f"has no validation score {node.chosen_by}" if finished else "is not finished"
        raise DataError(
            f"{node.id} waits for choice {name}, which {what}",
            fix="submit the study again: it runs what is missing",
        )
    return score
