"""Points of a search: drawn as promised, judged by validation, found again after an interruption."""

from __future__ import annotations

import builtins
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from brainfoundry.core import files
from brainfoundry.core.config import to_yaml
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.search import Search, draw, require_optuna
from brainfoundry.experiments.study import SearchSpec
from brainfoundry.experiments.wave import PERCENT, SCORE
from tests.experiments.test_records import record
from tests.experiments.trained import node, study_folder

SPACE = {
    "optim.lr": {"loguniform": (1e-4, 1e-2)},
    "optim.weight_decay": {"uniform": (0.0, 0.2)},
    "data.groups_per_step": {"randint": (1, 5)},
    "data.crop": {"choice": ((64, 32, 32), (96, 96, 96))},
}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    base = node(study_folder(tmp_path), "/no/shards", "ft-nano-scratch-1a2b3c")
    return Search(base=base, spec=SearchSpec(space=SPACE, trials=6))


def of(search: Search, index: int, score: float | None, **changes: Any) -> TrialRecord:
    work = search.drawn({"draw": index})
    validation = {} if score is None else {"val/dice_mean": score}
    return record(work.node.id, role="choice", chosen=work.chosen, validation=validation, **changes)


@given(index=st.integers(0, 10_000))
def test_a_draw_lies_in_its_space(index: int) -> None:
    found = draw(SPACE, index)
    assert 1e-4 <= found["optim.lr"] <= 1e-2 and 0 <= found["optim.weight_decay"] <= 0.2
    assert found["data.groups_per_step"] in (1, 2, 3, 4)
    assert found["data.crop"] in SPACE["data.crop"]["choice"]
    assert draw(SPACE, index) == found
    # What else is searched does not move it.
    assert draw({"optim.lr": SPACE["optim.lr"]}, index) == {"optim.lr": found["optim.lr"]}


def test_draws_spread_over_the_space() -> None:
    drawn = [draw(SPACE, i) for i in range(2000)]
    logs = np.log10([d["optim.lr"] for d in drawn])
    assert np.histogram(logs, 4, (-4, -2))[0] == pytest.approx([500] * 4, abs=80)
    assert np.histogram([d["optim.weight_decay"] for d in drawn], 4, (0, 0.2))[0] == pytest.approx(
        [500] * 4, abs=80
    )
    counts = np.bincount([d["data.groups_per_step"] for d in drawn], minlength=5)
    assert counts[0] == 0 and counts[1:] == pytest.approx([500] * 4, abs=80)
    assert abs(float(np.corrcoef(logs, [d["optim.weight_decay"] for d in drawn])[0, 1])) < 0.1


def test_the_first_draws_never_change() -> None:
    """Golden: a study that is resumed with a later release finds its points."""
    assert [draw(SPACE, i)["optim.lr"] for i in range(4)] == [0.007859, 0.003218, 0.006916, 0.003229]


def test_a_point_is_a_run_of_its_own_without_a_test_set(search: Search) -> None:
    one, two = (search.point({"optim.lr": lr}) for lr in (0.001, 0.002))
    assert one.node.id != two.node.id and one.node.id.startswith("search-nano-scratch-1a2b3c-")
    assert one.config.optim.lr == 0.001 and one.config.name == one.node.id == one.node.config.name
    assert one.node.test is None and one.node.role == "choice" and one.chosen == {"optim.lr": 0.001}
    assert search.point({"optim.lr": 0.001}) == one
    assert "role=choice" in one.config.tracking.tags and "optim.lr=0.001" in one.config.tracking.tags


def test_finished_draws_are_not_drawn_again(search: Search) -> None:
    assert search.waiting({}) == [0, 1, 2, 3, 4, 5]
    states = {0: "finished", 2: "stopped", 3: "failed", 4: "unfit"}
    records = {r.id: r for r in (of(search, i, 0.5, state=s) for i, s in states.items())}
    assert search.waiting(records) == [1, 3, 5]
    assert [r.id for r in search.failed(records)] == [search.drawn({"draw": 3}).node.id]


