"""A study's runs and models in a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from brainfoundry.experiments import mlflow_view as view
from brainfoundry.experiments.mlflow_model import register
from brainfoundry.training.volumes import load_segmenter
from tests.prediction.builders import WINDOW, save_checkpoint


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def open_study(uri: str, name: str, folder: str = "/studies/one") -> str | None:
    return view.open_study(
        uri, folder, name, title="Few labels", task="brats", axes=["draw", "init"], tags={"preset": "demo"}
    )


def trial(client: MlflowClient, parent: str) -> str:
    experiment = client.get_run(parent).info.experiment_id
    return client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id


def test_a_study_is_one_parent_run_found_again(uri: str) -> None:
    first, again = open_study(uri, "found"), open_study(uri, "found")
    assert first == again is not None
    run = MlflowClient(uri).get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags[view.STUDY_TAG] == "found" and run.data.tags["preset"] == "demo"


def test_another_folder_of_the_same_name_is_another_study(uri: str) -> None:
    assert open_study(uri, "found", "/studies/one") != open_study(uri, "found", "/studies/two")


def test_the_end_of_a_study_is_where_a_reader_looks_first(uri: str) -> None:
    run_id = open_study(uri, "ended")
    assert view.close_study(
        uri, run_id, title="Few labels", lines=["**+0.01**"], metrics={"trials_done": 3}, failed=False
    )
    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"trials_done": 3.0}
    assert run.data.tags["mlflow.note.content"] == "# Few labels\n\n**+0.01**"


def test_the_view_has_axes_then_scores_as_columns(uri: str) -> None:
    run_id = open_study(uri, "seen")
    client = MlflowClient(uri)
    tags = client.get_experiment(client.get_run(run_id).info.experiment_id).tags
    state = json.loads(tags[f"mlflow.sharedViewState.{view.view_key('seen')}"])
    assert state["selectedColumns"][:3] == ["tags.`init`", "tags.`draw`", "metrics.`dice_mean`"]
    assert state["runsExpanded"] == {run_id: True}


def test_a_server_that_is_down_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gone = "http://127.0.0.1:9"
    assert open_study(gone, "down") is None
    assert not view.close_study(gone, "x", title="", lines=(), metrics={}, failed=False)
    assert register(gone, "x", "m", "/nowhere", {}) is None
    assert view.view_url(gone, "down") is None
    assert "MLflow does not take the study" in caplog.text


def test_a_registered_model_computes_what_its_checkpoint_does(uri: str, tmp_path: Path) -> None:
    from mlflow import pyfunc, set_registry_uri, set_tracking_uri

    checkpoint = save_checkpoint(tmp_path)
    client = MlflowClient(uri)
    run_id = trial(client, str(open_study(uri, "models")))
    model = register(uri, run_id, "study-models-scratch", checkpoint, {"init": "scratch"})
    assert model == "models:/study-models-scratch/1"
    assert register(uri, run_id, "study-models-scratch", checkpoint, {}) == model  # once a checkpoint
    set_tracking_uri(uri)
    set_registry_uri(uri)
    loaded = pyfunc.load_model(model)
    x_NCDHW = np.random.default_rng(0).normal(size=(1, 4, *WINDOW)).astype(np.float32)
    with torch.inference_mode():
        expected = load_segmenter(checkpoint)[0](torch.from_numpy(x_NCDHW)).sigmoid().numpy()
    np.testing.assert_array_equal(loaded.predict(x_NCDHW), expected)
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 4, -1, -1, -1)
    assert loaded.metadata.metadata["card"]["modalities"] == ["FLAIR", "T1ce", "T1w", "T2w"]
    assert client.get_model_version("study-models-scratch", "1").tags["init"] == "scratch"
