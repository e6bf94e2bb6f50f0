"""A study in MLflow: one parent run, its trials nested below, and a link that opens on what readers compare.

One experiment a study, so that nothing else stands between its rows. Nothing here raises: a tracking server
that is down never stops a study, and `close_study` catches up when the study is run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from brainfoundry.training.tracking.database import ensure_database
from brainfoundry.training.tracking.mlflow_run import RUN_KEY_TAG, set_mlflow_environment
from brainfoundry.training.tracking.uri import artifact_location, is_server, sqlite_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger("brainfoundry.experiments")

STUDY_TAG = "brainfoundry.study"
_NOTE = "mlflow.note.content"
_VIEW = "mlflow.sharedViewState."
"""What MLflow's own Share button stores on an experiment, read back by its page (MLflow 3.17)."""
_COLUMNS = ("init", "size", "family", "share", "draw", "fold", "modalities", "variant", "pretrain_seed")
"""Axes as columns, those first that most studies vary."""
_SCORES = {
    "brats": ("dice_mean", "dice_wt", "dice_tc", "dice_et"),
    "atlas": ("dice", "lesion_f1", "volume_diff", "lesion_count_diff"),
}


def experiment_of(study: str) -> str:
    """MLflow experiment of a study."""
    return f"study-{study}"


def open_study(
    uri: str, folder: str, name: str, *, title: str, task: str, axes: Sequence[str], tags: Mapping[str, str]
) -> str | None:
    """The parent run, made or found again and set running; None where MLflow does not answer.

    Args:
        uri: tracking URI, resolved.
        folder: STUDY; names the run for good.
        task: brats or atlas: which scores are columns.
        axes: axes that vary in the study, its columns.
        tags: further tags of the parent run.
    """
    try:
        client = connect_mlflow(uri)
        experiment = _experiment(client, uri, experiment_of(name), folder)
        found = client.search_runs([experiment], f"tags.`{RUN_KEY_TAG}` = '{folder}'")
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            made = client.create_run(
                experiment,
                run_name=name,
                tags={RUN_KEY_TAG: folder, STUDY_TAG: name, "role": "study", **tags},
            )
            run_id = str(made.info.run_id)
        client.set_tag(run_id, _NOTE, f"# {title}\n\nRunning.")
        client.set_experiment_tag(
            experiment,
            _NOTE,
            f"# {title}\n\nBest opened with its columns: see the "
            f"link that `jobs/study.py` prints (key `{view_key(name)}`).",
        )
        client.set_experiment_tag(
            experiment, _VIEW + view_key(name), json.dumps(_view_state(run_id, task, axes))
        )
        return run_id
    except Exception as error:  # whatever the network or the server answers
        log.warning("MLflow does not take the study (%s): its trials are runs of their own", error)
        return None


def close_study(
    uri: str,
    run_id: str | None,
    *,
    title: str,
    lines: Iterable[str],
    metrics: Mapping[str, float],
    failed: bool,
) -> bool:
    """What came of it onto the parent run, where the reader looks first.

    Args:
        lines: Markdown: the answer, the main table.
        metrics: of the study as a whole (trials_done, device_hours, primary_difference, ...).

    Returns:
        True if MLflow took it.
    """
    if run_id is None:
        return False
    try:
        client = connect_mlflow(uri)
        client.set_tag(run_id, _NOTE, "\n".join([f"# {title}", "", *lines])[:5000])
        for key, value in metrics.items():
            client.log_metric(run_id, key, float(value))
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
        return True
    except Exception as error:
        log.warning("MLflow does not take the study's end: %s", error)
        return False


def view_key(study: str) -> str:
    """Key of the study's view in its experiment."""
    return hashlib.sha256(study.encode()).hexdigest()[:16]


def view_url(uri: str, study: str) -> str | None:
    """Address of the page with the study's columns; None without a server."""
    if not is_server(uri):
        return None
    try:
        experiment = connect_mlflow(uri).get_experiment_by_name(experiment_of(study))
    except Exception:
        return None
    if experiment is None:
        return None
    return f"{uri}/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={quote(view_key(study))}"


def _view_state(run_id: str, task: str, axes: Sequence[str]) -> dict[str, Any]:
    """The page's state: trials unfolded below the study, axes and scores as columns, best first."""
    first = [axis for axis in _COLUMNS if axis in axes]
    columns = [f"tags.`{axis}`" for axis in [*first, *(a for a in axes if a not in first)]]
    columns += [f"metrics.`{name}`" for name in _SCORES.get(task, ())]
    best = _SCORES.get(task, ("dice_mean",))[0]
    return {
        "searchFilter": "",
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "runsExpanded": {run_id: True},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def connect_mlflow(uri: str) -> MlflowClient:
    """A client of the tracking server and its model registry."""
    set_mlflow_environment()
    from mlflow.tracking import MlflowClient

    path = sqlite_path(uri)
    if path is not None:
        ensure_database(path)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: MlflowClient, uri: str, name: str, folder: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifact_location(uri, folder)))
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