def test_a_point_that_is_drawn_twice_runs_once(search: Search) -> None:
    space = {"data.groups_per_step": {"choice": (1, 2)}}
    small = replace(search, spec=SearchSpec(space=space, trials=12))
    assert len(small.waiting({})) == 2


def test_the_best_is_by_validation_alone(search: Search) -> None:
    assert search.best({}) is None
    records = [
        of(search, 0, 0.5, metrics={"dice_mean": 0.9}),
        of(search, 1, 0.7, metrics={"dice_mean": 0.1}),
        of(search, 2, 0.8, state="stopped"),
        of(search, 3, None),
        record("search-another-1a2b3c-000000", validation={"val/dice_mean": 0.99}),
    ]
    best = search.best({r.id: r for r in records})
    assert best is not None and best.node.id == records[1].id and best.chosen == records[1].chosen
    # A record comes back from JSON with lists: it still is the same point.
    listed = replace(
        records[1], chosen={**records[1].chosen, "data.crop": list(records[1].chosen["data.crop"])}
    )
    again = search.best({listed.id: listed})
    assert again is not None and again.node.id == listed.id and again.config.data == best.config.data


def test_where_less_is_better(search: Search) -> None:
    config = search.base.config
    base = replace(search.base, config=replace(config, keep=replace(config.keep, best_by="hd95_mean")))
    lower = replace(search, base=base)
    assert search.higher and not lower.higher
    records = [
        replace(of(lower, i, None), validation={"val/hd95_mean": v}) for i, v in enumerate((9.0, 3.0, 5.0))
    ]
    best = lower.best({r.id: r for r in records})
    assert best is not None and best.node.id == records[1].id


def test_the_table_has_the_best_first(search: Search) -> None:
    states = [(0.5, "finished"), (None, "failed"), (0.7, "finished")]
    records = [of(search, i, score, state=state) for i, (score, state) in enumerate(states)]
    out = io.StringIO()
    search.table({r.id: r for r in records}, Console(file=out, width=120))
    rows = [line for line in out.getvalue().splitlines() if "finished" in line or "failed" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["0.7000", "0.5000", "-"]
    assert str(records[2].chosen["optim.lr"]) in rows[0]


def test_asha_gives_up_the_worst_and_nobody_at_the_end(search: Search) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.trial_id = name

    assert search.scheduler() is None
    scheduler = replace(search, spec=replace(search.spec, scheduler="asha")).scheduler()
    assert scheduler is not None
    scheduler.set_search_properties(SCORE, "max")
    trials = [Named(str(i)) for i in range(6)]
    decisions = {}
    for i, trial in enumerate(trials):
        scheduler.on_trial_add(None, trial)
        decisions[i] = scheduler.on_trial_result(None, trial, {PERCENT: 12.5, SCORE: 1.0 - i / 10})
    assert decisions[0] == "CONTINUE" and all(decisions[i] == "STOP" for i in range(1, 6))
    assert scheduler.on_trial_result(None, trials[0], {PERCENT: 99.0, SCORE: 1.0}) == "CONTINUE"
    assert scheduler.on_trial_result(None, trials[0], {PERCENT: 50.0}) == "CONTINUE"  # no verdict yet


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"Optuna, which is not installed.*brainfoundry\[tune\]"):
        require_optuna()


