"""Remote storage: passing faults are waited out, lasting ones end in one line, nothing is half there."""

from __future__ import annotations

import itertools
import pickle
import time

import pyarrow.fs as pafs
import pytest

from brainfoundry.core import files, remote
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.remote import StorageError, retry
from tests.core.s3_server import BUCKET, Proxy, bursts

names = (f"s3://{BUCKET}/f{i}" for i in itertools.count())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_RETRY_S", "0.5")


# ---------------------------------------------------------------------------------------------------------
# What is tried again


def test_passing_faults_are_tried_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    left = [OSError("AWS Error UNKNOWN (HTTP status 503)")] * 6

    def what() -> str:
        if left:
            raise left.pop()
        return "done"

    assert retry(what, uri="s3://b/x") == "done"
    assert len(pauses) == 6
    for i, pause in enumerate(pauses):  # doubling, with jitter between a half and the whole
        assert 0.125 * 2**i <= pause <= 0.25 * 2**i
    assert len({p / 2**i for i, p in enumerate(pauses)}) > 1


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError("AWS Error UNKNOWN (HTTP status 500) during PutObject operation"), True),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: slow down"), True),
        (OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout"), True),
        (OSError("AWS Error INTERNAL_FAILURE during UploadPart operation"), True),
        (ConnectionResetError("peer"), True),
        (TimeoutError("read"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 429) during GetObject"), True),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation: No response body."), False),
        (OSError("AWS Error UNKNOWN (HTTP status 403) during HeadObject"), False),
        (OSError("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation"), False),
        (OSError(28, "No space left on device"), False),
        (FileNotFoundError(2, "curlCode in its name"), False),
        (PermissionError(13, "not yours"), False),
        (ValueError("a mistake of ours"), False),
    ],
)
def test_which_faults_pass(error: Exception, passing: bool) -> None:
    assert remote.is_passing(error) is passing


def test_what_is_not_a_fault_of_the_storage_comes_as_it_is() -> None:
    for error in (FileNotFoundError(2, "none"), OSError(28, "No space left on device"), ValueError("x")):
        with pytest.raises(type(error)) as caught:
            retry(lambda error=error: (_ for _ in ()).throw(error), uri="s3://b/x")  # type: ignore[misc]
        assert caught.value is error


def test_the_error_names_uri_and_fix_and_travels(impatient: None) -> None:
    def what() -> None:
        raise ConnectionResetError("peer")

    with pytest.raises(
        StorageError, match=r"does not answer: tried \d+ times .*peer \[file s3://b/x\]. Fix: check"
    ):
        retry(what, uri="s3://b/x")
    error = pickle.loads(pickle.dumps(StorageError("p", file="s3://b/x", fix="f")))
    assert isinstance(error, StorageError) and error.line() == "p [file s3://b/x]. Fix: f"


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_patience_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_RETRY_S", text)
    with pytest.raises(ConfigError, match="BRAINFOUNDRY_RETRY_S"):
        remote.patience_s()


# ---------------------------------------------------------------------------------------------------------
# A real server


@pytest.mark.slow
def test_files_on_s3(server: str) -> None:
    folder = f"s3://{BUCKET}/folder with blanks"
    files.check_writable(folder)
    uri = files.join(folder, "a", "b.json")
    files.write_json(uri, {"x": 1})
    files.write_json(uri, {"x": 2})
    assert files.read_json(uri) == {"x": 2}
    assert files.list_names(folder) == ["a"]
    assert files.exists(uri) and not files.exists(uri + "x")
    files.delete_file(uri)
    assert not files.exists(uri)
    files.delete_folder(folder)
    assert files.list_names(folder) == []
    with pytest.raises(DataError, match=r"no such file \[file s3://"):
        files.read_bytes(uri)


