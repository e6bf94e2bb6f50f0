"""A shard set to withdraw from, and what to compare of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainfoundry.store.shard_task import ConvertSpec
from tests.store.builders import lesion

SPEC = ConvertSpec(min_slices=10, rows_per_shard=2, n_val=2, seed=5)
SUBJECTS = [f"BraTS2021_{case:05d}" for case in range(1, 8)]


def tumour(case: int) -> np.ndarray:
    """A mask like no other case's."""
    mask = lesion(1, 2, 4)
    return mask * np.random.default_rng(case).integers(0, 2, mask.shape, np.uint8)


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """Relative path -> (time of change, digest) of every file."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def digests(folder: Path) -> dict[str, str]:
    return {name: digest for name, (_, digest) in state(folder).items()}


def never(tasks: object) -> Iterator[int]:
    raise AssertionError("nothing was to be converted")
    yield 0
