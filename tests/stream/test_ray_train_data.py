"""The binding to Ray Train: the plan is cut anew at each start of the worker group."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.stream.pipeline import FetchOptions, Share, _Fetch
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.ray_train_data import PlanDataConfig, iter_steps
from tests.stream.builders import CROP, WitnessReader

SPEC = PlanSpec(seed=5, crop=CROP, groups_per_step=6, frame="box")
STOP = 40


def config(uri: str, start: int = 0, stop: int = 40) -> PlanDataConfig:
    return PlanDataConfig(
        shards=uri, spec=SPEC, channels=(0,), stop_step=stop, start_step=lambda: start, fetch=FetchOptions()
    )


def test_a_run_past_its_end_is_refused(witness_set: str) -> None:
    with pytest.raises(ConfigError, match="newest checkpoint is at step 41, past the run's last step 40"):
        config(witness_set, start=41).configure({"train": None}, 1, None, None)


def test_a_fetcher_that_finds_another_plan_refuses(witness_set: str) -> None:
    share = Share(
        shards=witness_set, spec=SPEC, channels=(0,), start_step=0, stop_step=1, plan_hash="another"
    )
    with pytest.raises(DataError, match="changed since this run started"):
        _Fetch(share, 1, 1, WitnessReader)._open()


def test_workers_that_cannot_share_a_step_are_refused(witness_set: str) -> None:
    with pytest.raises(ConfigError, match="6 groups a step cannot be dealt evenly to 4 workers"):
        config(witness_set).configure({"train": None}, 4, None, None)


def test_every_worker_has_its_own_iterator_for_every_name(ray_local: int, witness_set: str) -> None:
    found = config(witness_set).configure({"train": None, "more": None}, 3, None, None)
    assert [sorted(part) for part in found] == [["more", "train"]] * 3
    assert len({id(part["train"]) for part in found}) == 3


def newest_step(folder: str) -> int:
    """The cursor of the newest checkpoint, as the training side would find it."""
    marks = sorted(Path(folder).glob("step-*"))
    return int(marks[-1].name.removeprefix("step-")) if marks else 0


def train(settings: dict[str, Any]) -> None:
    """Reads the stream, writes down what came, and dies once in the middle."""
    folder = Path(settings["folder"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    start = newest_step(settings["folder"])
    seen = []
    log = folder / f"seen-{rank}-from-{start}.json"
    for batch in iter_steps(
        ray.train.get_dataset_shard("train"),
        rows_per_step=SPEC.groups_per_step // world * SPEC.crops_per_group,
        first_step=start,
        crops_per_group=SPEC.crops_per_group,
        prefetch=1,
        stop_step=STOP,
    ):
        seen.append((batch.step, [int(s) % 2**64 for s in batch.seeds_N]))
        log.write_text(json.dumps(seen))
        if rank == 0 and batch.step == 16 and start == 0:
            (folder / "step-00000012").touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_resumes_at_the_newest_cursor(
    ray_local: int, witness_set: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    TorchTrainer(
        train,
        train_loop_config={"folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="killed", storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(max_failures=1)
        ),
        datasets={"train": functools.partial(ray.data.range, 1)},
        dataset_config=PlanDataConfig(
            shards=witness_set,
            spec=SPEC,
            channels=(0,),
            stop_step=STOP,
            start_step=functools.partial(newest_step, str(folder)),
            fetch=FetchOptions(rows_per_chunk=24),
            open_reader=WitnessReader,
        ),
    ).fit()
    plan = Plan.from_index(WitnessReader(witness_set).index, SPEC)
    for rank in range(2):
        expected = [
            (step, plan.rows(step, step + 1, rank, 2)["crop_seed"].to_pylist()) for step in range(STOP)
        ]
        first, second = (
            [tuple(entry) for entry in json.loads((folder / f"seen-{rank}-from-{start}.json").read_text())]
            for start in (0, 12)
        )
        assert second == expected[12:]
        assert first == expected[: len(first)]
        assert rank == 1 or len(first) == 17
