"""What rank 0 tells the world: MLflow, Ray metrics, the progress file, pictures and the summary."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from brainfoundry.core import files
from brainfoundry.core.config import to_yaml
from brainfoundry.models.transfer import TransferTable
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.figures import loss_figure, reconstruction_figure
from brainfoundry.training.tracking.ray_metrics import RayMetrics
from brainfoundry.training.tracking.tracker import Tracker
from brainfoundry.training.verdicts import Verdict

log = logging.getLogger("brainfoundry.training")


def tracker_of(task: TrainTask, **tags: str) -> Tracker:
    """The tracker of a run; in a later process it goes on with the same MLflow run."""
    return Tracker(
        run_dir=task.run_dir,
        uri=task.tracking_uri,
        experiment=task.config.tracking.experiment,
        run_name=task.name,
        run_key=task.run_dir,
        tags={**task.tags, **tags},
        params=dict(task.params),
    )


class Reporter:
    """One voice for one run. Nothing here may delay or stop a step."""

    def __init__(self, task: TrainTask, *, world: int, first_step: int) -> None:
        self.task = task
        self.first_step = first_step
        self.history: list[dict[str, float]] = []
        self.last: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reporter")  # storage and drawing may be slow
        self._writing: Future[None] | None = None
        self.tracker = tracker_of(task, workers=str(world))
        self.ray_metrics = RayMetrics(
            run=task.name, size=task.config.model.label, stage=str(task.card["stage"]), rank=0
        )
        config_uri = files.join(task.run_dir, "config.yaml")
        files.write_bytes(config_uri, to_yaml(task.config).encode())
        self.tracker.artifact(config_uri, "config")
        report = files.join(task.shards, "report.json")
        if files.exists(report):
            # Without the single sessions: who withdraws could not be taken back from a tracking server.
            counts = {k: v for k, v in files.read_json(report).items() if k != "bad_volumes"}
            copy = files.join(task.run_dir, "report.json")
            files.write_json(copy, counts)
            self.tracker.artifact(copy, "cohort")

    def steps(
        self, first: int, names: tuple[str, ...], records: list[list[float]], speed: dict[str, float]
    ) -> None:
        """Records of consecutive steps; step numbers in the tracker are steps done (1-based)."""
        from brainfoundry.training.schedule import lr_factor

        optim = self.task.config.optim
        for i, record in enumerate(records):
            values = {f"train/{n}": v for n, v in zip(names, record, strict=True)}
            values["train/lr"] = optim.lr * lr_factor(first + i, optim)
            done = first + i + 1
            if i == len(records) - 1:
                values |= speed
            self.tracker.metrics(done, values)
            self.history.append({"step": float(done), **values})
            self.last |= values
        self.ray_metrics.set(self.last)
        self._progress()

    def validation(self, done: int, metrics: dict[str, float], shown: dict[str, torch.Tensor] | None) -> None:
        """Losses on the held-out subjects, and pictures of them."""
        self.tracker.metrics(done, metrics)
        self.history.append({"step": float(done), **metrics})
        self.last |= metrics
        self.ray_metrics.set(self.last)
        if shown is not None:
            self._pool.submit(self._pictures, done, shown)
        self._progress()

    def verdict(self, verdict: Verdict) -> None:
        """Scores of a checkpoint on whole volumes, which may come long after its step."""
        if verdict.problem:
            log.warning("validation of step %d failed: %s", verdict.step, verdict.problem)
            return
        self.validation(verdict.step, {**verdict.metrics, "val/seconds": verdict.seconds}, None)

    def transfer(self, table: TransferTable) -> None:
        """What became of every tensor of the checkpoint the run starts from."""
        for name, text in (("transfer.txt", table.text()), ("transfer.csv", table.to_csv())):
            uri = files.join(self.task.run_dir, name)
            files.write_bytes(uri, text.encode())
            self.tracker.artifact(uri, "transfer")

    def interrupted(self) -> None:
        """The process is about to end with an error: leave the tail of the metrics in the spool."""
        self.tracker.close("FAILED", timeout_s=5.0)

    def finished(self, result: dict[str, Any]) -> None:
        """Last figures, card and summary."""
        self._pool.shutdown(wait=True)
        run_dir = self.task.run_dir
        figure = files.join(run_dir, "figures", "losses.png")
        files.write_bytes(figure, loss_figure(self.history, self.tracker.history(), title=self.task.name))
        self.tracker.artifact(figure, "figures")
        self.tracker.artifact(files.join(result["checkpoint"], "card.json"), "checkpoint")
        first = next((h for h in self.history if "train/total" in h), {})
        result["figure"] = figure
        result["first_losses"] = {k: v for k, v in first.items() if k.startswith("train/")}
        result["last"] = self.last
        result["leaks"] = list(self.task.card.get("leaks", ()))
        result["notes"] = list(self.task.notes)
        result["tracking"] = self.tracker.where()
        delivered = self.tracker.close("FINISHED", timeout_s=120.0)
        result["run_id"] = self.tracker.run_id
        result["tracking_delivered"] = delivered
        files.write_json(files.join(run_dir, "summary.json"), result)

    def _pictures(self, done: int, shown: dict[str, torch.Tensor]) -> None:
        arrays = {name: value.numpy() for name, value in shown.items()}
        uri = files.join(self.task.run_dir, "figures", f"reconstruction-{done:08d}.png")
        files.write_bytes(uri, reconstruction_figure(arrays, self.task.modalities, step=done))
        self.tracker.artifact(uri, "reconstructions")

    def _progress(self) -> None:
        """Tell the driver how far we are; skipped while the last word is still being written."""
        if self._writing is not None and not self._writing.done():
            return
        now = {
            "step": int(max(row["step"] for row in self.history)),
            "steps": self.task.config.optim.steps,
            "first_step": self.first_step,
            "time": time.time(),
            "values": self.last,
        }
        uri = files.join(self.task.run_dir, "progress.json")
        self._writing = self._pool.submit(files.write_bytes, uri, json.dumps(now).encode())
