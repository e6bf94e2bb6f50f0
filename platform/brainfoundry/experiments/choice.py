"""Options of a trial that were picked on validation: of its choice nodes, those of the best mean score.

All options are tried with the same budget. Those that do not train (the loss diverges, the GPU is too
small), or whose network has no such score (nothing found, no distance), are out of the running. A record's
test scores are never looked at.
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
        DataError: see `choose`.
    """
    return with_options(node.config, choose(node, records))


def choose(node: Node, records: Mapping[str, TrialRecord]) -> dict[str, Any]:
    """The options of the best mean validation score over their choice nodes; the first of equals.

    Raises:
        DataError: a choice node is still to be run, or none of the options came to a score.
    """
    problem = undecided(node, records)
    if problem:
        raise DataError(
            f"{node.id} waits for {problem}", fix="submit the study again: it runs what is missing"
        )
    if not node.chosen:
        return {}
    sign = 1.0 if higher_is_better(node.chosen_by) else -1.0
    best, _ = max(_means(node, records), key=lambda pair: sign * pair[1])
    return dict(best)


def undecided(node: Node, records: Mapping[str, TrialRecord]) -> str:
    """What keeps a node's options from being chosen, after "waits for"; "" where nothing does."""
    for name in node.chosen:
        if name not in records or records[name].state not in ("finished", "unfit"):
            return f"choice {name}, which is not finished"
    if node.chosen and not _means(node, records):
        last = list(node.chosen)[-1]
        return f"its options, of which none came to a validation score {node.chosen_by} (see choice {last})"
    return ""


def _means(node: Node, records: Mapping[str, TrialRecord]) -> list[tuple[Options, float]]:
    """Options that came to a score in all of their choice nodes, with the mean, in the order of the study."""
    tried: dict[str, tuple[Options, list[float]]] = {}
    for name, options in node.chosen.items():
        key = repr(sorted(options.items()))
        tried.setdefault(key, (options, []))[1].append(_score(node, records[name]))
    means = [(options, fmean(scores)) for options, scores in tried.values()]
    return [(options, mean) for options, mean in means if not math.isnan(mean)]


def _score(node: Node, record: TrialRecord) -> float:
    """NaN where there is none."""
    score = record.validation.get(f"val/{node.chosen_by}") if record.state == "finished" else None
    return score if score is not None and math.isfinite(score) else math.nan
