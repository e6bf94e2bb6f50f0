"""One MLflow run through one client: found or made, asked what it has, written to.

Made and used on one thread, which alone imports MLflow (seconds of work).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from brainfoundry.training.tracking.database import ensure_database
from brainfoundry.training.tracking.marker import StepSet, reason_of
from brainfoundry.training.tracking.spool import Event
from brainfoundry.training.tracking.uri import artifact_location, sqlite_path

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger("brainfoundry.tracking")

RUN_KEY_TAG = "brainfoundry.run_key"

_PAIRS = 100  # params and tags a request may carry (MLflow's REST API, runs/log-batch)
_ANY_STEP = -(2**63)  # below every step
_TAG = 5000  # longest tag value that all of MLflow's databases take (the same)


class Refused(Exception):
    """The server understood and said no: sending it again is no use."""


class RunGone(Exception):
    """The run was deleted, or the server lost it."""


@dataclass(frozen=True)
class Point:
    """One value of one metric, and the spool event it comes from."""

    key: str
    value: float
    step: int
    time: int
    session: str
    seq: int


def set_mlflow_environment() -> None:
    """Low limits for MLflow's requests, unless the user set others; no calls home.

    With MLflow's defaults one request to a server that is away blocks for four minutes. We retry
    ourselves, knowing what a failed request may have done.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


