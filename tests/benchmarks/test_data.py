"""The benchmark `data` on tiny scans: every side delivers the same crops, and figures keep their names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.benchmarks import data
from brainfoundry.benchmarks.crop_peers import PEERS
from brainfoundry.benchmarks.crop_sides import Cohort, Direct, Frame, Monai, Side
from brainfoundry.core.errors import DataError
from tests.store.builders import brain, nifti, put

CROP = (16, 16, 16)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("bench")
    for eid in (9_900_001, 9_900_002):
        scans = {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500, top=1700))}
        put(folder / "ukb", eid, scans)
    return data.collect(folder, crop=CROP)


@pytest.mark.parametrize("kind", PEERS, ids=lambda kind: kind.name)
def test_every_peer_delivers_what_the_chain_delivers(kind: type[Side], cohort: Cohort) -> None:
    for package in kind.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    frame = Frame(cohort)
    monai, peer = Monai(cohort, frame), kind(cohort, frame)
    again = kind(cohort, frame)  # what is stored is used again
    outside = False
    for rows in frame.visits(0, 12):
        want = monai.crops(rows)
        assert want.shape == (2, 2, *CROP) and want.dtype == torch.float32
        for side in (peer, again):
            assert float((side.crops(rows) - want).abs().max()) <= 1e-5
        outside |= bool((want == 0).any()) and bool((want == 0.5).any())
    assert outside, "no crop reached into the frame's padding: the check was too easy"
    assert peer.bytes > 0


def test_figures(cohort: Cohort, tmp_path: Path) -> None:
    figures = data.measure(cohort, repeats=1, peers=[kind for kind in PEERS if kind.name == "nnunet_blosc2"])
    for side in ("monai", "memmap", "direct", "nnunet_blosc2"):
        assert figures[f"crop_{side}_cpu_ms"] > 0 and figures[f"subject_{side}_mb"] > 0
    assert {"crop_direct_vs_monai", "bytes_vs_niigz", "subject_mb", "better_in_both"} <= set(figures)
    assert figures["crop_direct_vs_monai_min"] <= figures["crop_direct_vs_monai"]
    data.write(figures, tmp_path / "data.json")
    assert json.loads((tmp_path / "data.json").read_text()) == figures


def test_a_side_that_delivers_something_else_is_seen(cohort: Cohort) -> None:
    class Wrong(Direct):
        name = "wrong"

        def crops(self, rows: Any) -> torch.Tensor:
            return super().crops(rows).flip(-1)

    with pytest.raises(DataError, match="wrong delivers other crops"):
        data.measure(cohort, repeats=1, peers=[Wrong])


def test_a_side_without_its_package_is_left_out(cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    class Missing(Direct):
        name = "missing"
        needs = ("no_such_package",)

    sides = data.make_sides(cohort, Frame(cohort), [Missing])
    assert [side.name for side in sides] == ["monai", "memmap", "direct"]
    assert "missing is left out: package no_such_package is not installed" in capsys.readouterr().out


def test_who_is_better_in_both() -> None:
    times = {"monai": [200.0, 100.0], "memmap": [1.0, 1.0], "direct": [2.0, 2.0], "x": [1.5, 1.5]}
    sizes = {"monai": 50, "memmap": 300, "direct": 40, "x": 39}
    found = data.summary(times, sizes, 10)
    assert found["better_in_both"] == "x" and found["n_better_in_both"] == 1
    assert found["crop_direct_vs_monai"] == 75 and found["bytes_vs_niigz"] == 0.8
    assert data.summary(times, sizes | {"x": 41}, 10)["better_in_both"] == "nobody"


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with data._one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