@pytest.mark.slow
def test_parts_of_files(server: str) -> None:
    uri, data = next(names), bytes(range(256)) * 20_000
    files.write_bytes(uri, data)
    assert files.read_range(uri, 1_000_001, 300) == data[1_000_001:1_000_301]
    assert files.read_range(uri, len(data) - 5, 300) == data[-5:]
    fs, path = files.filesystem(uri)
    with fs.open_input_file(path) as handle:
        assert handle.size() == len(data)
        handle.seek(-3, 2)
        assert handle.read() == data[-3:]
        handle.seek(4_000_000)
        assert handle.read(7) + handle.read(2_000_000) == data[4_000_000:]
        assert handle.read(1) == b""
    with fs.open_input_stream(path) as stream:
        parts = iter(lambda: stream.read(777_777), b"")
        assert b"".join(parts) == data


@pytest.mark.slow
def test_version_changes_with_the_content(server: str) -> None:
    uri = next(names)
    files.write_bytes(uri, b"abc")
    first = files.version(uri)
    assert files.version(uri) == first
    files.write_bytes(uri, b"abd")  # same size, same second
    assert files.version(uri) != first
    with pytest.raises(FileNotFoundError):
        files.version(uri + "x")


@pytest.mark.slow
def test_small_reads_do_not_cost_a_request_each(proxy: Proxy) -> None:
    uri = next(names)
    files.write_bytes(uri, bytes(500_000))
    fs, path = files.filesystem(uri)
    proxy.count()
    with fs.open_input_file(path) as handle:
        while handle.read(1000):
            pass
    assert proxy.seen <= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset"])
def test_bursts_of_faults_are_outlasted(kind: str, proxy: Proxy) -> None:
    data = bytes(range(256)) * 50_000  # 12.8 MB: more than one part of an upload
    uri = next(names)
    proxy.fault = bursts(9, 4, kind)
    for part in (data, data[:5]):
        files.write_bytes(uri, part)
        assert files.read_bytes(uri) == part
    assert proxy.failed >= 4


@pytest.mark.slow
def test_a_refusal_is_told_at_once(proxy: Proxy) -> None:
    uri = next(names)
    files.write_bytes(uri, b"x")
    proxy.fault = lambda number: "403"
    proxy.count()
    with pytest.raises(StorageError, match=rf"storage refuses: .*\[file {uri}\]. Fix: .*credentials"):
        files.read_bytes(uri)
    assert proxy.seen <= 2
    with pytest.raises(StorageError, match=r"storage refuses: .*Fix: "):
        files.write_bytes(uri, b"y")
    proxy.fault = lambda number: ""
    with pytest.raises(DataError, match=r"NO_SUCH_BUCKET.*\[file s3://no-such-bucket/x\]. Fix: "):
        files.write_bytes("s3://no-such-bucket/x", b"y")


@pytest.mark.slow
def test_an_upload_that_breaks_off_leaves_the_old_object(proxy: Proxy, impatient: None) -> None:
    uri = next(names)
    files.write_bytes(uri, b"old")
    big = bytes(25_000_000)
    proxy.count()
    proxy.fault = lambda number: "503" if number > 2 else ""  # the upload has begun, and some of it is there
    with pytest.raises(StorageError, match="storage does not answer"):
        files.write_bytes(uri, big)
    proxy.fault = lambda number: ""
    assert files.read_bytes(uri) == b"old"


@pytest.mark.slow
def test_settings_of_s3_are_part_of_the_file_system(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, path = files.filesystem(f"s3://{BUCKET}/x/y")
    assert path == f"{BUCKET}/x/y"
    assert files.filesystem(f"s3://{BUCKET}/z")[0] == first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert files.filesystem(f"s3://{BUCKET}/z")[0] != first
    with pytest.raises(DataError, match="AWS_ENDPOINT_URL"):
        files.filesystem(f"s3://{BUCKET}/z?endpoint_override=localhost:9")


@pytest.mark.slow
def test_the_wrapped_file_system_travels(server: str) -> None:
    uri = next(names)
    files.write_bytes(uri, b"abc")
    fs, path = files.filesystem(uri)
    again = pickle.loads(pickle.dumps(fs))
    with again.open_input_stream(path) as stream:
        assert stream.read() == b"abc"
    assert isinstance(again, pafs.PyFileSystem)
