"""A fine-tuned network judged on whole volumes: scores with intervals, pictures, a page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ray
import torch
from ray.util import ActorPool

from brainfoundry.cohorts.labels import NAMES
from brainfoundry.core import files
from brainfoundry.core.memory import keep_freed_memory
from brainfoundry.core.progress import progress
from brainfoundry.reports.evaluation import RANKS, Picture, evaluation_page
from brainfoundry.reports.overlays import overlay_figure
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.base import load_task
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.checkpoint import step_of
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.reporter import tracker_of
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.tracker import Tracker
from brainfoundry.training.validation_task import row_of
from brainfoundry.training.volumes import Session, VolumeSpec, load_segmenter, score_sessions, sessions_of


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found, and where it lies."""

    table: ScoreTable
    folder: str
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG by file name."""

    @property
    def page(self) -> str:
        """The page of everything."""
        return files.join(self.folder, "evaluation.html")

    @property
    def scores(self) -> str:
        """One row a session."""
        return files.join(self.folder, "scores.csv")


_CPUS = 4
"""Cores to one process that scores, where there is no GPU: whole volumes take memory."""


class Scorer:
    """Scores and draws sessions with one set of networks on one device.

    Args:
        checkpoints: of fine-tuned networks; several are an ensemble.
        threads: torch threads on a CPU; 0 = as torch has them.
    """

    def __init__(self, checkpoints: Sequence[str], spec: VolumeSpec, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.spec = spec
        self.networks = [load_segmenter(uri, self.device)[0] for uri in checkpoints]
        self.shards = ShardSet.open(spec.shards)

    def score(self, session: Session) -> dict[str, Any]:
        """A row of the table."""
        (scored,) = score_sessions(
            self.networks, self.spec, [session], device=self.device, shards=self.shards
        )
        return row_of(scored)

    def draw(self, session: Session, title: str) -> bytes:
        """PNG of scan, truth, prediction and difference."""
        (scored,) = score_sessions(
            self.networks, self.spec, [session], device=self.device, shards=self.shards
        )
        shown = {k: v for k, v in scored.scores.items() if "dice" in k and "challenge" not in k}
        return overlay_figure(
            scored.image_DHW, scored.truth_DHW, scored.prediction_DHW, spacing_mm=session.spacing,
            labels=NAMES[self.spec.scheme], title=title, scores=shown,
        )  # fmt: skip


def shared_out(cores: int) -> tuple[int, int]:
    """How many processes score on so many cores, and the threads of each: never more threads than cores."""
    return max(1, cores // _CPUS), max(1, min(cores, _CPUS))


class Scorers:
    """One `Scorer` a device of the connected cluster; in this process where there is no cluster.

    Args:
        cpus: cores to use where there is no GPU; None: those that are free.
    """

    def __init__(self, checkpoints: Sequence[str], spec: VolumeSpec, cpus: int | None = None) -> None:
        self._inline: Scorer | None = None
        if not ray.is_initialized():
            self._inline = Scorer(checkpoints, spec)
            return
        # What others hold may stay held: work given to an actor that waits for it would wait too.
        free, gpus = ray.available_resources(), int(ray.cluster_resources().get("GPU", 0))
        count, threads = (int(free.get("GPU", 0)), 0) if gpus else shared_out(cpus or int(free.get("CPU", 1)))
        count = max(1, min(count, len(spec.sessions)))
        # Outside the placement group of whoever evaluates (a trial of Ray Tune): they do not fit in there.
        options = {
            **({"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}),
            "scheduling_strategy": "DEFAULT",
        }
        remote = ray.remote(**options)(Scorer)  # type: ignore[call-overload]
        self._actors = [remote.remote(checkpoints, spec, threads) for _ in range(count)]

    def score(self, sessions: Sequence[Session]) -> Iterator[dict[str, Any]]:
        """Rows of the table, in any order."""
        if self._inline is not None:
            yield from map(self._inline.score, sessions)
        else:
            pool = ActorPool(self._actors)
            yield from pool.map_unordered(lambda actor, session: actor.score.remote(session), list(sessions))

    def draw(self, sessions: Sequence[tuple[Session, str]]) -> list[bytes]:
        """Figures, in order."""
        if self._inline is not None:
            return [self._inline.draw(*one) for one in sessions]
        return list(ActorPool(self._actors).map(lambda actor, one: actor.draw.remote(*one), list(sessions)))


def evaluate(
    checkpoints: Sequence[str],
    spec: VolumeSpec,
    folder: str,
    *,
    title: str,
    lead: str,
    best_by: str = "",
    pictures: int = 6,
    notes: Sequence[str] = (),
    cpus: int | None = None,
) -> Evaluation:
    """Score the sessions of `spec` and write scores.csv, scores.parquet, scores.json and evaluation.html.

    Args:
        checkpoints: URIs; several are an ensemble (mean of probabilities).
        folder: of its own; what an earlier evaluation wrote there is replaced.
        best_by: metric that ranks subjects, a Dice; "" = the task's own.
        pictures: subjects drawn, half of them the worst.
        notes: sentences for the page.
        cpus: cores to use where there is no GPU; None: those that are free. Two that share a core take many
            times as long: their threads wait for each other.

    Raises:
        DataError: nobody to score, or a mask that is not of the task's scheme.
    """
    task = load_task(spec.task)
    best_by = best_by or ("dice_mean" if "dice_mean" in task.score_names else task.score_names[0])
    scorers = Scorers(checkpoints, spec, cpus)
    rows = []
    with progress("evaluating", len(spec.sessions), "subjects") as bar:
        for row in scorers.score(spec.sessions):
            rows.append(row)
            bar.advance(1)
    rows.sort(key=lambda row: (row["subject"], row["session"]))
    table = ScoreTable.of(rows, task.policies())
    files.make_folder(folder)
    for name in files.list_names(folder):
        if name.endswith(".png") and name.startswith(RANKS):
            files.delete_file(files.join(folder, name))
    result = Evaluation(table=table, folder=folder)
    table.to_csv(result.scores)
    table.to_parquet(files.join(folder, "scores.parquet"))

    drawn: list[Picture] = []
    by_name = {(s.subject, s.session): s for s in spec.sessions}
    chosen = _worst_and_best(table, best_by, pictures)
    titles = [f"{subject} {session}".strip() for subject, session, _, _ in chosen]
    figures = scorers.draw([(by_name[c[0], c[1]], t) for c, t in zip(chosen, titles, strict=True)])
    for (subject, session, value, rank), png in zip(chosen, figures, strict=True):
        name = f"{rank}-{subject}{'-' + session if session else ''}.png"
        result.pictures[name] = png
        files.write_bytes(files.join(folder, name), png)
        drawn.append(Picture(subject=subject, caption=f"{best_by} {value:.3f}", png=png, rank=rank))
    page = evaluation_page(
        title=title, lead=lead, summary_rows=[asdict(line) for line in table.summary()],
        policy_lines=table.policy_lines(), subjects=rows, pictures=drawn, notes=list(notes), sort_by=best_by,
    )  # fmt: skip
    files.write_bytes(result.page, page.encode())
    return result


def _worst_and_best(table: ScoreTable, metric: str, n: int) -> list[tuple[str, str, float, str]]:
    """(subject, session, value, rank) of the subjects to draw, each once."""
    worst, best = table.worst_and_best(metric, n)
    found: dict[tuple[str, str], tuple[str, str, float, str]] = {}
    for scored, rank in [(s, "worst") for s in worst[: (n + 1) // 2]] + [(s, "best") for s in best]:
        if len(found) < n:
            key = (scored.subject, scored.session)
            found.setdefault(key, (*key, scored.value, rank))
    return list(found.values())


def page_of(task: TrainTask) -> str:
    """Where the page of a fine-tuning run's evaluation lies, written after everything else of it."""
    return files.join(task.run_dir, "evaluation", "evaluation.html")


