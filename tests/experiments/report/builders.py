"""Made-up studies as a driver leaves them: study.yaml, records, score and loss tables, cards, manifests."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from brainfoundry.cohorts.manifest import Row, read_manifest, write_manifest
from brainfoundry.core import files
from brainfoundry.experiments.records import StudyFolder, TrialRecord, losses_of, scores_of, write_record
from brainfoundry.experiments.spec import read_study
from brainfoundry.store.meta import manifest_uri
from brainfoundry.tasks import load_task
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.card import SEEN_FILE
from brainfoundry.training.checkpoint import checkpoint_uri
from brainfoundry.training.seen import SEEN, encode_seen
from tests.cohorts.builders import meta, scan
from tests.training.test_checkpoint import card

FEW_SHOT: dict[str, Any] = {
    "version": 1,
    "name": "few",
    "title": "Few labels, with and without pretraining",
    "task": "brats",
    "tables": ["table9", "fig5"],
    "stages": {"stage1": {"cohort": "ukb", "recipe": "ukb", "preset": "demo"}},
    "finetune": {"cohort": "brats", "recipe": "brats", "preset": "demo"},
    "inits": {"scratch": [], "stage1": ["stage1"]},
    "test": {"on": "test"},
    "grid": [{"size": ["nano"], "init": ["scratch", "stage1"], "share": [5, 100], "draw": [0, 1, 2]}],
    "primary": {
        "metric": "dice_mean", "axis": "init", "arms": ["scratch", "stage1"], "where": {"share": 5},
        "smallest_effect": 0.01,
    },
}  # fmt: skip
"""12 trials."""
FOLDS: dict[str, Any] = {
    **FEW_SHOT,
    "name": "folds",
    "title": "Sizes and folds",
    "tables": ["table8"],
    "grid": [{"size": ["tiny", "small"], "init": ["scratch", "stage1"], "fold": [0, 1]}],
    "test": {"on": "fold"},
    "primary": {
        "metric": "dice_mean",
        "axis": "init",
        "arms": ["scratch", "stage1"],
        "where": {"size": "small"},
    },
}

Change = Callable[[TrialRecord], TrialRecord | None]
"""What becomes of a trial's record; None: it was not run."""


def study(**changes: Any) -> dict[str, Any]:
    """The few-shot study's file with other keys."""
    return {**FEW_SHOT, **changes}


def write_study(
    folder: Path,
    content: Mapping[str, Any] = FEW_SHOT,
    *,
    subjects: int = 40,
    gain: float = 0.02,
    change: Change = lambda record: record,
    undefined: float = 0.0,
    cohorts: bool = True,
) -> str:
    """Write a whole study; returns STUDY.

    Args:
        subjects: in the test set, or in each fold.
        gain: of mean Dice by pretraining, at few labels.
        change: what becomes of a record, as it would be without it.
        undefined: share of enhancing-tumour scores that are not defined.
        cohorts: write their manifests; else they cannot be read.
    """
    spec = read_study(content)
    where = StudyFolder(name=spec.name, uri=str(folder / "studies" / spec.name))
    uris = {name: str(folder / name) for name in ("ukb", "brats")}
    hashes = dict.fromkeys(uris, "gone")
    if cohorts:
        hashes = {name: write_cohort(uri, name, subjects) for name, uri in uris.items()}
    frozen = {"study": spec.to_dict(), "manifests": hashes, "cohorts": uris, "git_commit": "c0ffee"}
    files.make_folder(where.uri)
    files.write_bytes(where.frozen, yaml.safe_dump(frozen, sort_keys=False).encode())
    maker = _Maker(where, uris, hashes, subjects, gain, undefined, spec.task)
    parents: dict[tuple[str, ...], tuple[str, ...]] = {}
    for point in spec.points():
        stages = spec.stages_of(point)
        key = (*stages, str(point["size"]), str(point["pretrain_seed"]), str(point["objective"]))
        if stages and key not in parents:
            parents[key] = maker.pretrained(stages, point, change, trial=spec.finetune is None)
        if spec.finetune is not None:
            maker.finetuned(point, parents.get(key, ()), spec.test, change)
    return where.uri


