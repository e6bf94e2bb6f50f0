"""Files by URI: whole or not at all, on a local disk and on an fsspec filesystem."""

import gzip
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from brainfoundry.core import files
from brainfoundry.core.errors import DataError


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[
        request.param
    ]


def test_write_read_list_delete(folder: str) -> None:
    uri = files.join(folder, "a", "b.json")
    files.make_folder(files.join(folder, "a"))
    files.write_json(uri, {"x": 1})
    files.write_json(uri, {"x": 2})
    assert files.read_json(uri) == {"x": 2}
    assert files.list_names(files.join(folder, "a")) == ["b.json"]  # and no temporary file
    files.delete_file(uri)
    assert not files.exists(uri)
    files.delete_folder(files.join(folder, "a"))
    assert files.list_names(files.join(folder, "a")) == []


def test_a_folder_that_comes_and_goes_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    comes_and_goes = (
        "import os, sys, time\n"
        "end = time.monotonic() + 60\n"
        "while time.monotonic() < end: os.mkdir(sys.argv[1]); os.rmdir(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", comes_and_goes, str(folder)]) as other:
        try:
            assert all(files.list_names(str(folder)) == [] for _ in range(20_000))
        finally:
            other.kill()


def test_missing_and_broken_files_are_named(folder: str) -> None:
    uri = files.join(folder, "none.json")
    with pytest.raises(DataError, match=r"no such file.*none\.json"):
        files.read_json(uri)
    files.write_bytes(uri, b"{")
    with pytest.raises(DataError, match=r"not valid JSON.*none\.json"):
        files.read_json(uri)


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(DataError, match="storage cannot be written"):
        files.check_writable(str(blocked / "run"))
    files.check_writable(str(tmp_path / "fine"))
    assert files.list_names(str(tmp_path / "fine")) == []


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(DataError, match="cannot open storage"):
        files.filesystem("nosuch://bucket/x")


def test_a_compressed_file_is_written_as_it_is_on_remote_storage_too() -> None:
    # pyarrow's streams compress by the name's ending unless told not to: twice, for a .nii.gz.
    data = gzip.compress(b"voxels", mtime=0)
    files.write_bytes("memory://bucket/scan.nii.gz", data)
    assert files.read_bytes("memory://bucket/scan.nii.gz") == data
