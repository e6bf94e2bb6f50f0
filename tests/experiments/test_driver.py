"""How a study is driven: what runs when, what waits, what is done again, and on how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core.errors import ClusterError, ConfigError
from brainfoundry.experiments import driver
from brainfoundry.experiments.board import Board
from brainfoundry.experiments.capacity import Footprint, at_once, cores, fits, footprint
from brainfoundry.experiments.driver import StudyOptions, run_study
from brainfoundry.experiments.node import before
from brainfoundry.experiments.records import StudyFolder, read_records
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.resplit import resplit
from brainfoundry.training.config import ClusterConfig
from tests.experiments.driven import Waves, drive, planned, stems
from tests.experiments.test_records import record
from tests.experiments.trained import NOWHERE, node, study_folder
from tests.training.labelled import make_labelled

# --- what runs when


def test_ancestors_first_and_everything_once(labelled_shards: str, tmp_path: Path, waves: Waves) -> None:
    found = drive(labelled_shards, tmp_path)
    assert [sorted(stems(wave)) for wave in waves.ran] == [
        ["ft-nano-scratch", "stage2-nano"],
        ["ft-nano-stage2"],
    ]
    assert not found.failed and not found.waiting and len(found.records) == 3
    # Everything is part of the study's MLflow experiment, with its point as tags.
    tracking = next(w.config.tracking for n, w in waves.work.items() if n.startswith("ft-nano-stage2"))
    assert tracking.experiment == "study-mini" and {"init=stage2", "size=nano", "role=trial"} <= set(
        tracking.tags
    )
    assert drive(labelled_shards, tmp_path).records == found.records
    assert len(waves.ran) == 2, "a study that is done ran again"


def test_a_trial_that_fails_stops_only_what_starts_from_it(
    labelled_shards: str, tmp_path: Path, waves: Waves
) -> None:
    waves.failing = ("stage2",)
    found = drive(labelled_shards, tmp_path)
    assert stems(list(found.failed)) == ["stage2-nano"]
    assert [stems([a, b]) for a, b in found.waiting.items()] == [["ft-nano-stage2", "stage2-nano"]]
    assert {n.rpartition("-")[0]: r.state for n, r in found.records.items()} == {
        "stage2-nano": "failed",
        "ft-nano-scratch": "finished",
    }
    waves.failing, waves.ran = (), []
    again = drive(labelled_shards, tmp_path)  # tried again, and only what is not done
    assert [stems(wave) for wave in waves.ran] == [["stage2-nano"], ["ft-nano-stage2"]]
    assert not again.failed and not again.waiting


def test_a_driver_that_ends_in_the_middle_of_a_wave(
    labelled_shards: str, tmp_path: Path, waves: Waves
) -> None:
    waves.killed_after = 1
    with pytest.raises(KeyboardInterrupt):
        drive(labelled_shards, tmp_path)
    done = set(read_records(str(tmp_path / "mini")))
    assert len(done) == 1
    waves.killed_after, waves.ran = None, []
    drive(labelled_shards, tmp_path)
    assert not done & {name for wave in waves.ran for name in wave} and sum(map(len, waves.ran)) == 2


def test_choices_are_made_before_the_trials_that_use_them(
    labelled_shards: str, tmp_path: Path, waves: Waves
) -> None:
    choose = {"options": {"optim.lr": [0.5, 0.25]}, "per": ["init"], "by": "dice_mean"}
    found = drive(labelled_shards, tmp_path, choose=choose)
    assert not found.waiting
    trials = [r for r in found.records.values() if r.role == "trial"]
    assert [t.chosen for t in trials] == [{"optim.lr": 0.25}] * 2  # the fake validation likes small rates
    assert {waves.work[t.id].config.optim.lr for t in trials} == {0.25}
    choices = [r for r in found.records.values() if r.role == "choice"]
    assert sorted(r.chosen["optim.lr"] for r in choices) == [0.25, 0.25, 0.5, 0.5]


def test_a_rate_that_does_not_train_is_out_of_the_running(
    labelled_shards: str, tmp_path: Path, waves: Waves
) -> None:
    choose = {"options": {"optim.lr": [0.5, 0.25]}, "per": ["init"], "by": "dice_mean"}
    waves.unfit = (0.25,)  # the one that validation would have liked best
    found = drive(labelled_shards, tmp_path, choose=choose)
    assert not found.waiting and not found.failed
    assert [r.chosen for r in found.records.values() if r.role == "trial"] == [{"optim.lr": 0.5}] * 2
    waves.ran.clear()
    drive(labelled_shards, tmp_path, choose=choose)
    assert not waves.ran, "what does not train was tried again"


@pytest.mark.parametrize("how", ["choose", "search"])
def test_where_nothing_trains_all_is_tried_again(
    how: str, labelled_shards: str, tmp_path: Path, waves: Waves
) -> None:
    """A broken scan makes every rate diverge; once it is withdrawn they do not."""
    asked: dict[str, Any] = {
        "choose": {"options": {"optim.lr": [0.5, 0.25]}, "per": ["init"], "by": "dice_mean"},
        "search": {"space": {"optim.lr": {"choice": [0.5, 0.25]}}, "trials": 8},
    }
    waves.unfit = (0.5, 0.25)
    found = drive(labelled_shards, tmp_path, **{how: asked[how]})
    assert len(found.waiting) == 2 and not found.failed
    why = "none came to a validation score" if how == "choose" else "no point was trained to the end"
    assert all(why in reason for reason in found.waiting.values())
    waves.unfit, waves.ran = (), []
    again = drive(labelled_shards, tmp_path, **{how: asked[how]})
    assert not again.waiting and sum(map(len, waves.ran)) == 6  # two rates and a trial for each of two arms


def test_a_search_whose_point_failed_waits_for_it(labelled_shards: str, tmp_path: Path, waves: Waves) -> None:
    search = {"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "trials": 3}
    waves.failing = ("search-nano-stage2",)
    found = drive(labelled_shards, tmp_path, search=search)
    (blocked,) = found.waiting.values()
    assert next(iter(found.waiting)).startswith("ft-nano-stage2")
    assert "3 point(s) failed" in blocked and "out of luck" in blocked
    waves.failing, waves.ran = (), []
    again = drive(labelled_shards, tmp_path, search=search)
    assert not again.waiting and [len(wave) for wave in waves.ran] == [3, 1]


def test_a_search_is_a_wave_of_its_own_and_its_best_is_the_trial(
    labelled_shards: str, tmp_path: Path, waves: Waves, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "trials": 4}
    found = drive(labelled_shards, tmp_path, search=search)
    points = [r for r in found.records.values() if r.id.startswith("search-")]
    assert len(points) == 8 and all(r.test is None and not r.metrics for r in points)
    rates = sorted({r.chosen["optim.lr"] for r in points})
    assert len(rates) == 4, "the arms were not searched at the same points"
    trials = {n: r for n, r in found.records.items() if r.role == "trial"}
    assert {r.chosen["optim.lr"] for r in trials.values()} == {rates[0]}
    # The trial is the best point's own run: nothing is trained twice.
    for name in trials:
        assert waves.work[name].run_dir.rpartition("/")[2] in {r.id for r in points}
    assert f"{1 - rates[0]:.4f}" in capsys.readouterr().out
    waves.ran.clear()
    drive(labelled_shards, tmp_path, search=search)
    assert waves.ran == []


def test_a_search_never_looks_at_the_test_set(labelled_shards: str, tmp_path: Path, waves: Waves) -> None:
    shards = make_labelled(tmp_path / "no-val")
    index = ShardSet.open(shards).index
    rows = zip(*(index[n].to_pylist() for n in ("subject", "split", "fold")), strict=True)
    resplit(shards, {s: ("train", 0 if f is None else f) for s, _, f in rows}, {"method": "conversion"})
    search = {"space": {"optim.lr": {"uniform": [1e-4, 1e-2]}}, "trials": 2}
    grid = [{"size": "nano", "fold": 0}]
    with pytest.raises(ConfigError, match=r"nobody but the test set is held out.*--val"):
        drive(shards, tmp_path, search=search, grid=grid, test={"on": "fold"}, primary=None)
    assert waves.ran == []


def test_an_ancestor_that_nobody_planned(labelled_shards: str, tmp_path: Path, waves: Waves) -> None:
    spec, nodes = planned(labelled_shards, tmp_path)
    trials = [n for n in nodes if before(n)]
    with pytest.raises(ConfigError, match=r"ft-nano-stage2-.* starts from stage2-nano-.*neither planned nor"):
        run_study(spec, trials, str(tmp_path / "mini"), StudyOptions(cohorts={}, tracking=NOWHERE))


def test_external_trials_are_named_with_what_fills_them(
    labelled_shards: str, tmp_path: Path, waves: Waves
) -> None:
    inits = {"scratch": [], "ct": "ct"}
    found = drive(labelled_shards, tmp_path, inits=inits, grid=[{"size": "nano", "init": ["scratch", "ct"]}],
                  primary=None)  # fmt: skip
    assert [sorted(stems(wave)) for wave in waves.ran] == [["ft-nano-scratch"]]
    assert [c for n, c in found.external.items() if n.startswith("ft-nano-ct")] and not found.failed


def test_a_driver_that_lost_its_study_leaves_mlflow_to_the_other(
    labelled_shards: str, tmp_path: Path, waves: Waves, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(driver, "close_study", lambda *a, **how: closed.append(how["title"]))
    drive(labelled_shards, tmp_path)
    assert closed == ["A study in miniature"] and waves.checks == 2, (
        "the waves are not told whose study it is"
    )

    def lost() -> None:
        raise ClusterError("another driver took study mini over")

    @contextmanager
    def driving(study: StudyFolder) -> Iterator[Callable[[], None]]:
        yield lost

    monkeypatch.setattr(driver, "driving", driving)
    with pytest.raises(ClusterError, match="took study mini over"):
        drive(labelled_shards, tmp_path / "lost")
    assert len(closed) == 1, "it wrote over the other's run"


def test_a_model_is_registered_for_every_arm(
    labelled_shards: str, tmp_path: Path, waves: Waves, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow's own part has its tests; here it is which of the trials it is given.
    made: dict[str, str] = {}
    monkeypatch.setattr(driver, "open_study", lambda *_, **__: "parent")
    monkeypatch.setattr(driver, "close_study", lambda *_, **__: None)
    monkeypatch.setattr(
        driver, "register", lambda uri, run, name, checkpoint, tags: made.update({name: tags["node"]})
    )
    grid = [{"size": ["nano", "tiny"], "init": ["scratch", "stage2"], "seed": [0, 1]}]
    waves.scores = {"ft-nano-scratch-seed1": 0.7, "ft-nano-scratch": 0.6}
    drive(labelled_shards, tmp_path / "val", grid=grid)
    assert sorted(made) == [f"study-mini-{a}-{b}" for a in ("scratch", "stage2") for b in ("nano", "tiny")]
    assert made["study-mini-scratch-nano"].startswith("ft-nano-scratch-seed1")
    # With nobody held out but the test set, its scores choose nothing.
    waves.chosen_on = ""
    drive(labelled_shards, tmp_path / "none", grid=grid)
    assert stems([made["study-mini-scratch-nano"]]) == ["ft-nano-scratch"]


# --- how many at once


@given(
    nodes=st.lists(
        st.fixed_dictionaries({"CPU": st.integers(0, 16).map(float), "GPU": st.integers(0, 4).map(float)}),
        min_size=1, max_size=4,
    ),
    workers=st.integers(1, 4),
    cpus=st.sampled_from([0.5, 0.75, 1.0, 1.25, 3.0]),
    gpus=st.integers(0, 1),
)  # fmt: skip
def test_what_runs_at_once_fits_whole(
    nodes: list[dict[str, float]], workers: int, cpus: float, gpus: int
) -> None:
    n = fits(Footprint(workers=workers, cpus=cpus, gpus=gpus), nodes)
    for resource, each in (("CPU", cpus), ("GPU", gpus)):
        assert n * workers * each <= sum(node[resource] for node in nodes) + 1e-6
    # One more would not: the workers that fit on the nodes, one by one, are used up.
    places = [int(node["CPU"] / cpus + 1e-9) for node in nodes]
    if gpus:
        places = [min(p, int(node["GPU"])) for p, node in zip(places, nodes, strict=True)]
    assert (n + 1) * workers > sum(places) >= n * workers


def test_a_trial_takes_its_workers_and_their_readers() -> None:
    cluster = ClusterConfig(workers=2, cpus_per_worker=1.0, fetch_cpus=0.5, fetchers=2)
    assert footprint(cluster, [{"CPU": 8.0}]) == Footprint(workers=2, cpus=2.0, gpus=0)
    assert footprint(cluster, [{"CPU": 8.0}, {"GPU": 1.0}]).gpus == 1
    assert fits(footprint(cluster, [{"CPU": 8.0}]), [{"CPU": 8.0}]) == 2
    assert (
        fits(footprint(cluster, [{"CPU": 8.0}]), [{"CPU": 3.0}] * 4) == 2
    )  # a worker and its readers a node


def test_a_trial_is_judged_on_the_cores_it_was_trained_on() -> None:
    small = ClusterConfig(workers=1, cpus_per_worker=0.75, fetch_cpus=0.25)
    assert cores(small) == 1  # two of them on two cores do not wait for each other
    assert cores(replace(small, cpus_per_worker=1.0)) == 2
    assert cores(ClusterConfig(workers=2, cpus_per_worker=1.0, fetch_cpus=0.5, fetchers=2)) == 4


def test_a_cluster_that_is_too_small_for_one_trial(
    labelled_shards: str, tmp_path: Path, ray_local: int
) -> None:
    one = node(study_folder(tmp_path), labelled_shards).config
    assert at_once([one]) == 5  # 4 CPUs, 0.75 each
    large = replace(one, name="large", cluster=replace(one.cluster, cpus_per_worker=2.5, workers=2))
    assert at_once([one, replace(large, cluster=replace(large.cluster, workers=1))]) == 1
    with pytest.raises(
        ClusterError, match=r"too small for one trial \(large\): 2 workers need 5.5 CPUs.*has 4"
    ):
        at_once([one, large])


def test_lines_tell_the_score_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Board("mini", 3, "dice_mean", clock=lambda: now[0]) as board:
        now[0] = 60.0
        scored = {"metrics": {"dice_mean": 0.71234}, "test": {"subjects": 4}, "seconds": 60.0}
        board.ended(record("ft-a", **scored))
        board.ended(record("ft-b", state="failed", error="no luck"))
        board.more(1)
        board.ended(record("search-c", state="stopped", steps=12, validation={"val/dice_mean": 0.2}))
    assert capsys.readouterr().out.splitlines() == [
        "[1/3] ft-a: finished, dice_mean 0.7123 on 4 test subjects, trained in 1 min 00 s; 2 left, about "
        "2 min 00 s",
        "[2/3] ft-b: FAILED: no luck; 1 left, about 30 s",
        "[3/4] search-c: stopped early at step 12, 0.2000 in validation (dice_mean); 1 left, about 20 s",
    ]
