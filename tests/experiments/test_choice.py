"""Options picked on validation: never on the test set, with equal budgets, the first of equals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from brainfoundry.core.errors import DataError
from brainfoundry.experiments.choice import choose, undecided, with_choice
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.spec import read_study
from tests.experiments.cohort_infos import cohorts, study

CHOOSE = {
    "options": {"optim.lr": [0.002, 0.001], "optim.warmup": [5, 10]},
    "per": ["init"],
    "at": {"share": [5], "draw": [4, 5]},
}


Scores = Mapping[tuple[float, int], float]
SCORES = {(0.002, 5): 0.5, (0.002, 10): 0.6, (0.001, 5): 0.7, (0.001, 10): 0.4}
"""By learning rate and warm-up."""
EQUAL = dict.fromkeys(SCORES, 0.5)


def plan(**changes: Any) -> tuple[Node, ...]:
    spec = read_study(study(**{"choose": CHOOSE, **changes}))
    return plan_study(spec, cohorts(), "/runs")


def record(node: Node, validation: Mapping[str, float], **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "study": "mine", "id": node.id, "kind": "finetune", "role": "choice", "point": node.point,
        "state": "finished", "run_dir": "/runs", "validation": validation,
    }  # fmt: skip
    return TrialRecord(**{**values, **changes})


def trial_of(nodes: tuple[Node, ...], init: str) -> Node:
    return next(node for node in nodes if node.role == "trial" and node.point["init"] == init)


def judged(nodes: tuple[Node, ...], scores: Scores) -> dict[str, TrialRecord]:
    """Records of the choice nodes, a little off in each draw."""
    found = {}
    for node in nodes:
        if node.role == "choice":
            score = scores[node.config.optim.lr, node.config.optim.warmup]
            found[node.id] = record(node, {"val/dice_mean": score + 0.01 * (node.point["draw"] - 4.5)})
    return found


def test_every_arm_has_the_same_budget() -> None:
    nodes = plan()
    choices = [node for node in nodes if node.role == "choice"]
    assert Counter(node.point["init"] for node in choices) == {"scratch": 8, "stage1": 8, "stage1+2": 8}
    assert {node.config.optim.steps for node in choices} == {160}
    assert {(node.point["share"], node.test) for node in choices} == {(5, None)}
    assert len({node.id for node in choices}) == len(choices)
    for node in nodes:
        if node.role == "trial":
            mine = [other for other in choices if other.point["init"] == node.point["init"]]
            assert set(node.chosen) == {other.id for other in mine}
            assert node.chosen_by == "dice_mean"
            for other in mine:  # what each tries is in its configuration already
                tried = node.chosen[other.id]
                assert (tried["optim.lr"], tried["optim.warmup"]) == (
                    other.config.optim.lr,
                    other.config.optim.warmup,
                )
    assert choices[0].id.startswith("choice-nano-scratch-share5-draw4-lr0.002-warmup5-")


def test_the_best_mean_over_the_draws_is_taken() -> None:
    nodes = plan()
    records = judged(nodes, SCORES)
    trial = trial_of(nodes, "stage1")
    config = with_choice(trial, records)
    assert (config.optim.lr, config.optim.warmup) == (0.001, 5)
    assert choose(trial, records) == {"optim.lr": 0.001, "optim.warmup": 5}
    # All else is as it was planned.
    assert (config.name, config.data, config.init) == (trial.id, trial.config.data, trial.config.init)


def test_the_test_set_has_no_say() -> None:
    nodes = plan()
    records = judged(nodes, SCORES)
    against = {
        name: {**r.metrics, "dice_mean": 1.0 - r.validation["val/dice_mean"]} for name, r in records.items()
    }
    told = {
        node.id: record(node, records[node.id].validation, metrics=against[node.id])
        for node in nodes
        if node.id in records
    }
    trial = trial_of(nodes, "scratch")
    assert max(against[name]["dice_mean"] for name in trial.chosen) > 0.59  # it would choose otherwise
    assert choose(trial, told) == choose(trial, records) == {"optim.lr": 0.001, "optim.warmup": 5}


def test_the_first_of_equals() -> None:
    nodes = plan()
    records = judged(nodes, EQUAL)
    assert choose(trial_of(nodes, "scratch"), records) == {"optim.lr": 0.002, "optim.warmup": 5}


def test_of_a_distance_the_smallest() -> None:
    nodes = plan(
        choose={
            "options": {"optim.lr": [0.002, 0.001]},
            "per": ["init"],
            "at": {"share": 5, "draw": 5},
            "by": "hd95_wt",
        }
    )
    choices = [node for node in nodes if node.role == "choice"]
    records = {
        node.id: record(
            node, {"val/hd95_wt": 1e3 * node.config.optim.lr, "val/dice_mean": node.config.optim.lr}
        )
        for node in choices
    }
    assert choose(trial_of(nodes, "scratch"), records) == {"optim.lr": 0.001}


def test_no_choice_without_all_of_them() -> None:
    nodes = plan()
    records = judged(nodes, EQUAL)
    trial = trial_of(nodes, "stage1")
    last = next(node for node in nodes if node.id == list(trial.chosen)[-1])
    with pytest.raises(
        DataError, match=f"{trial.id.replace('+', '.')} waits for choice {last.id}, which is not finished"
    ):
        choose(trial, {**records, last.id: record(last, {"val/dice_mean": 0.5}, state="failed")})
    with pytest.raises(DataError, match="is not finished"):
        choose(trial, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "unfit", "error": "the loss of step 3 is nan"},
        {"validation": {}},
        {"validation": {"val/dice_mean": float("nan")}},
    ],
)
def test_options_that_come_to_no_score_are_out_of_the_running(changes: dict[str, Any]) -> None:
    nodes = plan()
    records = judged(nodes, SCORES)
    trial = trial_of(nodes, "stage1")
    best = [name for name, options in trial.chosen.items() if options == choose(trial, records)]
    by_id = {node.id: node for node in nodes}
    # One of its two draws is enough: a mean over fewer would be a smaller budget.
    none = record(by_id[best[0]], **{"validation": {"val/dice_mean": 0.9}, **changes})
    assert choose(trial, {**records, best[0]: none}) == {"optim.lr": 0.002, "optim.warmup": 10}
    everyone = {name: record(by_id[name], **{"validation": {}, **changes}) for name in trial.chosen}
    assert "none came to a validation score dice_mean" in undecided(trial, {**records, **everyone})
    with pytest.raises(DataError, match="none came to a validation score dice_mean"):
        choose(trial, {**records, **everyone})


def test_nothing_to_choose() -> None:
    trial = trial_of(plan(choose=None), "scratch")
    assert choose(trial, {}) == {}
    assert with_choice(trial, {}) == trial.config


def test_a_further_option_makes_other_trials() -> None:
    wider = {**CHOOSE, "options": {**CHOOSE["options"], "optim.lr": [0.002, 0.001, 0.0005]}}  # type: ignore[dict-item]
    before, after = plan(), plan(choose=wider)
    kept = {node.id for node in before} & {node.id for node in after}
    assert {node.role for node in before if node.id in kept} == {"ancestor", "choice"}
    assert {node.id for node in before if node.role == "choice"} <= kept
