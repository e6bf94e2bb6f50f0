"""Is a fine-tuned network better than one number? The best FLAIR threshold, and the paired difference to it.

The threshold is on FLAIR divided by the median of the subject's non-zero voxels, the best of a grid by mean
whole-tumour Dice on the training subjects; both sides are scored on the same held-out subjects.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.base import load_task
from brainfoundry.tasks.overlap import dice
from brainfoundry.training.volumes import Session, sessions_of

GRID = np.arange(0.8, 3.0, 0.025)
"""Thresholds tried."""


def run(
    shards_uri: str, scores_uri: str, *, split: str = "test", report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Figures of the comparison.

    Args:
        shards_uri: a shard set of BraTS-like cases with FLAIR.
        scores_uri: scores.csv of the network's evaluation on the same split (jobs/evaluate.py).
        split: of the held-out subjects.

    Raises:
        DataError: the scores are of other subjects.
    """
    shards = ShardSet.open(shards_uri)
    train, held_out = sessions_of(shards, split="train"), sessions_of(shards, split=split)
    network = _scores(scores_uri)
    missing = [s.subject for s in held_out if (s.subject, s.session) not in network]
    if missing:
        raise DataError(
            f"no score of {len(missing)} of {len(held_out)} subjects of split {split}", file=scores_uri,
            subject=missing[0], fix=f"evaluate the network on split {split} of this shard set",
        )  # fmt: skip
    curves = np.array([_dice_over(shards, session, GRID) for session in train])
    best = int(np.nanmean(curves, axis=0).argmax())
    report(
        f"threshold {GRID[best]:.3f} of the median, Dice {np.nanmean(curves[:, best]):.4f} on {len(train)}"
    )
    baseline = np.array([_dice_over(shards, session, GRID[[best]])[0] for session in held_out])
    ours = np.array([network[s.subject, s.session] for s in held_out])
    gain = ours - baseline
    n, mean, sd = len(gain), float(gain.mean()), float(gain.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    figures = {
        "subjects": n,
        "threshold": float(GRID[best]),
        "threshold_dice_wt": float(baseline.mean()),
        "network_dice_wt": float(ours.mean()),
        "gain_dice_wt": mean,
        "gain_low_95": mean - half,
        "gain_high_95": mean + half,
        "network_wins": int((gain > 0).sum()),
    }
    report(
        f"{n} held-out subjects: network {figures['network_dice_wt']:.4f}, threshold "
        f"{figures['threshold_dice_wt']:.4f}, paired difference {mean:+.4f} "
        f"(95 % t interval {mean - half:+.4f} to {mean + half:+.4f}), network better on {(gain > 0).sum()}"
    )
    return figures


def _dice_over(shards: ShardSet, session: Session, thresholds: Sequence[float] | np.ndarray) -> list[float]:
    """Whole-tumour Dice of FLAIR above each threshold."""
    codes = shards.read_volume(session.shard, session.row, "FLAIR")
    scan = shards.index["scans"][shards.position(session.shard, session.row)].as_py()
    flair = next(s for s in scan if s["modality"] == "FLAIR")
    values = codes.astype(np.float32) * flair["slope"] + flair["inter"]
    values /= np.median(values[values != 0])
    labels = shards.read_volume(session.shard, session.row, "label")
    task = load_task("brats")
    whole = [region.name for region in task.regions].index("wt")
    truth = task.region_masks(labels, shards.meta.labels, subject=session.subject)[whole]
    return [dice(truth, values > threshold) for threshold in thresholds]


def _scores(uri: str) -> dict[tuple[str, str], float]:
    rows = csv.DictReader(io.StringIO(files.read_bytes(uri).decode()))
    return {(row["subject"], row["session"]): float(row["dice_wt"]) for row in rows}
