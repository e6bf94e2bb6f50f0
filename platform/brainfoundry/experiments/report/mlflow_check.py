"""Whether the MLflow runs that records name are there: nothing but their ids is asked for."""

from __future__ import annotations

from brainfoundry.experiments.report.results import StudyResults
from brainfoundry.training.tracking.mlflow_run import set_mlflow_environment


def check_runs(results: StudyResults, uri: str) -> tuple[str, ...]:
    """One sentence a study: how many of its runs the tracking server knows."""
    set_mlflow_environment()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    said = []
    for study in results.studies:
        wanted = {record.mlflow_run: name for name, record in study.records.items() if record.mlflow_run}
        gone = []
        for run, name in wanted.items():
            try:
                client.get_run(run)
            except MlflowException:
                gone.append(name)
        told = f"Study {study.name}: {len(wanted) - len(gone)} of {len(wanted)} MLflow runs are at {uri}"
        said.append(told + (f"; not there: {', '.join(sorted(gone)[:5])}" if gone else "") + ".")
    return tuple(said)
