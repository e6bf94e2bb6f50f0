"""`jobs/report_cohort.py`: the demo's shard set without options, a manifest, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.reports.cohort_report import FILES
from tests.jobs.test_bad_input import call
from tests.reports.builders import manifest, person


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda *argv: call("report_cohort.py", *argv, monkeypatch=monkeypatch)


def test_the_demo_needs_no_option(report, small_shards, tmp_path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    # Where the demo lies, with the participants table that is made beside its scans.
    shutil.copytree(small_shards, tmp_path / "demo" / "shards")
    monkeypatch.setenv("BRAINFOUNDRY_HOME", str(tmp_path))
    made = read_manifest(f"{small_shards}/manifest.parquet")
    beside = Path(made.meta.source) / "participants.tsv"
    beside.write_text("eid\tage\tsex\tsite\n" + "".join(f"{r.subject}\t61\tF\t11025\n" for r in made.rows()))
    try:
        assert report() == 0
    finally:
        beside.unlink()
    out = tmp_path / "demo" / "shards" / "report"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    said = capsys.readouterr().out
    assert str(out / "report.html") in said and "participants.tsv beside the scans" in said
    assert "60-64" in (out / "table1.csv").read_text()
    page = (out / "report.html").read_text()
    assert not any(row.subject in page for row in made.rows())


def test_a_manifest_its_table_and_tumours(report, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    rows = [person(i, "train" if i % 3 else "val") for i in range(30)]
    manifest(tmp_path, rows)
    (tmp_path / "t.csv").write_text(
        "eid,p31\n" + "".join(f"{row.subject},{i % 2}\n" for i, row in enumerate(rows))
    )
    (tmp_path / "tumours.txt").write_text(f"{rows[0].subject}\n123\n")
    argv = ("--manifest", str(tmp_path / "manifest.parquet"), "--participants", str(tmp_path / "t.csv"))
    out = tmp_path / "elsewhere"
    assert report(*argv, "--tumours", str(tmp_path / "tumours.txt"), "--out", str(out)) == 0
    assert "1 of the 2 ids of the list of brain tumours are of nobody here" in capsys.readouterr().out
    assert "of nobody here" not in (out / "report.html").read_text()
    assert "brain tumour,on record,all,<5" in (out / "table1.csv").read_text()
    assert report(*argv, "--tumours", str(tmp_path / "tumours.txt"), "--show-small-counts") == 0
    assert "brain tumour,on record,all,1," in (tmp_path / "report" / "table1.csv").read_text()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ((), 1, ["there is no demo shard set yet", "make demo"]),
        (("--shards", "{tmp}/none"), 1, ["{tmp}/none"]),
        (("--manifest", "{tmp}/none.parquet"), 1, ["no such manifest"]),
        (("--manifest", "{tmp}/m", "--shards", "{tmp}/s"), 2, ["both --manifest and --shards"]),
        (
            ("--manifest", "{tmp}/manifest.parquet", "--participants", "{tmp}/no.tsv"),
            1,
            ["no such participants"],
        ),
        (
            ("--manifest", "{tmp}/manifest.parquet", "--tumours", "{tmp}/empty.txt"),
            1,
            ["id list holds no id"],
        ),
        (("--manifest", "{tmp}/manifest.parquet", "--out", "{tmp}/empty.txt/x"), 1, ["cannot be written"]),
        (("--manifest", "{tmp}/manifest.parquet", "--show-smal"), 2, ["--show-small-counts"]),
    ],
)
def test_what_it_refuses(report, tmp_path, monkeypatch, capsys, argv, code, words) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("BRAINFOUNDRY_HOME", str(tmp_path))
    manifest(tmp_path, [person(0), person(1)])
    (tmp_path / "empty.txt").write_text("")
    assert report(*(arg.format(tmp=tmp_path) for arg in argv)) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and "Fix:" in err
    for word in words:
        assert word.format(tmp=tmp_path) in err