def test_optuna_is_told_what_is_done_and_what_was_begun(search: Search, tmp_path: Path) -> None:
    search = replace(search, spec=replace(search.spec, algorithm="optuna"))
    study = study_folder(tmp_path)
    records = {r.id: r for r in (of(search, 0, 0.5), of(search, 1, 0.7, state="stopped"))}
    begun = search.drawn({"draw": 2})
    files.write_bytes(files.join(begun.run_dir, "config.yaml"), to_yaml(begun.config).encode())
    searcher, left = search.optuna(study, records)
    assert left == 4
    values = sorted(t.value for t in searcher.study.trials if t.value is not None)
    assert values == [0.5, 0.7]
    first = search.suggested(searcher.suggest("a"))
    assert first.node.id == begun.node.id, "the run that was begun is not taken up first"
    second = search.suggested(searcher.suggest("b"))
    assert second.node.id not in {begun.node.id, *records}
    assert 1e-4 <= second.chosen["optim.lr"] <= 1e-2
    assert tuple(second.chosen["data.crop"]) in SPACE["data.crop"]["choice"]
    assert math.log10(second.chosen["optim.lr"]) < 0


def test_optuna_tries_no_point_twice(search: Search, tmp_path: Path) -> None:
    space = {"data.groups_per_step": {"randint": (1, 4)}, "optim.warmup": {"choice": (5, 10)}}
    search = replace(search, spec=SearchSpec(space=space, trials=12, algorithm="optuna"))
    done = search.point({"data.groups_per_step": 2, "optim.warmup": 5})
    records = {
        r.id: r
        for r in [record(done.node.id, role="choice", chosen=done.chosen, validation={"val/dice_mean": 0.9})]
    }
    searcher, _ = search.optuna(study_folder(tmp_path), records)
    found = [searcher.suggest(f"t{i}") for i in range(6)]
    # Six points there are; one is done, the others run or have ended without a score.
    names = [search.suggested(one).node.id for one in found if isinstance(one, dict)]
    assert len(names) == len(set(names)) == 5 and done.node.id not in names
    assert found[5] == "FINISHED"
    searcher.on_trial_complete("t0", {SCORE: 0.4})
    searcher.on_trial_complete("t1", None, error=True)
    assert searcher.suggest("t9") == "FINISHED"
    assert sorted(t.value for t in searcher.study.trials if t.value is not None) == [0.4, 0.9]


def test_optuna_draws_other_points_after_an_interruption(search: Search, tmp_path: Path) -> None:
    search = replace(search, spec=replace(search.spec, algorithm="optuna"))
    study = study_folder(tmp_path)
    point = search.drawn({"draw": 0})
    told = record(point.node.id, role="choice", chosen=point.chosen, validation={"val/dice_mean": 0.5})
    searchers = [search.optuna(study, known)[0] for known in ({}, {told.id: told})]
    asks = [searcher.study.ask(searcher._space).params for searcher in searchers]
    assert asks[0] != asks[1], "the sampler begins anew"


def test_optuna_tries_a_point_again_that_failed_before_it_began(search: Search, tmp_path: Path) -> None:
    search = replace(search, spec=replace(search.spec, algorithm="optuna"))
    gone = replace(of(search, 0, None), state="failed", error="a node is gone")
    searcher, left = search.optuna(study_folder(tmp_path), {gone.id: gone})
    assert left == 6 and search.suggested(searcher.suggest("a")).node.id == gone.id


def test_optuna_looks_elsewhere_until_the_space_is_exhausted(search: Search, tmp_path: Path) -> None:
    """A sampler that has found a good place draws it again and again."""
    space = {
        "data.groups_per_step": {"randint": (1, 5)},
        "optim.warmup": {"choice": (1, 2, 3)},
        "data.subjects_per_group": {"choice": (1, 2)},
    }
    search = replace(search, spec=SearchSpec(space=space, trials=24, algorithm="optuna"))
    searcher, _ = search.optuna(study_folder(tmp_path), {})
    names = set()
    for i in range(24):
        found = searcher.suggest(str(i))
        assert isinstance(found, dict), f"given up after {i} of 24 points"
        names.add(search.suggested(found).node.id)
        searcher.on_trial_complete(str(i), {SCORE: 1.0 if found["data.groups_per_step"] == 1 else 0.0})
    assert len(names) == 24 and searcher.suggest("25") == "FINISHED"
