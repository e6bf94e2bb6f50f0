"""jobs/split.py: from a manifest or a shard set to a split that is recorded, checked and exported."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.cohorts.datalists import read_datalist
from brainfoundry.cohorts.folds import published_cases
from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.cohorts.nnunet import read_nnunet
from brainfoundry.cohorts.strata import people_of
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from tests.cohorts.builders import meta
from tests.cohorts.people import many
from tests.cohorts.test_datalists import brats, entry, manifest_of
from tests.jobs.test_bad_input import call

Split = Callable[..., int]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    return lambda *argv: call("split.py", *map(str, argv), monkeypatch=monkeypatch)


@pytest.fixture
def ukb(tmp_path: Path) -> str:
    """An intake manifest of 70 subjects with sex, site and age."""
    uri = str(tmp_path / "ukb.parquet")
    write_manifest(uri, many(70), meta())
    return uri


def sizes(manifest: Manifest) -> Counter:
    return Counter(person.part for person in people_of(manifest).values())


def test_a_manifest_before_conversion(split: Split, ukb: str, tmp_path: Path, capsys) -> None:
    argv = (
        "--manifest", ukb, "--test", "20%", "--val", "6", "--folds", "5", "--stratify", "sex,site",
        "--few-shot", "5,10,20,40,100", "--draws", "3", "--seed", "11",
    )  # fmt: skip
    assert split(*argv, "--dry-run") == 0
    shown = capsys.readouterr().out
    for words in ("70 subjects", "M|*", "strata of fewer than 10 subjects were pooled", "few-shot 5 %: 3",
                  "few-shot 100 %: 50", "dry run: nothing was written"):  # fmt: skip
        assert words in shown
    assert [p.name for p in tmp_path.iterdir()] == ["ukb.parquet"]

    out = str(tmp_path / "split.parquet")
    few = tmp_path / "few.csv"
    assert split(*argv, "--out", out, "--write-few-shot", few) == 0
    manifest = read_manifest(out)
    assert manifest.hash[:12] in capsys.readouterr().out
    assert sizes(manifest) == {("test", None): 14, ("val", None): 6, **{("train", k): 10 for k in range(5)}}
    assert manifest.meta.splits["few_shot"]["draws"] == 3 and manifest.meta.splits["seed"] == 11
    with few.open() as handle:
        subsets = Counter((row["share"], row["draw"]) for row in csv.DictReader(handle))
    assert len(subsets) == 15 and subsets["40", "2"] == 20
    assert read_manifest(ukb).meta.splits == {}  # the intake manifest stays as it is

    assert split("--manifest", out, "--check") == 0
    assert "the split is what its record says" in capsys.readouterr().out
    rows = [row for row in manifest.rows() if row.subject != "9900030"]
    write_manifest(out, rows, manifest.meta)
    assert split("--manifest", out, "--check") == 1
    assert "1 subjects of the split are missing" in capsys.readouterr().out


def test_a_column_of_the_users_table(split: Split, ukb: str, tmp_path: Path, capsys) -> None:
    table = tmp_path / "scanners.csv"
    table.write_text("eid,scanner\n" + "".join(f"{9_900_001 + i},{'AB'[i % 2]}\n" for i in range(70)))
    out = str(tmp_path / "split.parquet")
    argv = ("--stratify", "scanner", "--table", table)
    assert split("--manifest", ukb, "--test", "10", "--out", out, *argv) == 0
    test = [s for s, p in people_of(read_manifest(out)).items() if p.split == "test"]
    assert Counter(int(s) % 2 for s in test) == {0: 5, 1: 5}
    assert read_manifest(out).meta.splits["table"]["source"] == str(table)
    assert split("--manifest", out, "--check", *argv) == 0
    assert split("--manifest", ukb, "--test", "10", "--dry-run", "--stratify", "scanner") == 2
    assert "cannot stratify by 'scanner'" in capsys.readouterr().err


def test_published_folds_one_held_out(split: Split, tmp_path: Path, capsys) -> None:
    manifest_of(tmp_path, brats(60))
    out = str(tmp_path / "split.parquet")
    lists = {name: tmp_path / f"{name}.json" for name in ("monai", "nnunet")}
    argv = (
        "--manifest",
        tmp_path / "brats.parquet",
        "--out",
        out,
        "--published",
        "brats21",
        "--test-fold",
        "4",
    )
    more = (
        "--write-datalist",
        lists["monai"],
        "--write-nnunet",
        lists["nnunet"],
        "--write-folds",
        tmp_path / "f.csv",
    )
    assert split(*argv, *more) == 0
    cases = {i: fold for i, fold in published_cases().items() if i < 60}
    people = people_of(read_manifest(out))
    found = {int(s[-5:]): p.part for s, p in people.items()}
    assert {case: part for case, part in found.items() if part[0]} == {
        case: ("test" if fold == 4 else "train", fold) for case, fold in cases.items()
    }
    said = capsys.readouterr().out
    assert f"{60 - len(cases)} subjects of the cohort are not in the list" in said and "fold 4" in said
    assert len(read_datalist(str(lists["monai"])).entries) == len(cases)
    assert [len(fold["val"]) for fold in read_nnunet(str(lists["nnunet"]))] == [
        sum(fold == k for fold in cases.values()) for k in range(4)
    ]
    # And back, from each of the lists.
    again = str(tmp_path / "again.parquet")
    for name, whole in ((lists["monai"], True), (tmp_path / "f.csv", False)):
        assert split("--manifest", tmp_path / "brats.parquet", "--out", again, "--from-datalist", name) == 0
        folds = {s: p.part[1] for s, p in people_of(read_manifest(again)).items()}
        assert folds == {s: p.part[1] for s, p in people.items()}
        assert not whole or people_of(read_manifest(again)) == people


def test_a_shard_set_whose_shards_stay(split: Split, small_shards: str, tmp_path: Path, capsys) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(small_shards, shards, copy_function=shutil.copy2)
    kept = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (shards / "shards").iterdir()}
    before = ShardSet.open(str(shards)).meta
    argv = ("--shards", shards, "--test", "3", "--folds", "2")
    assert split(*argv, "--dry-run") == 0
    assert ShardSet.open(str(shards)).meta == before
    assert split(*argv) == 0
    assert "no shard was rewritten" in capsys.readouterr().out
    after = ShardSet.open(str(shards))
    assert Counter(after.index["split"].to_pylist()) == {"test": 3, "train": 6}
    assert (
        after.meta.history[0]["what"] == "split"
        and after.meta.history[0]["manifest_hash"] == before.manifest_hash
    )
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in kept} == kept
    assert split("--shards", shards, "--check") == 0

    # The recipe of few-shot subsets joins the split that is there; the fold list comes from it.
    folds = tmp_path / "folds.csv"
    assert split("--shards", shards, "--few-shot", "50", "--write-folds", folds) == 0
    assert len(folds.read_text().splitlines()) == 1 + 6
    manifest = read_manifest(manifest_uri(str(shards)))
    assert manifest.meta.splits["few_shot"]["shares"] == [50] and manifest.meta.splits["folds"] == 2
    assert split("--shards", shards, "--check") == 0


def test_an_interrupted_split_is_finished_by_the_same_command(
    split: Split, small_shards: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(small_shards, shards)
    from brainfoundry.store import resplit

    with monkeypatch.context() as patch:
        patch.setattr(resplit, "_rewrite", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert split("--shards", shards, "--test", "3") == 130
    assert (shards / "changing.json").exists()
    assert split("--shards", shards, "--test", "3") == 0
    after = ShardSet.open(str(shards))
    assert Counter(after.index["split"].to_pylist())["test"] == 3 and len(after.meta.history) == 1


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, ["name --shards or --manifest"]),
        (["--manifest", "M", "--shards", "x"], 2, ["one of them"]),
        (["--manifest", "M", "--test", "2"], 2, ["nowhere to write", "--out"]),
        (["--manifest", "M", "--test", "many"], 2, ["size 'many' is no number"]),
        (["--manifest", "M", "--test", "20", "--dry-run"], 2, ["20 subjects cannot give 20 to test"]),
        (["--manifest", "M", "--published", "brats20", "--dry-run"], 2, ["no published folds 'brats20'"]),
        (["--manifest", "M", "--published", "brats21", "--test", "2"], 2, ["several ways to split"]),
        (["--manifest", "M", "--val-fold", "1"], 2, ["a fold to hold out, and no folds"]),
        (["--manifest", "M", "--folds", "5", "--val-fold", "5", "--dry-run"], 2, ["no subject is in fold 5"]),
        (
            ["--manifest", "M", "--few-shot", "5", "--dry-run"],
            1,
            ["no training subject", "split the cohort first"],
        ),
        (["--manifest", "gone.parquet"], 1, ["no such manifest", "gone.parquet"]),
        (
            ["--manifest", "M", "--from-datalist", "five.json"],
            1,
            ["fold '5'", "BraTS2021_00000", "five.json"],
        ),
        (
            ["--manifest", "M", "--from-datalist", "who.json"],
            1,
            ["does not have", "who.json", "--ignore-unknown"],
        ),
        (
            ["--manifest", "M", "--from-datalist", "two.csv"],
            1,
            ["fold 1 and fold 2", "BraTS2021_00003", "two.csv"],
        ),
    ],
)
def test_wrong_calls_are_one_line_and_write_nothing(
    split: Split, tmp_path: Path, capsys, argv: list[str], code: int, words: list[str]
) -> None:
    manifest_of(tmp_path, brats(20))
    (tmp_path / "five.json").write_text(json.dumps({"training": [entry("BraTS2021_00000", 5)]}))
    (tmp_path / "who.json").write_text(json.dumps({"training": [entry("BraTS2021_09999", 1)]}))
    (tmp_path / "two.csv").write_text("subject_id,fold\nBraTS2021_00003,1\nBraTS2021_00003,2\n")
    names = {"M": "brats.parquet"}
    before = sorted(tmp_path.iterdir())
    files = [str(tmp_path / names.get(a, a)) if a == "M" or "." in a else a for a in argv]
    assert split(*files) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and "Fix:" in err
    for word in words:
        assert word in err
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_subjects_are_left_out_when_told(split: Split, tmp_path: Path, capsys) -> None:
    manifest_of(tmp_path, brats(3))
    (tmp_path / "who.json").write_text(
        json.dumps({"training": [entry("BraTS2021_00001", 0), entry("BraTS2021_09999", 1)]})
    )
    argv = ("--manifest", tmp_path / "brats.parquet", "--from-datalist", tmp_path / "who.json", "--dry-run")
    assert split(*argv, "--ignore-unknown") == 0
    said = capsys.readouterr().out
    assert "1 subjects of the list are not in the cohort" in said
    assert "2 subjects of the cohort are not in the list" in said


def test_help_explains_the_fields(split: Split, capsys) -> None:
    assert split("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("a count, or a share", "nested few-shot", "brats21", "splits_final.json"):
        assert words in shown


def test_few_shot_of_the_conversions_own_split(split: Split, tmp_path: Path, capsys) -> None:
    uri, out = str(tmp_path / "own.parquet"), str(tmp_path / "few.parquet")
    rows = [replace(row, split="val" if n % 5 == 0 else "train") for n, row in enumerate(many(20))]
    by_subject = {row.subject: row.split for row in reversed(rows)}
    write_manifest(uri, [replace(row, split=by_subject[row.subject]) for row in rows], meta())
    assert split("--manifest", uri, "--out", out, "--few-shot", "50,100") == 0
    assert split("--manifest", out, "--check") == 0, capsys.readouterr().out


def test_a_split_is_not_lost_by_the_way(split: Split, small_shards: str, tmp_path: Path, capsys) -> None:
    shards = str(tmp_path / "set")
    shutil.copytree(small_shards, shards)
    first = ("--shards", shards, "--test", "2", "--few-shot", "50,100")
    assert split(*first) == 0
    before = read_manifest(manifest_uri(shards)).hash
    capsys.readouterr()
    for lost in (("--folds", "2"), ("--test", "2"), ("--test", "3", "--few-shot", "50,100")):
        assert split("--shards", shards, *lost) == 2
        said = capsys.readouterr().err
        assert "already" in said and "2 test" in said and "add --replace" in said
    assert read_manifest(manifest_uri(shards)).hash == before
    assert split(*first) == 0  # the same again finishes one that was interrupted
    assert split("--shards", shards, "--few-shot", "25,50,100") == 0  # more is no loss
    assert split("--shards", shards, "--folds", "2", "--replace") == 0
