"""nnU-Net's masks by our metrics, against the shard set's own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.experiments.nnunet.cases import Case
from brainfoundry.experiments.nnunet.export import Export, labels_of, read_mask
from brainfoundry.experiments.nnunet.labels import Numbering
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.base import load_task
from brainfoundry.tasks.scores import ScoreTable

_THREADS = 4
_TOLERANCE_MM = 1e-3
"""Of the affine: NIfTI stores float32."""


def score_predictions(export: Export, *, lesionwise: bool = False) -> ScoreTable:
    """The scores of every test case; also as scores.csv, scores.json and scores.parquet in the folder.

    Raises:
        DataError: a subject without a prediction, one that is damaged, on another grid or with labels of its
            own, or a shard set that has changed since the export.
    """
    shards = ShardSet.open(export.shards)
    if shards.meta.manifest_hash != export.manifest_hash:
        raise DataError(
            "the shard set has changed since it was exported (withdrawal, new split)", file=export.shards,
            fix="export it again into another folder",
        )  # fmt: skip
    cases, task, numbering = export.of("test"), load_task(export.task), export.numbering
    missing = [case for case in cases if not export.prediction(case).exists()]
    if missing:
        raise DataError(
            f"no prediction of {len(missing)} of {len(cases)} subjects", file=export.prediction(missing[0]),
            subject=missing[0].subject, fix="jobs/nnunet.py run goes on and predicts what is missing",
        )  # fmt: skip

    def score(case: Case) -> dict[str, Any]:
        predicted = read_prediction(export, case, shards, numbering)
        spacing = shards.index["spacing"][shards.position(case.shard, case.row)].as_py()
        scores = task.score(
            labels_of(shards, case),
            predicted,
            spacing,
            export.scheme,
            lesionwise=lesionwise,
            subject=case.subject,
        )
        return {"subject": case.subject, "session": case.session, **scores}

    rows = []
    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        progress("scoring", len(cases), "subjects") as bar,
    ):
        for row in pool.map(score, cases):
            rows.append(row)
            bar.advance()
    rows.sort(key=lambda row: (row["subject"], row["session"]))
    table = ScoreTable.of(rows, task.policies())
    table.to_csv(files.join(export.folder, "scores.csv"))
    table.to_parquet(files.join(export.folder, "scores.parquet"))
    return table


def read_prediction(export: Export, case: Case, shards: ShardSet, numbering: Numbering) -> np.ndarray:
    """A case's prediction in our labels, uint8 (D, H, W), on the shard set's grid.

    Raises:
        DataError: damaged, on another grid, or with labels of its own.
    """
    path = export.prediction(case)
    numbers, affine = read_mask(path, case)
    shape = tuple(shards.index["shape"][shards.position(case.shard, case.row)].as_py())
    same = np.allclose(affine, shards.affine(case.shard, case.row), atol=_TOLERANCE_MM)
    if numbers.shape != shape or not same:
        raise DataError(
            f"prediction is on another grid: {numbers.shape}, the scan has {shape}"
            + ("" if same else ", and another affine"),
            file=path, subject=case.subject, fix="predict the images of this export",
        )  # fmt: skip
    return numbering.decode(numbers, file=path, subject=case.subject)
