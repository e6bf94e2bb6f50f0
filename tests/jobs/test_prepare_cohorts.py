"""`jobs/prepare_{ukb,brats,atlas,bids}.py` as a user runs them, from folders to shard sets with labels."""

from __future__ import annotations

import gzip
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.store import prepare
from brainfoundry.store.convert import inline
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from tests.cohorts.layouts import BRATS21, BRATS23, atlas_name, link, needs_real_scans, put
from tests.store.builders import SHAPE, brain, nifti
from tests.store.builders import put as put_bulk

JOBS = Path(__file__).resolve().parents[2] / "jobs"
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a job in this process, shards one after the other; the shard set goes to tmp_path/out."""
    monkeypatch.setattr(prepare, "on_ray", lambda cpus: inline)
    monkeypatch.setattr(prepare.ray_session, "connect", lambda **_: "this process")

    def call(cohort: str, *options: object, slices: int = 10) -> int:
        argv = ["--out", tmp_path / "out", "--min-slices", slices, "--n-val", 1, *options]
        monkeypatch.setattr(sys, "argv", [f"prepare_{cohort}.py", *map(str, argv)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(JOBS / f"prepare_{cohort}.py"), run_name="__main__")
        return int(stop.value.code or 0)

    return call


def scan(seed: int = 0, nan: bool = False) -> bytes:
    return gzip.compress(nifti(brain(seed, dtype="float32") * np.float32(np.nan if nan else 1)))


def mask(*values: float) -> bytes:
    """A mask with these labels somewhere inside the brain."""
    labels = np.zeros(SHAPE, np.uint8 if all(float(v).is_integer() for v in values) else np.float32)
    labels[20, 22, 15 : 15 + len(values)] = values
    return gzip.compress(nifti(labels))


def put_brats(root: Path, case: str, seg: bytes | None, kinds=BRATS21, **data: bytes) -> None:
    mark = "-" if "-" in case else "_"
    for i, kind in enumerate(kinds):
        content = seg if kind == "seg" else data.get(kind, scan(i))
        if content is not None:
            put(root / case / f"{case}{mark}{kind}.nii.gz", content)


def brats(root: Path) -> Path:
    put_brats(root, "BraTS2021_90001", mask(1, 2, 4))
    put_brats(root, "BraTS2021_90002", mask(1, 2))
    put_brats(root, "BraTS2021_90003", mask(4))
    put_brats(root, "BraTS2021_90004", None)
    put_brats(root, "BraTS2021_90005", mask(1, 0.5))
    put_brats(root, "BraTS2021_90006", mask(1), flair=scan(nan=True))
    put_brats(root, "BraTS2021_90007", mask(1, 7))
    put_brats(root, "BraTS2021_90008", mask(1))
    return root


def test_brats_from_folders_to_shards(run: Run, tmp_path: Path, capsys) -> None:
    source = brats(tmp_path / "brats")
    ids = tmp_path / "ids.txt"
    ids.write_text("BraTS2021_90008\nBraTS2021_99999\n")
    assert run("brats", "--source", source, "--withdrawn", ids) == 0
    out = capsys.readouterr().out
    saved = (tmp_path / "out" / "exclusions.md").read_text()
    table = dict(line.split(" | ")[:2] for line in saved.splitlines() if line.startswith("| "))
    wanted = {
        "| excluded: consent was withdrawn": "1", "| excluded: the lesion mask is missing": "1",
        "| excluded: voxels that are NaN or infinite": "1",
        "| excluded: mask values that are no labels of the cohort's scheme": "2", "| included": "3",
    }  # fmt: skip
    assert {rule: table[rule] for rule in wanted} == wanted
    assert "1 of the 2 ids of the withdrawal list are of nobody here" in out
    assert "90008" not in out and "99999" not in out
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.verify() == [] and shards.meta.labels == "brats2021" and shards.meta.space == "SRI24"
    assert shards.meta.modalities == ("FLAIR", "T1ce", "T1w", "T2w")
    assert shards.index["label_values"].to_pylist() == [[1, 2, 4], [1, 2], [4]]
    stored = shards.to_nifti(0, 0, "label")
    labels = np.asanyarray(stored.dataobj)
    assert (labels.shape, labels[20, 22, 15:18].tolist()) == (SHAPE, [1, 2, 4])
    flair = np.asanyarray(shards.to_nifti(0, 0, "FLAIR").dataobj)
    expected = brain(BRATS21.index("flair"), dtype="float32")
    assert np.abs(flair - expected).max() <= (expected.max() - expected.min()) / 131_070
    headers = (tmp_path / "out" / "exclusions_intake.md").read_text()
    assert "| included | 6 | 6 |" in headers and "NaN" not in headers
    # Again: nothing to do. With another scheme: every mask is of the one that was not named.
    assert run("brats", "--source", source, "--withdrawn", ids) == 0
    assert run("brats", "--source", source, "--scheme", "brats2023", "--out", tmp_path / "other") == 1
    err = capsys.readouterr().err
    assert "masks are of brats2021 (labels 1, 2, 4), the cohort was read as brats2023" in err
    assert not (tmp_path / "other" / "shardset.json").exists()


def test_brats_mixtures_are_refused(run: Run, tmp_path: Path, capsys) -> None:
    source = tmp_path / "brats"
    put_brats(source, "BraTS2021_90001", mask(1, 2, 4))
    put_brats(source, "BraTS2021_90002", mask(1, 3))
    assert run("brats", "--source", source) == 1
    err = capsys.readouterr().err
    assert "subject BraTS2021_90001 has labels 1, 2, 4 (brats2021)" in err
    assert "subject BraTS2021_90002 has 1, 3 (brats2023)" in err and err.strip().count("\n") == 0
    put_brats(source, "BraTS-GLI-90001-000", mask(1, 3), BRATS23)
    assert run("brats", "--source", source) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: label schemes are mixed: the folder holds cases named as until 2021")


def test_brats_visits_from_2023_on(run: Run, tmp_path: Path, capsys) -> None:
    for case in ("BraTS-GLI-90001-000", "BraTS-GLI-90001-001", "BraTS-GLI-90002-000"):
        put_brats(tmp_path / "brats", case, mask(1, 3), BRATS23)
    assert run("brats", "--source", tmp_path / "brats", "--modalities", "T1w,FLAIR") == 0
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.meta.modalities == ("T1w", "FLAIR") and shards.meta.labels == "brats2023"
    found = shards.index.select(["subject", "session", "split"]).to_pylist()
    assert [(row["subject"], row["session"]) for row in found] == [
        ("BraTS-GLI-90001", "000"), ("BraTS-GLI-90001", "001"), ("BraTS-GLI-90002", "000"),
    ]  # fmt: skip
    assert found[0]["split"] == found[1]["split"] != found[2]["split"]


def test_atlas_from_folders_to_shards(run: Run, tmp_path: Path, capsys) -> None:
    for i, values in enumerate(((1,), (1, 1), (2,), None), start=1):
        subject = f"r90{i}s001"
        anat = tmp_path / "atlas" / f"R90{i}" / f"sub-{subject}" / "ses-1" / "anat"
        put(anat / atlas_name(subject), scan(i))
        if values:
            put(anat / atlas_name(subject, "label-L_desc-T1lesion_mask"), mask(*values))
    table = tmp_path / "meta.csv"
    table.write_text("Subject ID,Age,Sex\nr901s001,61,F\nr902s001,70,M\n")
    options = ("--source", tmp_path / "atlas", "--metadata", table)
    assert run("atlas", *options, "--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run("atlas", *options, "--labels", "optional") == 0
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.index["subject"].to_pylist() == ["sub-r901s001", "sub-r902s001", "sub-r904s001"]
    assert shards.index["has_label"].to_pylist() == [True, True, False]
    rows = {row.subject: row for row in read_manifest(manifest_uri(str(tmp_path / "out"))).rows()}
    assert [(row.site, row.age) for row in rows.values()] == [
        ("R901", 61.0), ("R902", 70.0), ("R903", None), ("R904", None),
    ]  # fmt: skip
    assert rows["sub-r903s001"].reason == "label_values"
    assert "mask holds 2, which binary (1) does not have" in (tmp_path / "out" / "report.json").read_text()


def test_bids_from_folders_to_shards(run: Run, tmp_path: Path, capsys) -> None:
    root = tmp_path / "ds"
    for i in (1, 2, 3, 4):
        for run_number in (1, 2) if i == 3 else (1,):
            entity = f"run-{run_number}_" if i == 3 else ""
            put(root / f"sub-0{i}/anat/sub-0{i}_{entity}T1w.nii.gz", scan(i + run_number))
        put(root / f"derivatives/l/sub-0{i}/anat/sub-0{i}_desc-lesion_mask.nii.gz", mask(1))
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t61\n")
    tumours = tmp_path / "tumours.csv"
    tumours.write_text("participant_id,icd10\nsub-04,C71\n")
    options = ("--source", root, "--exclude-tumours", tumours, "--labels", "required")
    assert run("bids", *options) == 0
    out = capsys.readouterr().out
    assert "excluded: brain tumour on record (the user's list)" in out
    assert "participants table has no column sex" in out
    assert ShardSet.open(str(tmp_path / "out")).index["subject"].to_pylist() == ["sub-01", "sub-02"]
    assert run("bids", *options, "--run", 2, "--out", tmp_path / "runs") == 0
    shards = ShardSet.open(str(tmp_path / "runs"))
    assert shards.index["subject"].to_pylist() == ["sub-01", "sub-02", "sub-03"]
    restored = np.asanyarray(shards.to_nifti(0, 2, "T1w").dataobj)
    expected = brain(5, dtype="float32")
    assert np.abs(restored - expected).max() <= (expected.max() - expected.min()) / 131_070


def test_ukb_with_lists(run: Run, tmp_path: Path, capsys) -> None:
    for eid in range(9_900_001, 9_900_006):
        put_bulk(tmp_path / "ukb", eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 9))})
    withdrawn, tumours = tmp_path / "w.txt", tmp_path / "t.txt"
    withdrawn.write_text("9900001\n")
    tumours.write_text("9900002\n123\n")
    options = ("--source", tmp_path / "ukb", "--withdrawn", withdrawn, "--exclude-tumours", tumours)
    assert run("ukb", *options) == 0
    lines = (tmp_path / "out" / "exclusions.md").read_text().splitlines()
    assert lines[4:7] == [
        "| assessed | 5 | 5 |", "| excluded: consent was withdrawn | 1 | 1 |",
        "| excluded: brain tumour on record (the user's list) | 1 | 1 |",
    ]  # fmt: skip
    assert ShardSet.open(str(tmp_path / "out")).meta.rows == 3
    nobody = tmp_path / "nobody.txt"
    nobody.write_text("42\n")
    assert run("ukb", "--source", tmp_path / "ukb", "--withdrawn", nobody, "--out", tmp_path / "all") == 0
    assert "| excluded: consent was withdrawn | 0 | 0 |" in (tmp_path / "all" / "exclusions.md").read_text()
    assert "brain tumour" not in (tmp_path / "all" / "exclusions.md").read_text()


@pytest.mark.parametrize(
    ("cohort", "options", "code", "words"),
    [
        ("brats", ["--source", "EMPTY"], 1, "no BraTS case found"),
        ("brats", ["--source", "EMPTY/none"], 1, "no such folder"),
        ("brats", ["--source", "EMPTY", "--modalities", "T1"], 2, "unknown modality 'T1'"),
        ("brats", ["--source", "EMPTY", "--labels", "maybe"], 2, "maybe"),
        ("brats", ["--source", "EMPTY", "--withdrawn", "EMPTY/ids"], 1, "no such file"),
        ("atlas", ["--source", "EMPTY"], 1, "no ATLAS session found"),
        ("bids", [], 2, "no dataset was named"),
        ("bids", ["--source", "EMPTY"], 1, "no T1w scan found"),
        ("bids", ["--source", "EMPTY", "--entities", "what"], 2, "no entity to choose by: 'what'"),
        ("bids", ["--source", "EMPTY", "--mask-patern", "*"], 2, "did you mean --mask-pattern?"),
        ("ukb", ["--source", "EMPTY", "--exclude-tumours", "EMPTY/ids"], 1, "no such file"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, capsys, cohort, options, code, words) -> None:
    (tmp_path / "empty").mkdir()
    assert run(cohort, *(o.replace("EMPTY", str(tmp_path / "empty")) for o in options)) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and "Fix: " in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        ("ukb", ["--exclude-tumours", "brain tumour on record", "20252"]),
        ("brats", ["brats2021 (1, 2, 4)", "BraTS2021_00000_t1ce.nii.gz", "FLAIR T1ce T1w T2w"]),
        ("atlas", ["--metadata", "in any letter case", "required"]),
        ("bids", ["--mask-pattern", "--run", "acq-mprage", "duplicate"]),
    ],
)
def test_help_explains_shared_and_own_options(run: Run, capsys, cohort, words) -> None:
    assert run(cohort, "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").replace(" |", " ").split())
    for text in (*words, "--withdrawn", "one id a line", "held out for validation", "131,070"):
        assert text in out
    assert out.index("--source") < out.index("--out")


@needs_real_scans
def test_real_tumour_and_ms_scans(run: Run, tmp_path: Path, capsys) -> None:
    for kind in BRATS21:
        name = f"brats/BraTS2021_90001/BraTS2021_90001_{kind}.nii.gz"
        link(tmp_path / name, f"tumour/TCGA-DU-7294/TCGA-DU-7294_{kind}.nii.gz")
    options = ("--source", tmp_path / "brats", "--modalities", "T1w", "--n-val", 0)
    assert run("brats", *options, slices=100) == 0
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.index["label_values"].to_pylist() == [[1, 2]] and shards.verify() == []
    assert len(shards.fingerprints()) == 1


@pytest.mark.slow
def test_brats_on_ray(tmp_path: Path, ray_env: dict[str, str]) -> None:
    source = brats(tmp_path / "brats")
    job = [sys.executable, JOBS / "prepare_brats.py", "--source", source, "--out", tmp_path / "out"]
    options = ["--min-slices", "10", "--rows-per-shard", "2", "--cpus", "2", "--n-val", "1"]
    done = subprocess.run(
        [*map(str, job), *options], capture_output=True, text=True, env=ray_env, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "4 sessions in 4 shards" in done.stdout
    assert ShardSet.open(str(tmp_path / "out")).index["label_values"].to_pylist()[0] == [1, 2, 4]


@pytest.mark.parametrize("cohort", ["ukb", "brats", "bids"])
def test_a_modality_may_be_optional(
    cohort: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, names = tmp_path / cohort, ("T1w", "FLAIR")
    for n in (1, 2, 3):
        for name in names[: 1 if n == 2 else 2]:
            seed = 10 * n + len(name)
            if cohort == "ukb":
                put_bulk(source, 9_900_000 + n, {name: nifti(brain(seed))})
            elif cohort == "brats":
                case = f"BraTS2021_{n:05d}"
                put(source / case / f"{case}_{'t1' if name == 'T1w' else 'flair'}.nii.gz", scan(seed))
            else:
                put(source / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_{name}.nii.gz", scan(seed))
    options = ["--source", source, "--modalities", *names]
    options += [] if cohort == "ukb" else ["--labels", "ignore"]
    assert run(cohort, *options, "--optional-modalities", "FLAIR") == 0
    assert "FLAIR is optional: 1 of the 3 included sessions lack it" in capsys.readouterr().out
    shards = ShardSet.open(str(tmp_path / "out"))
    assert [[s["present"] for s in row] for row in shards.index["scans"].to_pylist()] == [
        [True, True], [True, False], [True, True],
    ]  # fmt: skip
    assert run(cohort, *options, "--optional-modalities", "FLAIR") == 0  # finished: left as it is
    assert run(cohort, *options) == 1  # another cohort by its rules
    assert run(cohort, *options, "--optional-modalities", "T2w") == 2
