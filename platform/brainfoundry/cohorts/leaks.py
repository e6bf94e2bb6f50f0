"""Test subjects that training has seen: by id within a cohort, and by image whatever the id.

Pure functions of two tables. Images are compared by fingerprint in blocks, so memory does not grow with
41,400 seen subjects times 1,000 tested. A second pass turns the test images through all 48 axis orders and
flips, for headers that were edited so that canonical axes come out otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.cohorts.fingerprint import LENGTH, close_pairs, stack

BY_ID, BY_IMAGE, BY_TURNED_IMAGE = "id", "image", "image with other axes"

LEAK = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "cohort", "subject", "session", "modality")),
        *((f"seen_{name}", pa.string()) for name in ("cohort", "subject", "session", "modality", "split")),
        ("run", pa.string()),
        ("stage", pa.string()),
        ("distance", pa.float32()),
    ]
)
"""One row a test subject, seen subject and run. Session and modality are those of the nearest pair of images
("" by id); `distance` of their fingerprints (`fingerprint.distances`) is null by id."""

# Fingerprints of a block on either side: some tens of MB at once.
_BLOCK = 1024

Tick = Callable[[int], Any]


@dataclass(frozen=True)
class Leaks:
    """What was found."""

    rows: pa.Table
    """`LEAK`, ascending by subject."""
    tested: int
    """Test subjects compared."""
    seen: int
    """Seen subjects they were compared with, over all runs."""
    without_image: int = 0
    """Test scans without a fingerprint: compared by id only."""

    @property
    def subjects(self) -> list[str]:
        """Test subjects that were seen, in order."""
        return sorted(set(self.rows["subject"].to_pylist()))

    def count(self, kind: str) -> int:
        """Test subjects found in one way; BY_IMAGE includes turned ones."""
        kinds = (BY_IMAGE, BY_TURNED_IMAGE) if kind == BY_IMAGE else (kind,)
        found = self.rows.filter(pc.is_in(self.rows["kind"], pa.array(kinds)))
        return len(set(found["subject"].to_pylist()))

    def runs(self) -> list[dict[str, Any]]:
        """`{"run", "stage", "subjects"}` of each run that saw any, most first."""
        seen_by: dict[tuple[str, str], set[str]] = {}
        for row in self.rows.select(["run", "stage", "subject"]).to_pylist():
            seen_by.setdefault((row["run"], row["stage"]), set()).add(row["subject"])
        ordered = sorted(seen_by.items(), key=lambda item: (-len(item[1]), item[0]))
        return [{"run": run, "stage": stage, "subjects": len(who)} for (run, stage), who in ordered]


def find_leaks(
    test: pa.Table, seen: pa.Table, *, any_orientation: bool = True, tick: Tick | None = None
) -> Leaks:
    """Compare a test set with what training saw.

    Args:
        test: cohort, subject, session, modality, fingerprint; one row a scan.
        seen: the same and split, run, stage (`training.seen.SEEN`).
        any_orientation: do the second pass (48 times the comparisons).
        tick: called with the number of test images just compared.
    """
    ids = _by_id(test, seen)
    images = _by_image(test, seen, any_orientation, tick or (lambda n: None))
    order = {BY_ID: 0, BY_IMAGE: 1, BY_TURNED_IMAGE: 2}
    rows = sorted(
        [*ids, *images],
        key=lambda r: (r["subject"], r["cohort"], order[r["kind"]], r["run"], r["seen_subject"]),
    )
    return Leaks(
        rows=pa.Table.from_pylist(rows, schema=LEAK),
        tested=len(_pairs(test)),
        seen=len(_pairs(seen)),
        without_image=test["fingerprint"].null_count,
    )


def _pairs(table: pa.Table) -> set[tuple[str, str]]:
    unique = table.group_by(["cohort", "subject"]).aggregate([])
    return set(zip(unique["cohort"].to_pylist(), unique["subject"].to_pylist(), strict=True))


def _by_id(test: pa.Table, seen: pa.Table) -> Iterator[dict[str, Any]]:
    wanted = _pairs(test)
    keys = ["cohort", "subject", "split", "run", "stage"]
    for row in seen.group_by(keys).aggregate([]).to_pylist():
        if (row["cohort"], row["subject"]) in wanted:
            yield {
                "kind": BY_ID, "cohort": row["cohort"], "subject": row["subject"], "session": "",
                "modality": "", "seen_cohort": row["cohort"], "seen_subject": row["subject"],
                "seen_session": "", "seen_modality": "", "seen_split": row["split"], "run": row["run"],
                "stage": row["stage"], "distance": None,
            }  # fmt: skip


def _by_image(test: pa.Table, seen: pa.Table, any_orientation: bool, tick: Tick) -> list[dict[str, Any]]:
    test_XB, test_of = _unique_images(test)
    seen_XB, seen_of = _unique_images(seen)
    best: dict[tuple[str, ...], dict[str, Any]] = {}
    matched = np.zeros(len(test_XB), bool)
    passes = ((False, BY_IMAGE), (True, BY_TURNED_IMAGE)) if any_orientation else ((False, BY_IMAGE),)
    for turned, kind in passes:
        rest = np.flatnonzero(~matched)
        for i, j, distance in _near(test_XB[rest], seen_XB, turned, tick):
            matched[rest[i]] = True
            for a in (test_row for test_row in _rows(test, test_of[rest[i]])):
                for b in _rows(seen, seen_of[j]):
                    if (a["cohort"], a["subject"]) == (b["cohort"], b["subject"]):
                        continue  # found by id
                    key = (a["cohort"], a["subject"], b["cohort"], b["subject"], b["run"], b["stage"])
                    if key not in best or distance < best[key]["distance"]:
                        best[key] = {
                            "kind": kind, **{n: a[n] for n in ("cohort", "subject", "session", "modality")},
                            **{f"seen_{n}": b[n] for n in ("cohort", "subject", "session", "modality")},
                            "seen_split": b["split"], "run": b["run"],
                            "stage": b["stage"], "distance": distance,
                        }  # fmt: skip
    return list(best.values())


def _unique_images(table: pa.Table) -> tuple[np.ndarray, list[np.ndarray]]:
    """(X, LENGTH) uint8 different fingerprints, and the rows of the table that have each."""
    column = table["fingerprint"].combine_chunks()
    here = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    if not len(here):
        return np.empty((0, LENGTH), np.uint8), []
    bits = stack(column.take(pa.array(here)).to_pylist()).view((np.void, LENGTH)).ravel()
    unique, which = np.unique(bits, return_inverse=True)
    order = np.argsort(which, kind="stable")
    groups = np.split(here[order], np.cumsum(np.bincount(which))[:-1])
    return unique.view(np.uint8).reshape(-1, LENGTH), groups


def _near(
    a_NB: np.ndarray, b_MB: np.ndarray, any_orientation: bool, tick: Tick
) -> Iterator[tuple[int, int, float]]:
    """(i, j, distance) of all pairs that are the same image; on all cores, for NumPy lets threads run."""
    blocks = [(i, j) for i in range(0, len(a_NB), _BLOCK) for j in range(0, len(b_MB), _BLOCK)]

    def compare(block: tuple[int, int]) -> list[tuple[int, int, float]]:
        i, j = block
        found = close_pairs(a_NB[i : i + _BLOCK], b_MB[j : j + _BLOCK], any_orientation=any_orientation)
        return [(i + k, j + m, distance) for k, m, distance in found]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (i, j), pairs in zip(blocks, pool.map(compare, blocks), strict=True):
            yield from pairs
            if j + _BLOCK >= len(b_MB):
                tick(len(a_NB[i : i + _BLOCK]))


def _rows(table: pa.Table, places: np.ndarray) -> list[dict[str, Any]]:
    names = [n for n in table.column_names if n != "fingerprint"]
    return table.select(names).take(pa.array(places)).to_pylist()
