"""What the UK Biobank reader touches of each file, and that no damage to a file stops it."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts import ukb_files

from .builders import AFFINE, bulk_name, intake, put_plain, put_subject


class CountingFile:
    """A binary file that counts the bytes read from it."""

    def __init__(self, handle, counts) -> None:
        self._handle, self._counts = handle, counts

    def read(self, n=-1):
        data = self._handle.read(n)
        self._counts[self._handle.name] = self._counts.get(self._handle.name, 0) + len(data)
        return data

    def __getattr__(self, name):
        return getattr(self._handle, name)


def test_volumes_are_never_decompressed(bulk, monkeypatch) -> None:
    noise = np.random.default_rng(1).integers(-999, 999, (120, 120, 120)).astype(np.int16)
    data = gzip.compress(nibabel.Nifti1Image(noise, AFFINE).to_bytes(), 1)
    put_subject(bulk, 101, data=data)
    put_plain(bulk, 102, "T1w", data)
    put_plain(bulk, 102, "FLAIR", data)
    counts: dict[str, int] = {}
    opened = ukb_files.BulkFolder.open
    monkeypatch.setattr(
        ukb_files.BulkFolder, "open", lambda self, path: CountingFile(opened(self, path), counts)
    )
    inflated: list[int] = []
    read_header = ukb_files.read_header

    def watched(stream, **options):
        found = read_header(stream, **options)
        inflated.append(stream.tell())  # of the zip member or plain file: gzip bytes taken
        return found

    monkeypatch.setattr(ukb_files, "read_header", watched)
    assert intake(bulk).counts()["included"]["sessions"] == 2
    assert len(counts) == 4 and len(data) > 2_000_000
    assert max(counts.values()) < 70_000  # the zip's last 64 kB, where its directory may begin, and a chunk
    assert max(inflated) <= 4096


@pytest.fixture(scope="module")
def one_subject(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "bulk"
    put_subject(folder, 101)
    return folder


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_costs_a_verdict_not_the_intake(one_subject, tmp_path_factory, data) -> None:
    whole = (one_subject / f"{bulk_name(101, 'T1w')}.zip").read_bytes()
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        # Half of the flips in the last 250 bytes, where the directory is.
        start = data.draw(st.sampled_from([0, len(raw) - 250]))
        raw[data.draw(st.integers(start, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]
    folder = tmp_path_factory.mktemp("case") / "bulk"
    shutil.copytree(one_subject, folder)
    (folder / f"{bulk_name(101, 'T1w')}.zip").write_bytes(bytes(raw))
    (row,) = intake(folder, threads=1).rows()
    if row.included:
        assert row.scans[0].shape[2] >= 100 and row.scans[0].size <= len(raw) * 1100
    else:
        assert row.reason and "T1w" in row.detail and "\n" not in row.detail
    shutil.rmtree(folder.parent)
