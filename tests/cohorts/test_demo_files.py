"""What the demo cohorts share: made once, completed after an interruption, other folders refused; grids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.cohorts.demo_files import Done, complete, nifti_bytes, on_grid, sizes
from brainfoundry.core import files
from brainfoundry.core.errors import DataError

RECORD = {"cohort": "toy", "generator": 1, "spec": {"n": 3}}


@dataclass(frozen=True)
class Toy:
    """A subject of two files in a folder of its own."""

    index: int

    def paths(self) -> list[str]:
        return [f"s{self.index}/{kind}.bin" for kind in "ab"]


calls: list[tuple[int, list[str]]] = []


def write(root: str, seed: int, toy: Toy, missing: set[str]) -> None:
    calls.append((toy.index, sorted(missing)))
    for path in missing:
        files.write_bytes(files.join(root, path), f"{seed} {path}".encode())


def make(root: Path, n: int = 3, record: dict = RECORD, writer=write) -> Done:
    calls.clear()
    return complete(
        str(root),
        record,
        [Toy(i) for i in range(n)],
        writer,
        seed=5,
        extra={"table.csv": lambda: b"a,b\n"},
        noun="toys",
        workers=1,
    )


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_made_once_and_reused(tmp_path) -> None:
    root = tmp_path / "demo"
    done = make(root)
    assert (done.files, done.made) == (6, 6) and len(calls) == 3
    assert done.bytes == sum(p.stat().st_size for p in root.rglob("*.bin"))
    assert (root / "table.csv").read_bytes() == b"a,b\n"
    before = contents(root)
    assert make(root).made == 0 and not calls and contents(root) == before


def test_an_interruption_costs_only_what_was_missing(tmp_path) -> None:
    whole, root = tmp_path / "whole", tmp_path / "demo"
    make(whole)

    def stops(root: str, seed: int, toy: Toy, missing: set[str]) -> None:
        if toy.index == 2:
            raise KeyboardInterrupt
        write(root, seed, toy, missing)

    with pytest.raises(KeyboardInterrupt):
        make(root, writer=stops)
    assert json.loads((root / "demo.json").read_text())["sizes"] == {}
    assert make(root).made == 2 and calls == [(2, ["s2/a.bin", "s2/b.bin"])]
    assert contents(root) == contents(whole)
    # One file lost, one cut short: those two alone are made again.
    (root / "s0/a.bin").unlink()
    (root / "s1/b.bin").write_bytes(b"5")
    assert make(root).made == 2 and sorted(calls) == [(0, ["s0/a.bin"]), (1, ["s1/b.bin"])]
    assert contents(root) == contents(whole)


def test_other_folders_are_refused(tmp_path) -> None:
    root = tmp_path / "demo"
    make(root)
    before = contents(root)
    for other in (
        {**RECORD, "spec": {"n": 4}},
        {**RECORD, "generator": 2},
        {"generator": 1, "spec": {"n": 3}},
    ):
        with pytest.raises(DataError, match=r'demo cohort of another spec: \{"n": 3\}.*Fix: choose another'):
            make(root, record=other)
    assert contents(root) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.nii.gz").write_bytes(b"somebody's scan")
    with pytest.raises(DataError, match="not empty and holds no demo cohort"):
        make(tmp_path / "mine")


def test_remote_storage_has_the_same_names(tmp_path) -> None:
    # Paths inside a file system may or may not begin with a slash; the names below the root may not.
    root = "memory://demo-files-test"
    done = complete(root, RECORD, [Toy(0)], write, seed=5, extra={}, noun="toys", workers=1)
    assert (done.files, done.made) == (2, 2)
    assert set(sizes(root)) == {"s0/a.bin", "s0/b.bin", "demo.json"}
    assert complete(root, RECORD, [Toy(0)], write, seed=5, extra={}, noun="toys", workers=1).made == 0


triples = st.tuples(*[st.integers(1, 5)] * 3)


@given(triples, triples, st.tuples(*[st.integers(-3, 3)] * 3), st.tuples(*[st.booleans()] * 3))
def test_on_grid_moves_every_voxel_to_its_place(have, want, first, flip) -> None:
    volume = np.arange(1, np.prod(have) + 1, dtype=np.int16).reshape(have)
    made = on_grid(volume, first, flip, want)
    assert made.shape == want and made.dtype == np.int16
    expected = np.zeros(want, np.int16)
    for source in np.ndindex(*have):
        target = tuple(
            f + (n - 1 - s if turned else s)
            for s, f, n, turned in zip(source, first, have, flip, strict=True)
        )
        if all(0 <= t < n for t, n in zip(target, want, strict=True)):
            expected[target] = volume[source]
    np.testing.assert_array_equal(made, expected)


def test_nifti_bytes() -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nibabel.Nifti1Image.from_bytes(nifti_bytes(np.zeros((2, 3, 4), np.uint8), affine, code=1))
    assert (image.shape, image.get_data_dtype()) == ((2, 3, 4), np.uint8)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_array_equal(image.affine, affine)
