"""A prediction in MLflow: which networks, on what, how many cases, how fast. No subject is named there."""

from __future__ import annotations

import hashlib

from brainfoundry.core import files, paths
from brainfoundry.prediction.predictor import Job
from brainfoundry.prediction.run import Result
from brainfoundry.prediction.sources import Source
from brainfoundry.training.config import TrackingOptions
from brainfoundry.training.tracking.tags import asked_tags, run_tags
from brainfoundry.training.tracking.tracker import Tracker
from brainfoundry.training.tracking.uri import resolve_uri

CLOSE_S = 30.0
"""Seconds that the end of a prediction waits for the tracking server at most."""


def track(job: Job, source: Source, result: Result, options: TrackingOptions) -> str:
    """Log a prediction that has ended; one into the same folder goes on with the same MLflow run.

    Returns:
        Where to look at it.
    """
    card, o = job.models[0].card, job.options
    # What waits for the server lies beside the home folder's other runs: the masks' folder holds masks alone.
    name = f"predict-{hashlib.sha256(job.out.encode()).hexdigest()[:12]}"
    tracker = Tracker(
        run_dir=files.join(str(paths.home()), "tracking", name),
        uri=resolve_uri(options.uri, str(paths.home())),
        experiment=options.experiment,
        run_name=job.out.rstrip("/").rpartition("/")[2] or name,
        run_key=job.out,
        tags={
            **asked_tags(options.parent, options.tags), **run_tags(), "stage": "predict",
            "input": source.uri, "input_kind": source.kind, "out": job.out,
            "checkpoints": ", ".join(model.uri for model in job.models),
            "cards": ", ".join(model.sha256[:12] for model in job.models),
        },
        params={"task": card.task["name"], "size": card.label, "networks": len(job.models), **o.to_dict()},
    )  # fmt: skip
    values: dict[str, float] = {
        "cases": len(result.outcomes),
        "cases_predicted": result.predicted,
        "cases_done_before": result.before,
        "cases_failed": len(result.failed),
    }
    if result.predicted:
        values["seconds_per_case"] = result.seconds / result.predicted
    tracker.metrics(int(tracker.history()[-1]["step"]) + 1 if tracker.history() else 0, values)
    tracker.artifact(files.join(job.out, "dataset_description.json"))
    tracker.close("FINISHED", timeout_s=CLOSE_S)
    return tracker.where()
