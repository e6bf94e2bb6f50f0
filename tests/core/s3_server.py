"""A real S3-compatible server (moto's) on loopback, and a proxy in front of it that misbehaves on demand."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs as pafs
import pytest

BUCKET = "cohorts"

Fault = Callable[[int], str]
"""Number of the request (from 1) -> "" to let it pass, "503", "500", "403" or "reset"."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's server with one bucket and point this process's environment at it; yields host:port."""
    server = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if server is None:
        pytest.skip("moto is not installed (pip install 'moto[s3]' flask flask-cors)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    quiet = subprocess.DEVNULL
    command = [server, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=_die_with_parent)
    try:
        _wait(port, process)
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
            pafs.S3FileSystem(
                endpoint_override=address, scheme="http", allow_bucket_creation=True
            ).create_dir(BUCKET)
            yield address
    finally:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """A test run that is killed leaves no server behind (Linux; elsewhere nothing happens)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, "moto's server ended at its start"
            time.sleep(0.1)
    raise AssertionError("moto's server did not answer within a minute")


class Proxy:
    """What the proxy does and has seen; `fault` may be changed at any time."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.fault: Fault = lambda number: ""
        self.seen = 0
        self.failed = 0
        self._lock = threading.Lock()

    def next_fault(self) -> str:
        """Count a request; what is to happen to it."""
        with self._lock:
            self.seen += 1
            kind = self.fault(self.seen)
            self.failed += bool(kind)
            return kind

    def count(self) -> None:
        """Start counting anew."""
        with self._lock:
            self.seen = self.failed = 0


@contextmanager
def flaky(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of the server; the environment points at the proxy inside the block."""
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self._body()
            kind = proxy.next_fault()
            if kind == "reset":
                linger = struct.pack("ii", 1, 0)  # closes with RST
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                self.connection.close()
                return
            if kind:
                code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[kind]
                text = f"<Error><Code>{code}</Code><Message>made by a test</Message></Error>".encode()
                self._answer(int(kind), [("Content-Type", "application/xml")], text, len(text))
                return
            link = http.client.HTTPConnection(proxy.upstream, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            link.request(self.command, self.path, body=body, headers=headers)
            answer = link.getresponse()
            data = answer.read()
            length = int(answer.headers.get("Content-Length", len(data)))
            self._answer(answer.status, answer.getheaders(), data, length)
            link.close()

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in (
                    "content-length",
                    "connection",
                    "date",
                    "server",
                    "transfer-encoding",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def bursts(every: int, length: int, kind: str) -> Fault:
    """Of each `every` requests the last `length` fail: more than the client library tries by itself."""
    return lambda number: kind if (number - 1) % every >= every - length else ""
