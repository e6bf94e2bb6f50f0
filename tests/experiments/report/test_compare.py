"""Arms pooled and compared: what is paired with what, on numbers that can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfoundry.experiments.axes import DEFAULTS
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report.answer import verdict
from brainfoundry.experiments.report.compare import (
    corrected,
    difference,
    estimate,
    in_same_repetitions,
    keyed,
    repetitions,
)
from brainfoundry.experiments.report.results import StudyResults, Trial
from brainfoundry.experiments.report.tables_grid import arms_of, comparators
from brainfoundry.experiments.stats import mean_interval
from brainfoundry.experiments.study import PrimarySpec
from brainfoundry.tasks.scores import ScoreTable
from tests.experiments.report.builders import FEW_SHOT, study, write_study

POLICIES = {"threshold": "0.5", "empty_policy": "excluded"}
RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.6, 0.9, 60)


def trial(
    values: Sequence[float],
    *,
    pretrained: bool = False,
    tested: int | None = None,
    first: int = 0,
    **point: Any,
) -> Trial:
    """A trial whose subjects first, first + 1, ... have these values."""
    rows: list[Mapping[str, Any]] = [
        {"subject": f"s{first + i}", "session": "0", "dice": value, "hd95": value}
        for i, value in enumerate(values)
    ]
    record = TrialRecord(
        study="s", id="t", kind="finetune", role="trial", point=point, state="finished", run_dir="r",
        test={"fold": tested},
    )  # fmt: skip
    return Trial(
        point={**DEFAULTS, **point},
        pretrained=pretrained,
        record=record,
        scores=ScoreTable.of(rows, POLICIES),
    )


def test_folds_that_are_tested_on_themselves_are_one_test_set() -> None:
    folds = [trial(BASE[:30], fold=0, tested=0), trial(BASE[30:], fold=1, tested=1, first=30)]
    found = estimate(folds, "dice")
    assert found is not None
    assert (found[0].n, found[0].draws) == (60, 1)
    expected = mean_interval(BASE.tolist(), bounds=(0, 1))
    assert (found[0].value, found[0].low, found[0].high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_folds_with_a_test_set_in_common_are_repetitions() -> None:
    folds = [trial(BASE, fold=0), trial(BASE + 0.01, fold=1)]
    found = estimate(folds, "dice")
    assert found is not None
    assert (found[0].n, found[0].draws) == (60, 2)
    assert found[0].sd == pytest.approx(0.01 / math.sqrt(2))


def test_draws_are_paired_whatever_their_order() -> None:
    level = {0: 0.0, 1: -0.2, 2: 0.1}
    scratch = [trial(BASE + up, draw=draw) for draw, up in level.items()]
    gains = {2: 0.03, 0: 0.01, 1: 0.02}
    pretrained = [
        trial(BASE + level[draw] + gain, draw=draw, pretrained=True) for draw, gain in gains.items()
    ]
    found = difference(pretrained, scratch, "dice")
    assert found is not None and found.draws is not None
    assert found.estimate.value == pytest.approx(0.02)
    assert found.estimate.sd == pytest.approx(0.01)
    assert (found.draws.draws, found.draws.seeds, found.estimate.n) == (3, 1, 60)


def test_a_draw_that_one_arm_lacks_is_left_out() -> None:
    scratch = [trial(BASE, draw=draw) for draw in (0, 1, 2)]
    pretrained = [trial(BASE + 0.01 * (draw + 1), draw=draw, pretrained=True) for draw in (0, 2, 3)]
    found = difference(pretrained, scratch, "dice")
    assert found is not None
    assert found.estimate.value == pytest.approx(0.02)  # draws 0 and 2
    assert found.estimate.draws == 2


def test_every_pretraining_seed_is_held_against_the_same_scratch() -> None:
    scratch = [trial(BASE, draw=draw) for draw in (0, 1)]
    pretrained = [
        trial(BASE + 0.01 * (seed + 1), draw=draw, pretrain_seed=seed, pretrained=True)
        for seed in (0, 1)
        for draw in (0, 1)
    ]
    found, turned = difference(pretrained, scratch, "dice"), difference(scratch, pretrained, "dice")
    assert found is not None and found.draws is not None and turned is not None
    assert (found.draws.seeds, found.draws.draws) == (2, 2)
    assert found.draws.by_seed == pytest.approx((0.01, 0.02))
    assert turned.estimate.value == pytest.approx(-found.estimate.value)
    assert (turned.estimate.low, turned.estimate.high) == pytest.approx(
        (-found.estimate.high, -found.estimate.low), abs=2e-3
    )


def test_seeds_of_two_pretrained_arms_are_paired_with_each_other() -> None:
    arms = [
        [
            trial(BASE + up * (seed + 1), draw=draw, pretrain_seed=seed, pretrained=True)
            for seed in (0, 1)
            for draw in (0, 1)
        ]
        for up in (0.03, 0.01)
    ]
    found = difference(arms[0], arms[1], "dice")
    assert found is not None and found.draws is not None
    assert found.draws.by_seed == pytest.approx((0.02, 0.04))


def test_an_unfinished_seed_keeps_the_draws_that_all_seeds_have() -> None:
    made = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    trials = [trial(BASE, draw=draw, pretrain_seed=seed, pretrained=True) for seed, draw in made]
    assert len(keyed(trials, "dice")) == 4


def test_subjects_that_are_undefined_somewhere_are_told() -> None:
    some = BASE.copy()
    some[:3] = math.nan
    found = estimate([trial(BASE, draw=0), trial(some, draw=1)], "dice")
    assert found is not None
    assert found[0].n == 57
    assert "3 subjects without a value in every draw are left out" in found[1]
    assert len(repetitions([trial(BASE, draw=0), trial(some, draw=1)], "dice")) == 2


def test_nothing_in_common_is_no_difference() -> None:
    assert difference([trial(BASE)], [trial(BASE, first=100)], "dice") is None
    assert difference([trial(BASE, draw=0)], [trial(BASE, draw=1)], "dice") is None
    assert difference([], [trial(BASE)], "dice") is None
    assert estimate([trial([math.nan] * 3)], "dice") is None


def test_less_distance_is_better() -> None:
    noise = RNG.normal(0, 0.01, 60)
    less = difference([trial(BASE - 0.05 + noise)], [trial(BASE)], "hd95")
    more = difference([trial(BASE + 0.05 + noise)], [trial(BASE)], "hd95")
    assert less is not None and more is not None
    assert less.better and not more.better
    assert less.test.wins == 60


def test_one_small_p_among_many_comparisons_is_not_bold() -> None:
    noise = np.random.default_rng(5).normal(0, 1, 60)
    noise -= noise.mean()
    weak = difference([trial(BASE + 0.01 * (noise + 0.3))], [trial(BASE)], "dice")
    none = difference([trial(BASE + 0.01 * noise)], [trial(BASE)], "dice")
    assert weak is not None and none is not None
    assert weak.better and 0.01 < weak.test.p_wilcoxon < 0.05
    alone, *_ = corrected([weak])
    assert alone.better and alone.estimate.better
    among, *_ = corrected([weak, none, none, none, none])
    assert not among.better and not among.estimate.better
    assert among.test.p_holm == pytest.approx(5 * weak.test.p_wilcoxon)


def test_no_interval_of_a_difference_exceeds_the_metrics_range() -> None:
    arms = [
        [trial([level, level + 0.01], draw=draw) for draw, level in enumerate(levels)]
        for levels in ((0.1, 0.9), (0.9, 0.1))
    ]
    found = difference(arms[0], arms[1], "dice")
    assert found is not None
    assert (found.estimate.low, found.estimate.high) == (-1.0, 1.0)


def test_rows_are_compared_with_the_first_arm_alone(tmp_path: Path) -> None:
    # As in table8: the primary endpoint's first arm is not the first of the grid.
    content = study(
        stages={**FEW_SHOT["stages"], "stage2": {"cohort": "brats", "recipe": "brats", "preset": "demo"}},
        inits={"scratch": [], "stage1": ["stage1"], "stage1+2": ["stage1", "stage2"]},
        grid=[{"size": ["tiny", "small"], "init": ["scratch", "stage1", "stage1+2"]}],
        primary={"metric": "dice_mean", "arms": ["stage1", "stage1+2"], "where": {"size": "small"}},
    )
    (one,) = StudyResults.open([write_study(tmp_path, content, change=lambda record: None)]).studies
    found = comparators(one, arms_of(one, ("size", "init")))
    assert {name: base.name for name, base in found.of.items()} == {
        "tiny, scratch": "tiny, stage1",
        "tiny, stage1": "small, stage1",  # of the primary endpoint
        "tiny, stage1+2": "tiny, stage1",
        "small, scratch": "small, stage1",
        "small, stage1+2": "small, stage1",
    }


def test_seeds_within_a_draw_are_no_further_draws() -> None:
    level = {0: 0.0, 1: 0.06, 2: -0.03}
    crossed = [
        trial(BASE + up + 0.01 * seed, draw=draw, seed=seed) for draw, up in level.items() for seed in (0, 1)
    ]
    averaged = [trial(BASE + up + 0.005, draw=draw) for draw, up in level.items()]
    found, expected = estimate(crossed, "dice"), estimate(averaged, "dice")
    assert found is not None and expected is not None
    assert (found[0].draws, found[0].low, found[0].high) == pytest.approx(
        (3, expected[0].low, expected[0].high)
    )
    assert repetitions(crossed, "dice") == pytest.approx(repetitions(averaged, "dice"))
    # A comparator that lacks a seed is paired with the seeds that it has.
    base = [trial(BASE, draw=draw, seed=0) for draw in level]
    paired = difference(crossed, base, "dice")
    assert paired is not None and paired.draws is not None
    assert (paired.draws.draws, paired.estimate.value) == (3, pytest.approx(0.01))


def test_draws_within_folds_of_one_test_set_are_no_further_folds() -> None:
    trials = [trial(BASE + 0.1 * fold, fold=fold, draw=draw) for fold in (0, 1) for draw in (0, 1, 2)]
    found = estimate(trials, "dice")
    assert found is not None and found[0].draws == 2


def test_pretraining_seeds_of_one_subset_have_an_interval() -> None:
    ups = (0.02, 0.03, 0.01)
    pretrained = [trial(BASE + up, pretrain_seed=seed, pretrained=True) for seed, up in enumerate(ups)]
    found = difference(pretrained, [trial(BASE)], "dice")
    draws = difference([trial(BASE + up, draw=i) for i, up in enumerate(ups)],
                       [trial(BASE, draw=i) for i in range(3)], "dice")  # fmt: skip
    assert found is not None and draws is not None and found.draws is not None
    assert (found.draws.seeds, found.draws.draws) == (3, 1)
    assert found.draws.covers.startswith("Covers 3 pretraining seeds and test subjects; how subsets")
    assert "3 pretraining seeds" in found.warnings[0]
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (draws.estimate.low, draws.estimate.high), abs=1e-3
    )


def distances(values: Sequence[float], counted: Sequence[float]) -> Trial:
    rows: list[Mapping[str, Any]] = [
        {"subject": f"s{i}", "session": "0", "hd95_et": value, "hd95_et_challenge": missed}
        for i, (value, missed) in enumerate(zip(values, counted, strict=True))
    ]
    return Trial(
        point=DEFAULTS, pretrained=False, record=trial([0.5]).record, scores=ScoreTable.of(rows, POLICIES)
    )


def test_finding_less_is_no_smaller_distance() -> None:
    far = RNG.uniform(4.0, 8.0, 60)
    near = far - RNG.uniform(0.5, 1.5, 60)
    missed = near.copy()
    missed[:20] = math.nan
    whole, better = distances(far.tolist(), far.tolist()), distances(near.tolist(), near.tolist())
    fewer = distances(missed.tolist(), np.where(np.isnan(missed), 373.13, missed).tolist())
    honest, cheap = difference([better], [whole], "hd95_et"), difference([fewer], [whole], "hd95_et")
    assert honest is not None and honest.better
    assert cheap is not None and cheap.estimate.high < 0, "the case is not the one that is meant"
    assert not cheap.better and not cheap.estimate.better


def test_arms_are_ranked_in_the_same_repetitions() -> None:
    draws = {n: keyed([trial(BASE, draw=i) for i in n], "dice") for n in ((0, 1, 2), (0, 1), (0,))}
    arms = {"a": draws[0, 1, 2], "b": draws[0, 1, 2], "once": draws[0,]}
    assert set(in_same_repetitions(arms)) == {"a", "b"}
    found = in_same_repetitions({"a": draws[0, 1, 2], "under way": draws[0, 1]})
    assert [len(of) for of in found.values()] == [2, 2]
    assert in_same_repetitions({}) == {}


def test_the_verdict_on_a_distance_is_not_in_favour_of_finding_less() -> None:
    far = RNG.uniform(4.0, 8.0, 60)
    near = far - RNG.uniform(0.5, 1.5, 60)
    near[:20] = math.nan
    whole = distances(far.tolist(), far.tolist())
    fewer = distances(near.tolist(), np.where(np.isnan(near), 374.0, near).tolist())
    primary = PrimarySpec(metric="hd95_et", axis="init", arms=("scratch", "stage1"))
    for arm, other in ((fewer, whole), (whole, fewer)):
        found = difference([arm], [other], "hd95_et")
        assert found is not None and found.flattered and not found.clear
        assert "no longer where a missed region counts" in verdict(found, primary)
        assert "in favour" not in verdict(found, primary)


def test_it_is_said_what_was_repeated() -> None:
    seeds = [trial(BASE + 0.01 * seed, seed=seed) for seed in range(3)]
    found = difference(seeds, [trial(BASE, seed=seed) for seed in range(3)], "dice")
    assert found is not None and found.draws is not None
    assert found.draws.covers.startswith("Covers repeated fine-tuning")
    assert "how subsets of labels and pretraining seeds differ is not covered" in found.draws.covers
    assert found.warnings[0].startswith("3 seeds:")


def test_as_many_trials_as_the_same_repetitions_allow() -> None:
    def arm(*draws: int) -> Any:
        return keyed([trial(BASE, draw=draw) for draw in draws], "dice")

    # One that has just begun does not drag the others down to its only draw.
    found = in_same_repetitions({"a": arm(0, 1, 2, 3, 4), "b": arm(0, 1, 2, 3), "c": arm(0)})
    assert {name: len(of) for name, of in found.items()} == {"a": 4, "b": 4}
    found = in_same_repetitions({"a": arm(0, 1, 2), "b": arm(0, 1, 2), "c": arm(4)})
    assert {name: len(of) for name, of in found.items()} == {"a": 3, "b": 3}
    assert in_same_repetitions({"a": arm(0), "b": arm(1)}) == {}
