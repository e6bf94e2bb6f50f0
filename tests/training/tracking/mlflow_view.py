"""What MLflow holds, for the tests to compare with."""

from __future__ import annotations

from typing import Any


def the_run(uri: str) -> Any:
    """The only run of experiment `test`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1, [r.info.run_name for r in runs]
    return runs[0]


def history(uri: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in the order of steps, every stored row once."""
    from mlflow.tracking import MlflowClient

    points = MlflowClient(tracking_uri=uri).get_metric_history(the_run(uri).info.run_id, key)
    return sorted((p.step, p.value) for p in points)
