"""What a study costs: arithmetic before anything ran, measured afterwards; hours on so many devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.calibration import ARITHMETIC, Calibration, calibration_of, read_calibration
from brainfoundry.experiments.cost import estimate_study, makespan
from brainfoundry.experiments.node import Node, search_name
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.spec import load_study, read_study
from brainfoundry.training.estimate import estimate
from tests.experiments.cohort_infos import cohorts, study


@pytest.fixture
def nodes() -> tuple[Node, ...]:
    return plan_study(read_study(study()), cohorts(), "/runs")


def record(node: Node, *, step_s: float = 0.5, **changes: Any) -> TrialRecord:
    steps = node.config.optim.steps
    values: dict[str, Any] = {
        "study": "mine", "id": node.id, "kind": node.kind, "role": node.role, "point": node.point,
        "state": "finished", "run_dir": "/runs", "steps": steps, "seconds": step_s * steps, "device": "a CPU",
        "device_hours": step_s * steps / 3600, "parameters": 1_000_000,
    }  # fmt: skip
    return TrialRecord(**{**values, **changes})


def test_before_anything_ran_it_is_arithmetic(nodes: tuple[Node, ...]) -> None:
    cost = estimate_study(nodes, {})
    assert cost.device == ARITHMETIC
    expected = [estimate(node.config, 1) for node in nodes]
    low, high = cost.device_hours()
    assert low == pytest.approx(sum(one["gpu_hours_low"] for one in expected))
    assert high == pytest.approx(sum(one["gpu_hours_high"] for one in expected))
    text = cost.text(devices=(1,))
    assert "arithmetic, not measured" in text
    assert "pretrain-ukb: 1 run(s) of" in text and "the paper: 3 to 6 days on 8 to 64 A100s" in text
    rows = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in text.splitlines()
        if "│" in line
    }
    assert rows["ancestors"][0] == "2" and rows["trials"][0] == rows["trials"][4] == "12"
    assert rows["init stage1"][0] == "4" and rows["share 5"][0] == "6"
    assert "fold 0" not in rows  # an axis that does not vary
    assert rows["all"][0] == "14"


def test_epochs_are_counted_in_the_subjects_of_the_trial() -> None:
    spec = load_study("table9", "reference")
    planned = plan_study(spec, cohorts(), "/runs")
    steps = {
        node.point["share"]: row.steps
        for node, row in zip(planned, estimate_study(planned, {}).rows, strict=True)
        if node.role == "trial"
    }
    assert steps == {
        5: 300,
        10: 600,
        20: 1200,
        40: 2400,
        100: 6000,
    }  # 300 epochs of 4 to 80 subjects, 4 a step


def test_what_is_done_is_not_counted_again(nodes: tuple[Node, ...]) -> None:
    records = {
        nodes[0].id: record(nodes[0]),
        nodes[-1].id: record(nodes[-1], state="failed", seconds=None, device_hours=None),
        nodes[-2].id: record(nodes[-2], state="stopped"),
    }
    cost = estimate_study(nodes, records)
    states = [row.state for row in cost.rows]
    assert (states[0], states[-1], states[-2], states.count("to do")) == ("done", "failed", "done", 11)
    assert cost.spent_hours == pytest.approx(
        records[nodes[0].id].device_hours + records[nodes[-2].id].device_hours
    )  # type: ignore[operator]
    assert cost.rows[0].disk_gb == pytest.approx(
        4 * 1_000_000 * 12 / 1e9
    )  # the last three and the best, as it is
    left = estimate_study([node for node in nodes if node.id not in (nodes[0].id, nodes[-2].id)], {})
    assert cost.device_hours() == pytest.approx(left.device_hours())
    assert "spent so far" in cost.text()


def test_finished_runs_calibrate(nodes: tuple[Node, ...], tmp_path: Path) -> None:
    done = {
        node.id: record(node, step_s=0.5) for node in nodes if node.id.startswith("ft-nano-scratch-share5")
    }
    calibration = calibration_of(nodes, done)
    (measured,) = calibration.measured  # both runs did the same
    assert (measured.device, measured.network, measured.objective, measured.steps) == (
        "a CPU",
        "nano",
        "segmentation",
        320,
    )
    trial = nodes[-1].config
    time = calibration.step_time(trial)
    assert time is not None and (time.low_s, time.high_s, time.source) == (0.5, 0.5, "measured")

    twice = replace(trial, data=replace(trial.data, groups_per_step=2 * trial.data.groups_per_step))
    time = calibration.step_time(twice)
    assert time is not None and (time.low_s, time.source) == (pytest.approx(1.0), "scaled from others")

    pretraining = nodes[0].config  # another network: in proportion to its work
    time = calibration.step_time(pretraining)
    work = [estimate(config, 1)["tflop_per_worker_step"] for config in (pretraining, trial)]
    assert time is not None and time.low_s == pytest.approx(0.5 * work[0] / work[1])

    cost = estimate_study(nodes, done, calibration)
    assert cost.device == "a CPU" and "arithmetic" not in cost.text()
    trials = cost.device_hours(lambda row: row.node.role == "trial")
    assert trials == pytest.approx((10 * 160 * 0.5 / 3600,) * 2)

    files.write_json(str(tmp_path / "calibration.json"), calibration.to_dict())
    assert read_calibration(str(tmp_path / "calibration.json")) == calibration


def test_runs_that_tell_nothing_do_not_calibrate(nodes: tuple[Node, ...]) -> None:
    records = {
        nodes[0].id: record(nodes[0], state="failed"),
        nodes[1].id: record(nodes[1], seconds=None),
        nodes[2].id: record(nodes[2], device=None),
        nodes[3].id: record(nodes[3], steps=0),
    }
    assert calibration_of(nodes, records) == Calibration()
    assert Calibration().device == ARITHMETIC


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2, "measured": []}', '{"version": 1, "measured": [{}]}']
)
def test_not_a_calibration(text: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ConfigError, match="not a calibration"):
        read_calibration(str(tmp_path / "odd.json"))


def test_families_have_costs_of_their_own_or_none() -> None:
    variants = {"light": {"model.family_options": ["filters=8"]}}
    grid = [{"size": "tiny"}, {"family": ["segresnet", "unetr"]}, {"family": "segresnet", "variant": "light"}]
    planned = plan_study(read_study(study(grid=grid, variants=variants)), cohorts(), "/runs")
    cost = estimate_study(planned, {})
    hours = [row.device_hours[0] for row in cost.rows]
    assert hours[1] == pytest.approx(hours[0] * 1.474 / 1.921, rel=1e-3)  # TFLOP a crop
    assert hours[2] == pytest.approx(hours[0] * 0.449 / 1.921, rel=1e-3)
    assert [row.node.id for row in cost.unknown] == [planned[3].id]  # nobody has counted that size
    assert "1 run(s) whose cost nobody knows yet (segresnet)" in cost.text()
    calibration = calibration_of(planned, {planned[1].id: record(planned[1])})
    assert calibration.step_time(planned[3].config) is None
    tiny = calibration.step_time(planned[0].config)
    assert tiny is not None and tiny.low_s == pytest.approx(0.5 * 1.921 / 1.474, rel=1e-3)


def test_external_trials_cost_nothing_here() -> None:
    content = study(externals={"other": "other --fold {fold}"}, grid=[{"family": "other", "fold": [0, 1]}])
    planned = plan_study(read_study(content), cohorts(), "/runs")
    cost = estimate_study(planned, {})
    assert cost.device_hours() == (0.0, 0.0) and cost.disk_gb == 0 and not cost.unknown
    assert "other --fold 0" in cost.text()
    assert cost.wall_hours(1) == (0.0, 0.0)


def test_a_search_costs_its_points(nodes: tuple[Node, ...]) -> None:
    # The trial is the best of them, trained once.
    once, thrice = estimate_study(nodes, {}), estimate_study(nodes, {}, searched=3)
    assert thrice.device_hours(_is_trial) == pytest.approx(tuple(3 * h for h in once.device_hours(_is_trial)))
    assert thrice.device_hours(_is_ancestor) == once.device_hours(_is_ancestor)


def test_points_of_a_search_that_are_done_cost_no_more(nodes: tuple[Node, ...]) -> None:
    trials = [node for node in nodes if node.role == "trial"]
    own = [
        replace(
            record(trials[0]), id=f"{search_name(trials[0].id)}-00000{i}", run_dir=f"/runs/{i}", state=state
        )
        for i, state in enumerate(("finished", "stopped", "failed"))
    ]
    before, after = (estimate_study(trials[:2], {r.id: r for r in found}, searched=5) for found in ([], own))
    assert [row.runs for row in before.rows] == [5, 5] and [row.runs for row in after.rows] == [3, 5]
    # The trial is the run of its best point, whose hours count once.
    done = [*own, replace(record(trials[0]), run_dir="/runs/0")]
    found = estimate_study(trials[:1], {r.id: r for r in done}, searched=5)
    assert found.spent_hours == pytest.approx(sum(r.device_hours or 0.0 for r in own))


def _is_trial(row: Any) -> bool:
    return bool(row.node.role == "trial")


def _is_ancestor(row: Any) -> bool:
    return bool(row.node.role == "ancestor")


def test_waves_wait_for_their_ancestors(nodes: tuple[Node, ...]) -> None:
    cost = estimate_study(nodes, {})
    one, many = cost.wall_hours(1), cost.wall_hours(1000)
    assert one is not None and many is not None
    assert one == pytest.approx(cost.device_hours())  # each takes one device
    tuning = max(row.hours[1] for row in cost.rows if row.node.id.startswith("ft-"))
    assert all(row.hours[1] <= tuning for row in cost.rows)
    # From scratch beside stage 1, from stage 1 beside stage 2, from stage 2.
    assert many[1] == pytest.approx(3 * tuning)
    assert many[0] <= one[0]


def test_too_few_devices_for_one_run() -> None:
    planned = plan_study(load_study("fig4"), cohorts(), "/runs")
    cost = estimate_study(planned, {})
    assert cost.wall_hours(8) is None
    assert "on 8 A100(s): too few, stage1-tiny-" in cost.text(devices=(8,))
    hours = cost.wall_hours(64)
    assert hours is not None and hours == pytest.approx(tuple(h / 64 for h in cost.device_hours()))


@pytest.mark.parametrize(
    ("jobs", "devices", "hours"),
    [
        ([], 4, 0.0),
        ([(1, 2.0)] * 4, 4, 2.0),
        ([(1, 2.0)] * 5, 4, 4.0),
        (
            [(2, 3.0), (2, 1.0), (4, 1.0), (2, 2.0)],
            4,
            4.0,
        ),  # the last starts beside the first, before the third
    ],
)
def test_makespan(jobs: list[tuple[int, float]], devices: int, hours: float) -> None:
    assert makespan(jobs, devices) == hours


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0.1, 9.0)), max_size=12), st.integers(4, 8))
def test_makespan_is_no_better_than_can_be(jobs: list[tuple[int, float]], devices: int) -> None:
    work = sum(taken * hours for taken, hours in jobs)
    longest = max((hours for _, hours in jobs), default=0.0)
    found = makespan(jobs, devices)
    assert max(work / devices, longest) - 1e-9 <= found <= sum(hours for _, hours in jobs) + 1e-9
