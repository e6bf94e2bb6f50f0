"""Shard sets as a plan sees them, without any scans."""

from __future__ import annotations

from typing import Any

from brainfoundry.experiments.cohort import CohortInfo


def ukb(**changes: Any) -> CohortInfo:
    """Healthy participants: T1w and FLAIR, no masks, no folds."""
    values: dict[str, Any] = {
        "uri": "/data/ukb",
        "cohort": "UKB",
        "modalities": ("T1w", "FLAIR"),
        "manifest_hash": "u" * 64,
        "identity": "u" * 64,
        "subjects": {("train", None): 90, ("val", None): 10},
    }
    return CohortInfo(**{**values, **changes})


def brats(**changes: Any) -> CohortInfo:
    """Tumours: 5 folds of 16, 10 in val, 20 in test, few-shot subsets."""
    values: dict[str, Any] = {
        "uri": "/data/brats",
        "cohort": "BraTS",
        "modalities": ("FLAIR", "T1ce", "T1w", "T2w"),
        "manifest_hash": "b" * 64,
        "identity": "b" * 64,
        "labels": "brats2021",
        "subjects": {**{("train", fold): 16 for fold in range(5)}, ("val", None): 10, ("test", None): 20},
        "shares": (5.0, 10.0, 20.0, 40.0, 50.0, 100.0),
        "draws": 6,
    }
    return CohortInfo(**{**values, **changes})


def atlas(**changes: Any) -> CohortInfo:
    """Strokes: T1w alone."""
    values: dict[str, Any] = {
        "uri": "/data/atlas",
        "cohort": "ATLAS",
        "modalities": ("T1w",),
        "manifest_hash": "a" * 64,
        "identity": "a" * 64,
        "labels": "binary",
        "subjects": {("train", None): 505, ("val", None): 50, ("test", None): 100},
    }
    return CohortInfo(**{**values, **changes})


def cohorts(**changes: CohortInfo) -> dict[str, CohortInfo]:
    """Under the names that our studies use."""
    everybody = atlas(uri="/data/atlas-all", identity="e" * 64, subjects={("train", None): 655})
    return {"ukb": ukb(), "brats": brats(), "atlas": atlas(), "atlas_all": everybody, **changes}


def study(**changes: Any) -> dict[str, Any]:
    """A study file's content: two stages, few labels, 12 trials."""
    content: dict[str, Any] = {
        "version": 1,
        "name": "mine",
        "task": "brats",
        "stages": {
            "stage1": {"cohort": "ukb", "recipe": "ukb", "preset": "demo"},
            "stage2": {"cohort": "brats", "recipe": "brats", "preset": "demo"},
        },
        "finetune": {"cohort": "brats", "recipe": "brats", "preset": "demo"},
        "inits": {"scratch": [], "stage1": ["stage1"], "stage1+2": ["stage1", "stage2"]},
        "grid": [
            {"size": "nano", "init": ["scratch", "stage1", "stage1+2"], "share": [5, 100], "draw": [0, 1]}
        ],
    }
    return {**content, **changes}