def evaluate_run(task: TrainTask, summary: dict[str, Any]) -> Evaluation:
    """The best checkpoint of a fine-tuning run on its held-out volumes, into RUN/evaluation and MLflow."""
    config = task.config
    assert isinstance(config, FinetuneConfig) and task.volumes is not None
    fold = config.data.fold
    everybody = sessions_of(ShardSet.open(task.shards), split=str(task.card["chosen_on"]), fold=fold)
    volumes = replace(task.volumes, sessions=everybody)
    uri = summary["best_checkpoint"] or summary["checkpoint"]
    found = evaluate(
        [uri], volumes, files.join(task.run_dir, "evaluation"),
        title=f"{task.name}: {len(everybody)} held-out subjects",
        lead=f"{uri}, {config.model.label}, {', '.join(task.modalities)}",
        best_by=config.keep.best_by, pictures=config.keep.pictures, notes=task.notes,
    )  # fmt: skip
    found.table.print_table("held out")
    tracker = tracker_of(task)
    log_evaluation(tracker, found, step=step_of(uri), subjects=config.tracking.subjects)
    tracker.close("FINISHED", timeout_s=120.0)
    print(f"  scores:      {found.scores}\n  page:        {found.page}", flush=True)
    return found


def log_evaluation(tracker: Tracker, found: Evaluation, *, step: int, subjects: bool) -> None:
    """Means as metrics (`dice_wt`, ...), tables, page and pictures as artifacts.

    Args:
        subjects: also what names subjects: their scores, the page, the pictures.
    """
    tracker.metrics(step, found.table.means())
    tracker.artifact(files.join(found.folder, "scores.json"), "evaluation")
    if not subjects:
        return
    for name in ("scores.csv", "scores.parquet", "evaluation.html"):
        tracker.artifact(files.join(found.folder, name), "evaluation")
    for name, png in found.pictures.items():
        tracker.artifact_bytes(png, name, "evaluation/pictures")
