"""Tags that a user asks for, on the way to MLflow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.runs import default_name
from brainfoundry.training.tracking.tags import asked_tags
from brainfoundry.training.tracking.tracker import clean_key
from brainfoundry.training.train_job import prepare
from tests.training.labelled import configuration


def test_the_parent_and_tags_as_given() -> None:
    assert asked_tags(None, ()) == {}
    assert asked_tags("abc", ("study=table9", "note=a=b", "empty=")) == {
        "mlflow.parentRunId": "abc", "study": "table9", "note": "a=b", "empty": ""
    }  # fmt: skip
    assert clean_key("mlflow.parentRunId") == "mlflow.parentRunId"
    for wrong in ("study", "=table9"):
        with pytest.raises(ConfigError, match=f"--tracking.tags '{wrong}' is not name=value"):
            asked_tags(None, (wrong,))


def test_they_are_the_runs_tags_and_do_not_name_it(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    tracking = replace(config.tracking, parent="abc", tags=("study=table9", "stage=mine"))
    tagged = replace(config, tracking=tracking)
    assert default_name(tagged, "m") == default_name(config, "m")
    task, _ = prepare(tagged, ShardSet.open(labelled_shards))
    assert task.tags["mlflow.parentRunId"] == "abc" and task.tags["study"] == "table9"
    assert task.tags["stage"] == "finetune"  # what a run says of itself nobody else can
