"""Leaks between two tables: every planted one is found, by id and by image, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts import leaks
from brainfoundry.cohorts.fingerprint import LENGTH
from brainfoundry.cohorts.leaks import BY_ID, BY_IMAGE, BY_TURNED_IMAGE, find_leaks


def prints(seed: int, n: int) -> list[bytes]:
    """Fingerprints of unrelated images."""
    bits = np.random.default_rng(seed).integers(0, 256, (n, LENGTH), dtype=np.uint8)
    bits[:, -2:] = 0  # 1,331 bits and padding
    return [b.tobytes() for b in bits]


def noisy(data: bytes, flips: int, seed: int = 0) -> bytes:
    """The same with some bits changed."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    bits[np.random.default_rng(seed).choice(1_331, flips, replace=False)] ^= 1
    return np.packbits(bits).tobytes()


def turned(data: bytes) -> bytes:
    """The fingerprint of the volume with two axes swapped and one flipped."""
    cube = np.unpackbits(np.frombuffer(data, np.uint8), count=1_331).reshape(11, 11, 11)
    return np.packbits(cube.transpose(1, 0, 2)[:, ::-1].ravel()).tobytes().ljust(LENGTH, b"\0")


def scans(cohort: str, subjects: Sequence[str], images: Sequence[bytes | None]) -> pa.Table:
    return pa.table(
        {
            "cohort": [cohort] * len(subjects),
            "subject": list(subjects),
            "session": ["2"] * len(subjects),
            "modality": ["T1w"] * len(subjects),
            "fingerprint": pa.array(images, pa.binary(LENGTH)),
        }
    )


def seen(table: pa.Table, run: str = "r", stage: str = "pretrain-1") -> pa.Table:
    for name, value in (("split", "train"), ("run", run), ("stage", stage)):
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


@settings(deadline=None, max_examples=25)
@given(
    n_seen=st.integers(1, 30),
    n_test=st.integers(1, 12),
    same_ids=st.integers(0, 12),
    same_images=st.integers(0, 12),
    seed=st.integers(0, 2**16),
)
def test_every_planted_leak_is_found_and_nothing_else(
    n_seen: int, n_test: int, same_ids: int, same_images: int, seed: int
) -> None:
    before = [f"a{i}" for i in range(n_seen)]
    old, new = prints(seed, n_seen), prints(seed + 1, n_test)
    ids = min(same_ids, n_seen, n_test)
    names = [f"a{i}" if i < ids else f"t{i}" for i in range(n_test)]
    by_image = set()
    for k in range(min(same_images, n_seen, n_test - ids)):  # from the end, under new ids
        new[n_test - 1 - k] = noisy(old[n_seen - 1 - k], 200, seed + k)
        by_image.add((names[n_test - 1 - k], before[n_seen - 1 - k]))
    found = find_leaks(scans("c", names, new), seen(scans("c", before, old)), any_orientation=False)
    rows = found.rows.to_pylist()
    assert {r["subject"] for r in rows if r["kind"] == BY_ID} == {f"a{i}" for i in range(ids)}
    assert {(r["subject"], r["seen_subject"]) for r in rows if r["kind"] == BY_IMAGE} == by_image
    assert found.subjects == sorted({f"a{i}" for i in range(ids)} | {t for t, _ in by_image})
    assert (found.tested, found.seen) == (n_test, n_seen)


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = prints(1, 50), prints(2, 30)
    new[3], new[29], new[17] = old[49], old[0], old[17]
    test, before = (
        scans("t", [f"t{i}" for i in range(30)], new),
        seen(scans("s", [f"s{i}" for i in range(50)], old)),
    )
    whole = find_leaks(test, before).rows
    monkeypatch.setattr(leaks, "_BLOCK", 7)
    ticks: list[int] = []
    assert find_leaks(test, before, tick=ticks.append).rows.equals(whole)
    assert [(r["subject"], r["seen_subject"]) for r in whole.to_pylist()] == [
        ("t17", "s17"),
        ("t29", "s0"),
        ("t3", "s49"),
    ]
    assert sum(ticks) == 30 + 27  # all, then turned: those not found yet


def test_an_image_with_other_axes_is_found_in_the_second_pass() -> None:
    old = prints(1, 5)
    test, before = scans("t", ["x"], [turned(old[2])]), seen(scans("s", [f"s{i}" for i in range(5)], old))
    (row,) = find_leaks(test, before).rows.to_pylist()
    assert (row["kind"], row["seen_subject"], row["distance"]) == (BY_TURNED_IMAGE, "s2", 0.0)
    assert not find_leaks(test, before, any_orientation=False).rows.num_rows


def test_each_run_that_saw_a_subject_is_named_once() -> None:
    old = prints(1, 3)
    before = scans("c", ["a", "b", "c"], old)
    both = pa.concat_tables(
        [seen(before), seen(before, "s", "pretrain-2"), seen(before.slice(0, 1), "s", "pretrain-2")]
    )
    found = find_leaks(scans("c", ["a", "z"], [old[0], old[1]]), both)
    assert found.runs() == [
        {"run": "r", "stage": "pretrain-1", "subjects": 2},
        {"run": "s", "stage": "pretrain-2", "subjects": 2},
    ]
    assert found.rows.num_rows == 4 and found.count(BY_ID) == 1 and found.count(BY_IMAGE) == 1


def test_an_id_counts_within_its_cohort_only() -> None:
    a, b = prints(1, 2)
    assert not find_leaks(scans("x", ["1"], [a]), seen(scans("y", ["1"], [b]))).subjects
    assert find_leaks(scans("x", ["1"], [a]), seen(scans("x", ["1"], [b]))).subjects == ["1"]


def test_those_without_a_fingerprint_are_compared_by_id() -> None:
    """Who withdrew keeps the id in the table, not the image."""
    a, b = prints(1, 2)
    before = seen(scans("c", ["gone", "here"], [None, b]))
    found = find_leaks(scans("c", ["gone", "new", "blank"], [a, b, None]), before)
    assert [(r["kind"], r["subject"]) for r in found.rows.to_pylist()] == [(BY_ID, "gone"), (BY_IMAGE, "new")]
    assert found.without_image == 1
    nothing = find_leaks(scans("c", ["x"], [None]), seen(scans("c", ["y"], [None])))
    assert nothing.subjects == [] and nothing.rows.schema == leaks.LEAK


def test_an_empty_image_is_nobodys_copy() -> None:
    flat = bytes(LENGTH)
    assert not find_leaks(scans("c", ["x"], [flat]), seen(scans("c", ["y"], [flat]))).subjects
