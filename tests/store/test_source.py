"""Reading scans out of zips: whatever the bytes are, the scan as it was or a ScanError."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.manifest import Row
from brainfoundry.store.source import gunzip, load_scan
from tests.store.builders import brain, intake, nifti, put


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Row:
    folder = tmp_path_factory.mktemp("source")
    put(folder, 9_900_001, {"T1w": nifti(brain(1)), "FLAIR": nifti(brain(2))})
    return next(intake(folder).rows())


def test_a_whole_scan(row: Row) -> None:
    found = load_scan(row.scans[0], row.subject)
    assert (found.raw_XYZ == brain(1)[::-1]).all() and found.modality == "T1w"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3),
    ends=st.booleans(),
    cut=st.none() | st.floats(0, 1),
)
def test_fuzz(row: Row, flips: list[tuple[float, int]], ends: bool, cut: float | None) -> None:
    path = Path(row.scans[0].uri)
    good = path.read_bytes()
    data = bytearray(good)
    for where, mask in flips:  # zip and gzip headers at the start, the zip directory at the end
        at = int(where * 299) - 150 if ends else int(where * (len(data) - 1))
        data[at] ^= mask
    try:
        path.write_bytes(data if cut is None else data[: int(cut * len(data))])
        found = load_scan(row.scans[0], row.subject)
        assert (found.raw_XYZ == brain(1)[::-1]).all()
    except ScanError as error:
        assert error.subject == "9900001" and str(path) in str(error) and "\n" not in str(error)
        assert error.reason in ("damaged_data", "unreadable_archive", "not_nifti")
    finally:
        path.write_bytes(good)


def test_gzip_streams() -> None:
    data = np.arange(5_000, dtype=np.uint16).tobytes()
    packed = gzip.compress(data)
    limit = len(data)
    assert gunzip(packed, limit, file="a", subject=None) == data
    assert gunzip(packed + packed, 2 * limit, file="a", subject=None) == data + data
    assert (
        gunzip(packed + b"\0" * 100, limit, file="a", subject=None) == data
    )  # padding, as gzip itself allows
    for damaged, words in (
        (packed[:-1], "gzip data is cut short"),
        (packed[:-5] + b"\0\0\0\0\0", "gzip data is damaged"),
        (b"no", "not gzip data"),
    ):
        with pytest.raises(ScanError, match=words):
            gunzip(damaged, limit, file="a", subject=None)
    with pytest.raises(ScanError, match="more than the 9,999 bytes its header allows"):
        gunzip(packed, limit - 1, file="a", subject=None)