class MlflowRun:
    """The MLflow run of one training run.

    Args:
        uri: tracking URI.
        run_dir: RUN; decides where artifacts of a bare database lie.
        check: called before every request; may raise to stop.
    """

    def __init__(self, uri: str, run_dir: str, *, check: Callable[[], None]) -> None:
        self._uri, self._run_dir, self._check = uri, run_dir, check
        self._client: MlflowClient | None = None
        self._params: dict[str, str] = {}
        self._steps: dict[str, StepSet] = {}
        self._in_doubt: dict[str, int] = {}  # metric -> smallest step that may or may not be there
        self.run_id: str | None = None
        self.experiment_id: str | None = None

    # Finding it.

    def open(self, start: Event, run_key: str, known_run_id: str | None) -> bool:
        """Find or make the run and ask what it has.

        Args:
            start: a session's `start` event.
            run_key: what the run is found by if its id is not known.
            known_run_id: the id it had the last time.

        Returns:
            False if `known_run_id` is gone and this is another run.

        Raises:
            Exception: whatever the server or the network answered.
        """
        client = self._connect()
        run = self._get(client, known_run_id) if known_run_id else None
        same = run is not None or known_run_id is None
        if not same:
            log.warning("MLflow no longer has run %s: its history is delivered again", known_run_id)
        if run is None:
            run = self._find_or_make(client, start, run_key)
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        self._params = dict(run.data.params)
        self._steps = {}
        self._in_doubt = dict.fromkeys(run.data.metrics, _ANY_STEP)
        self.settle_doubt()
        return same

    def _connect(self) -> MlflowClient:
        if self._client is None:
            set_mlflow_environment()
            from mlflow.tracking import MlflowClient

            path = sqlite_path(self._uri)
            if path is not None:
                ensure_database(path)
            self._client = MlflowClient(tracking_uri=self._uri)
        return self._client

    def _get(self, client: MlflowClient, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        self._check()
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _find_or_make(self, client: MlflowClient, start: Event, key: str) -> Run:
        experiment = self._experiment(client, start["experiment"])
        self._check()
        # A creation whose answer was lost is found here: the tag is part of the creation.
        found = client.search_runs(
            [experiment],
            filter_string=f"tags.`{RUN_KEY_TAG}` = '{key}'",
            order_by=["attributes.start_time ASC"],
        )
        if found:
            return client.get_run(found[0].info.run_id)
        return client.create_run(
            experiment, start_time=start["time"], tags={RUN_KEY_TAG: key}, run_name=start["run_name"]
        )

    def _experiment(self, client: MlflowClient, name: str) -> str:
        from mlflow.exceptions import MlflowException

        self._check()
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(
                    name, artifact_location=artifact_location(self._uri, self._run_dir)
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it in between
                    raise
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    # Metrics, once each.

    def has(self, key: str, step: int) -> bool:
        """True if the run has a value of this metric at this step. Call `settle_doubt` first."""
        return key in self._steps and step in self._steps[key]

    def settle_doubt(self) -> None:
        """Ask for the steps of metrics of which a failed request may have left some behind."""
        if not self._in_doubt:
            return
        client = self._connect()
        assert self.run_id is not None
        run = self._get(client, self.run_id)
        if run is None:
            raise RunGone(f"MLflow no longer has run {self.run_id}")
        newest = {m.key: m.step for m in run.to_proto().data.metrics}
        for key, first in sorted(self._in_doubt.items()):
            # Histories are long: where the newest step is older than the doubtful ones, none of those came.
            if key in newest and newest[key] >= first:
                self._check()
                steps = self._steps.setdefault(key, StepSet())
                for metric in client.get_metric_history(self.run_id, key):
                    steps.add(metric.step)
            del self._in_doubt[key]

    def _doubt(self, points: list[Point]) -> None:
        for point in points:
            self._in_doubt[point.key] = min(point.step, self._in_doubt.get(point.key, point.step))

    def log_points(self, points: list[Point], on_refused: Callable[[Point, str], None]) -> None:
        """Send metrics (at most 1000, no (key, step) twice); what is refused for good goes to `on_refused`.

        Raises:
            Exception: the request failed; call `settle_doubt` and send again what is not there.
        """
        from mlflow.entities import Metric

        metrics = [Metric(p.key, p.value, p.time, p.step) for p in points]
        self._doubt(points)
        try:
            with self._request() as (client, run_id):
                client.log_batch(run_id, metrics=metrics, synchronous=True)
        except Refused as error:
            if len(points) > 1:  # a batch is taken whole or not at all: find the one it will not take
                middle = len(points) // 2
                self.log_points(points[:middle], on_refused)
                self.log_points(points[middle:], on_refused)
                return
            on_refused(points[0], str(error))
        for point in points:
            self._steps.setdefault(point.key, StepSet()).add(point.step)
            self._in_doubt.pop(point.key, None)

    # Everything else.

    def start(self, event: Event) -> None:
        """The run is running (again); its tags and new parameters.

        Raises:
            Refused, RunGone, Exception: as `log_points`.
        """
        from mlflow.entities import Param, RunTag

        with self._request() as (client, run_id):
            client.update_run(run_id, status="RUNNING")
        tags = dict(event["tags"])
        # MLflow refuses another value for a parameter; a resumed run may well have one (more steps).
        changed = {k: v for k, v in event["params"].items() if self._params.get(k, v) != v}
        if changed:
            tags["params_changed"] = "; ".join(f"{k}: {self._params[k]} -> {v}" for k, v in changed.items())[
                :_TAG
            ]
        params = [Param(k, v) for k, v in event["params"].items() if k not in self._params]
        for i in range(0, len(params), _PAIRS):
            with self._request() as (client, run_id):
                client.log_batch(run_id, params=params[i : i + _PAIRS], synchronous=True)
        pairs = [RunTag(k, v) for k, v in tags.items()]
        for i in range(0, len(pairs), _PAIRS):
            with self._request() as (client, run_id):
                client.log_batch(run_id, tags=pairs[i : i + _PAIRS], synchronous=True)
        self._params |= {p.key: p.value for p in params}

    def end(self, status: str, time_ms: int | None = None) -> None:
        """The run has ended.

        Raises:
            Refused, RunGone, Exception: as `log_points`.
        """
        with self._request() as (client, run_id):
            client.set_terminated(run_id, status=status, end_time=time_ms)

    def artifact(self, data: bytes, path: str) -> None:
        """Put a file among the run's artifacts.

        Raises:
            Refused, RunGone, Exception: as `log_points`.
        """
        target = PurePosixPath(path)
        folder = str(target.parent)
        with tempfile.TemporaryDirectory(prefix="brainfoundry-") as temporary:
            local = Path(temporary, target.name)
            local.write_bytes(data)
            with self._request() as (client, run_id):
                client.log_artifact(run_id, str(local), None if folder == "." else folder)

    @contextmanager
    def _request(self) -> Iterator[tuple[MlflowClient, str]]:
        """A request to the run; sorts what may fail into `Refused`, `RunGone` and what to try again."""
        from mlflow.exceptions import MlflowException

        self._check()
        client = self._connect()
        assert self.run_id is not None
        try:
            yield client, self.run_id
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            # A deleted run answers "invalid parameter" too. If this look fails, so did the request.
            if self._get(client, self.run_id) is None:
                raise RunGone(f"MLflow no longer has run {self.run_id}") from error
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise
            raise Refused(reason_of(error)) from error