def write_cohort(uri: str, cohort: str, subjects: int) -> str:
    """The manifest of a shard set that has nothing else; its hash."""
    rng = np.random.default_rng(1)
    modalities = ("T1w", "FLAIR") if cohort == "ukb" else ("FLAIR", "T1ce", "T1w", "T2w")
    rows = []
    for i in range(subjects + 76):
        split = "test" if i < subjects else "val" if i < subjects + 16 else "train"
        rows.append(
            Row(
                subject=f"{cohort}-{i:04d}", session="0", cohort=cohort, split=split,
                age=float(rng.integers(42, 72)), sex="FM"[int(rng.integers(2))],
                site=("Leeds", "York", "Hull")[min(2, int(rng.exponential(0.8)))],
                scans=tuple(scan(name) for name in modalities),
            )
        )  # fmt: skip
    files.make_folder(uri)
    about = meta(cohort=cohort, modalities=modalities, stage="converted")
    write_manifest(manifest_uri(uri), rows, about)
    return read_manifest(manifest_uri(uri)).hash


class _Maker:
    """Writes runs and their records."""

    def __init__(
        self,
        where: StudyFolder,
        uris: Mapping[str, str],
        hashes: Mapping[str, str],
        subjects: int,
        gain: float,
        undefined: float,
        task: str,
    ) -> None:
        self._where, self._uris, self._hashes = where, uris, hashes
        self._subjects, self._gain, self._undefined, self._task = subjects, gain, undefined, task

    def pretrained(
        self, stages: tuple[str, ...], point: Mapping[str, Any], change: Change, *, trial: bool
    ) -> tuple[str, ...]:
        """The runs of a chain; the id of the last, as the parents of a trial."""
        before: tuple[str, ...] = ()
        for i, stage in enumerate(stages):
            name = f"{stage}-{point['size']}-{point['pretrain_seed']}-{point['objective'][:4]}"
            own = {
                **point,
                "init": "+".join(stages[: i + 1]).replace("+stage", "+"),
                "fold": None,
                "share": 100,
                "draw": 0,
            }
            role = "trial" if trial and stage == stages[-1] else "ancestor"
            record = self._record(name, "pretrain", role, own, before, ("ukb", "brats")[min(i, 1)], 60)
            self._losses(record.id, size=str(point["size"]))
            changed = change(replace(record, losses=losses_of(name), validation={"val/total": 1.0}))
            if changed is not None:
                write_record(self._where, changed)
            before = (name,)
        return before

    def finetuned(self, point: Mapping[str, Any], parents: tuple[str, ...], on: str, change: Change) -> None:
        """A trial with its scores."""
        words = (point[axis] for axis in ("family", "size", "init", "objective", "modalities", "variant"))
        name = "ft-" + "-".join(map(str, words))
        name += (
            f"-s{point['share']}-d{point['draw']}-f{point['fold']}-{point['seed']}-{point['pretrain_seed']}"
        )
        few = max(1, round(60 * point["share"] / 100))
        record = self._record(name, "finetune", "trial", point, parents, "brats", few)
        fold = point["fold"] if on == "fold" else None
        test = {
            "shards": self._uris["brats"],
            "manifest_hash": self._hashes["brats"],
            "split": "test",
            "fold": fold,
            "subjects": self._subjects,
        }
        table = self._scores(point, fold)
        means = {line.metric: line.mean for line in table.summary() if line.defined}
        record = replace(record, test=test, scores=scores_of(name), metrics=means, chosen_on="val",
                         validation={"val/dice_mean": 0.8}, losses=losses_of(name))  # fmt: skip
        changed = change(record)
        if changed is None:
            return
        if changed.state != "finished":
            changed = replace(changed, scores=None, metrics={}, test=None, losses=None)
        else:
            files.make_folder(files.join(self._where.uri, "scores"))
            table.to_parquet(self._where.absolute(scores_of(name)))
            self._losses(name, size=str(point["size"]))
        write_record(self._where, changed)

    def _record(
        self,
        name: str,
        kind: Any,
        role: Any,
        point: Mapping[str, Any],
        parents: tuple[str, ...],
        cohort: str,
        seen: int,
    ) -> TrialRecord:
        run_dir = files.join(self._where.runs, name)
        config = {
            "data": {"groups_per_step": 2, "subjects_per_group": 2, "crops_per_subject": 1},
            "optim": {"lr": 5e-4, "steps": 400}, "cluster": {"workers": 1},
        }  # fmt: skip
        files.make_folder(run_dir)
        files.write_bytes(files.join(run_dir, "config.yaml"), yaml.safe_dump(config).encode())
        uri = checkpoint_uri(files.join(run_dir, "checkpoints"), 400)
        files.make_folder(uri)
        rows = [
            (name, kind, cohort, self._hashes[cohort], f"{cohort}-{i:04d}", "0", "train", "T1w", None)
            for i in range(seen)
        ]
        table = pa.table([list(c) for c in zip(*rows, strict=True)], names=SEEN.names).cast(SEEN)
        data = encode_seen(table)
        files.write_bytes(files.join(uri, SEEN_FILE), data)
        entry = {SEEN_FILE: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        files.write_bytes(files.join(uri, "card.json"), card(400, run=name, files=entry).to_json())
        return TrialRecord(
            study=self._where.name,
            id=name,
            kind=kind,
            role=role,
            point=dict(point),
            state="finished",
            run_dir=run_dir,
            checkpoint=uri,
            parents=parents,
            steps=400,
            parameters=1_292_779,
            seconds=900.0,
            device_hours=0.25 if kind == "pretrain" else None,
            device="NVIDIA A100" if kind == "pretrain" else "CPU, 4 threads",
            cpu_hours=1.0,
            energy_kwh=0.02 if kind == "pretrain" else None,
            mlflow_run=f"run-{name}",
            git_commit="c0ffee",
            started="2026-11-01T08:00:00+00:00",
            ended="2026-11-01T08:15:00+00:00",
            attempts=1,
        )

    def _scores(self, point: Mapping[str, Any], fold: int | None) -> ScoreTable:
        """Dice that grows with the labels, a little with pretraining, and varies by draw and subject."""
        first = 0 if fold is None else 1000 * (fold + 1)
        subject = np.random.default_rng(2 + first).normal(0, 0.05, self._subjects)
        seed = abs(hash((point["share"], point["draw"], point["seed"]))) % 2**32
        draw = np.random.default_rng(seed).normal(0, 0.012) if point["share"] < 100 else 0.0
        own = np.random.default_rng([seed, zlib.crc32(str(point).encode())])
        level = 0.9 - 0.12 * (1 - point["share"] / 100) ** 4
        gain = self._gain * (1.5 - point["share"] / 100) if "stage" in str(point["init"]) else 0.0
        task = load_task(self._task)
        rows = []
        for i in range(self._subjects):
            base = level + gain + draw + subject[i] + own.normal(0, 0.02)
            named = {"subject": f"brats-{first + i:04d}", "session": "0"}
            if self._task == "atlas":
                dice = float(np.clip(base, 0, 1))
                extra = {"volume_diff": own.exponential(900.0), "lesion_count_diff": float(own.integers(4))}
                rows.append({**named, "dice": dice, **extra, "lesion_f1": dice * 0.8})
                continue
            row = {name: 3.0 + own.exponential(2.0) for name in task.score_names if name.startswith("hd95")}
            row |= {
                f"dice_{r}": float(np.clip(base + off, 0, 1))
                for r, off in (("tc", 0), ("wt", 0.03), ("et", -0.03))
            }
            if own.random() < self._undefined:
                row["dice_et"] = float("nan")
            row["dice_mean"] = float(np.nanmean([row["dice_tc"], row["dice_wt"], row["dice_et"]]))
            rows.append({**named, **row})
        return ScoreTable.of(rows, task.policies())

    def _losses(self, name: str, *, size: str) -> None:
        floor = 0.1 * (zlib.crc32(name.encode()) % 3) + {
            "nano": 1.2,
            "tiny": 1.0,
            "small": 0.95,
            "big": 0.92,
        }.get(size, 1.0)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        rows = []
        for step in range(20, 401, 20):
            value = floor + np.exp(-step / 120) + rng.normal(0, 0.01)
            rows.append((step, "train/total", value))
            if step % 80 == 0:
                rows.append((step, "val/total", value + 0.05))
        table = pa.table([list(c) for c in zip(*rows, strict=True)], names=["step", "name", "value"])
        sink = io.BytesIO()
        pq.write_table(table, sink)
        files.make_folder(files.join(self._where.uri, "losses"))
        files.write_bytes(self._where.absolute(losses_of(name)), sink.getvalue())
