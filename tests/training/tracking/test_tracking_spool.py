"""The spool: what is written is read, a torn line harms nothing, segments on storage that cannot append."""

from __future__ import annotations

import json
import math
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from brainfoundry.core import files
from brainfoundry.training.tracking import spool


def metrics(step: int, **values: float) -> dict[str, Any]:
    return {"kind": "metrics", "time": 1_700_000_000_000 + step, "step": step, "values": values}


@pytest.fixture(params=["local", "remote"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"


def test_what_is_written_is_read_in_order(run_dir: str) -> None:
    writer = spool.SpoolWriter(run_dir, rewrite_s=0.0, segment_bytes=500)
    reader = spool.SpoolReader(run_dir, writer.session)
    seen = []
    for step in range(0, 60, 3):
        writer.append([metrics(step + i, loss=1.0 / (step + i + 1)) for i in range(3)])
        writer.flush()
        seen += reader.read()
    writer.close()
    seen += reader.read()
    assert [e["step"] for e in seen] == list(range(60))
    assert [e["seq"] for e in seen] == list(range(60))
    assert [e["values"]["loss"] for e in seen] == [1.0 / (s + 1) for s in range(60)]
    assert list(spool.read_events(run_dir)) == [(writer.session, e) for e in seen]


def test_remote_segments_are_few_and_each_is_closed_when_full(tmp_path: Path) -> None:
    run_dir = f"memory://{uuid.uuid4().hex}/run"
    now = [0.0]
    writer = spool.SpoolWriter(run_dir, rewrite_s=5.0, segment_bytes=2000, clock=lambda: now[0])
    for step in range(200):
        now[0] += 1.0
        writer.append([metrics(step, loss=1.0)])
        writer.flush()
    folder = files.join(run_dir, "spool", writer.session)
    before = files.list_names(folder)
    assert 2 < len(before) < 20
    in_sight = len(list(spool.read_events(run_dir)))
    assert 200 - 5 <= in_sight <= 200  # what is younger than rewrite_s may wait
    writer.close()
    assert [e["step"] for _, e in spool.read_events(run_dir)] == list(range(200))


def test_values_that_json_cannot_hold(run_dir: str) -> None:
    writer = spool.SpoolWriter(run_dir)
    writer.append([metrics(1, a=math.nan, b=math.inf, c=-math.inf, d=1e-300)])
    writer.close()
    [(_, event)] = spool.read_events(run_dir)
    assert math.isnan(event["values"].pop("a"))
    assert event["values"] == {"b": math.inf, "c": -math.inf, "d": 1e-300}


def test_a_line_torn_at_any_byte_loses_that_line_alone(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    writer = spool.SpoolWriter(run_dir)
    writer.append([metrics(s, loss=float(s)) for s in range(3)])
    writer.close()
    path = Path(run_dir, "spool", writer.session, "000000.jsonl")
    whole = path.read_bytes()
    begin = whole[:-1].rfind(b"\n") + 1
    for cut in range(begin, len(whole)):
        path.write_bytes(whole[:cut])
        assert [e["step"] for _, e in spool.read_events(run_dir)] == [0, 1], cut
    # The next process writes a session of its own: the torn line cannot run into its first.
    path.write_bytes(whole[:-4])
    second = spool.SpoolWriter(run_dir)
    second.append([metrics(2, loss=2.5)])
    second.close()
    assert second.session > writer.session
    assert [e["values"]["loss"] for _, e in spool.read_events(run_dir)] == [0.0, 1.0, 2.5]


def test_a_reader_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    writer = spool.SpoolWriter(run_dir)
    writer.append([metrics(0, loss=0.0)])
    path = Path(run_dir, "spool", writer.session, "000000.jsonl")
    reader = spool.SpoolReader(run_dir, writer.session)
    assert len(reader.read()) == 1
    line = json.dumps({"seq": 1, **metrics(1, loss=1.0)}).encode() + b"\n"
    for part in (line[:10], line[10:-1]):
        with path.open("ab") as handle:
            handle.write(part)
        assert reader.read() == []
    with path.open("ab") as handle:
        handle.write(line[-1:])
    assert [e["step"] for e in reader.read()] == [1]


def test_damage_in_the_middle_costs_the_damaged_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = str(tmp_path / "run")
    writer = spool.SpoolWriter(run_dir)
    writer.append([metrics(s, loss=float(s)) for s in range(100)])
    writer.close()
    path = Path(run_dir, "spool", writer.session, "000000.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    draw = random.Random(3)
    bad = sorted(draw.sample(range(100), 12))
    junk = [b"\x00\xff\n", b"{}\n", b"[1]\n", b"17\n", b'{"seq":"x","kind":"metrics"}\n', b"\n", b"null\n"]
    for i in bad:
        lines[i] = draw.choice(junk)
    path.write_bytes(b"".join(lines))
    kept = [e["step"] for _, e in spool.read_events(run_dir)]
    assert kept == [s for s in range(100) if s not in bad]
    assert "damaged line" in caplog.text


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = str(tmp_path / "run")
    writer = spool.SpoolWriter(run_dir)
    writer.append([metrics(0, loss=0.0)])
    real = writer._file
    assert real is not None

    class Full:
        """Takes 20 bytes and then says the disk is full."""

        left = 20

        def fileno(self) -> int:
            return real.fileno()

        def write(self, data: memoryview) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            taken = real.write(data[: self.left])
            self.left = 0
            return taken

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(OSError, match="No space"):
        writer.append([metrics(1, loss=1.0)])
    monkeypatch.setattr(writer, "_file", real)
    writer.append([metrics(1, loss=1.0)])
    writer.close()
    assert [(e["seq"], e["step"]) for _, e in spool.read_events(run_dir)] == [(0, 0), (1, 1)]


def test_history_counts_a_step_that_ran_twice_once(run_dir: str) -> None:
    first = spool.SpoolWriter(run_dir)
    first.append([metrics(s, loss=float(s)) for s in (1, 2, 3)])
    first.close()
    second = spool.SpoolWriter(run_dir)
    second.append([metrics(s, loss=10.0 * s) for s in (2, 3, 4)])
    second.close()
    assert spool.read_history(run_dir) == [
        {"step": 1.0, "loss": 1.0},
        {"step": 2.0, "loss": 2.0},
        {"step": 3.0, "loss": 3.0},
        {"step": 4.0, "loss": 40.0},
    ]


def test_files_travel_in_the_spool(run_dir: str) -> None:
    writer = spool.SpoolWriter(run_dir)
    relative = writer.add_file(b"\x89PNG", "figures/a.png")
    writer.append([{"kind": "artifact", "time": 1, "file": relative, "path": "figures/a.png"}])
    writer.close()
    [(_, event)] = spool.read_events(run_dir)
    assert spool.read_file(run_dir, event["file"]) == b"\x89PNG"


def test_a_run_that_was_never_tracked(run_dir: str) -> None:
    assert spool.sessions(run_dir) == []
    assert spool.last_start(run_dir) is None
    assert spool.read_history(run_dir) == []
