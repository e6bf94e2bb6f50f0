"""What a wrong call of a job says: one line with the fix, a non-zero exit, and nothing lost or started."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def call(job: str, *argv: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a job's file in this process as `python jobs/X.py ARGV` would."""
    monkeypatch.setattr(sys, "argv", [str(JOBS / job), *argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(JOBS / job), run_name="__main__")
    return int(stop.value.code or 0)


@pytest.fixture
def pretrain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    def run(*argv: str) -> int:
        return call("pretrain_ukb.py", "--storage", str(tmp_path / "runs"), *argv, monkeypatch=monkeypatch)

    return run


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--optim.stepz", "3"], 2, ["--optim.stepz", "did you mean --optim.steps"]),
        (["--optim.steps", "many"], 2, ["--optim.steps", "'many'"]),
        (["--preset", "papper"], 2, ["unknown preset 'papper'", "paper"]),
        (["--preset", "paper"], 2, ["needs a shard set", "prepare_ukb.py"]),
        (["--data.shards", "/nonexistent/shards"], 1, ["/nonexistent/shards"]),
    ],
)
def test_wrong_options(pretrain, capsys, argv, code, words) -> None:  # type: ignore[no-untyped-def]
    assert pretrain(*argv) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and "Fix:" in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data.modalities", "T1w", "T2w"], ["modality 'T2w' is not in the shard set", "T1w, FLAIR"]),
        (["--data.modalities", "T1w", "T1w"], ["named twice"]),
        (["--data.crop", "48", "48", "48"], ["crop 48x48x48", "nearest valid sizes"]),
        (["--data.crop", "32", "32", "32"], ["bottleneck token"]),
        (["--cluster.workers", "3"], ["3", "groups"]),
        (["--keep.best-by", "accuracy"], ["no loss of", "reconstruction"]),
        (["--model.objective", "mae"], ["does not exist", "inpaint_rotate_contrast"]),
        (["--model.objective-options", "max_dorp=1"], ["did you mean max_drop"]),
        (["--data.subjects-per-group", "40"], ["subject"]),
    ],
)
def test_options_that_do_not_fit_the_data(pretrain, capsys, small_shards, argv, words) -> None:  # type: ignore[no-untyped-def]
    assert pretrain("--data.shards", small_shards, "--dry-run", *argv) in (1, 2)
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and "Fix:" in err
    for word in words:
        assert word in err


def test_a_dry_run_says_what_would_happen_and_starts_nothing(
    pretrain, capsys, small_shards, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    assert (
        pretrain("--data.shards", small_shards, "--dry-run", "--preset", "paper", "--cluster.workers", "8")
        == 0
    )
    out = capsys.readouterr().out
    for words in (
        "7 subjects to train on, 2 held out",
        "64 groups = 256 crops = 512 views of 128 subjects; 8 worker(s), 8 group(s) each",
        "GB a worker (estimate)",
        "A100 GPU-hours",
        "the paper: 3 to 6 days",
        "dry run: nothing was started",
    ):
        assert words in out
    assert not (tmp_path / "runs").exists()


def test_modalities_select_channels(pretrain, capsys, small_shards) -> None:  # type: ignore[no-untyped-def]
    assert pretrain("--data.shards", small_shards, "--dry-run", "--data.modalities", "FLAIR") == 0
    assert "voxels as scanned, FLAIR\n" in capsys.readouterr().out


def test_a_shard_set_of_another_version_is_refused(pretrain, capsys, small_shards, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import json
    import shutil

    copy = tmp_path / "shards"
    shutil.copytree(small_shards, copy)
    meta = json.loads((copy / "shardset.json").read_text())
    meta["version"] = 99
    (copy / "shardset.json").write_text(json.dumps(meta))
    assert pretrain("--data.shards", str(copy), "--dry-run") == 1
    assert "99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("pretrain_ukb.py", ["Peak learning rate", "Table 3", "--data.shards", "--dry-run"]),
        ("prepare_ukb.py", ["--spacing-mm", "isotropic voxel size", "20252"]),
        ("make_demo.py", ["--n-healthy", "seed"]),
        ("sync_tracking.py", ["run"]),
    ],
)
def test_help_explains_the_fields(monkeypatch, capsys, job: str, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert call(job, "--help", monkeypatch=monkeypatch) == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in out


def test_every_field_of_a_run_is_documented() -> None:
    import ast
    import inspect

    from brainfoundry.training import config

    undocumented = []
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            for field, following in zip(node.body, [*node.body[1:], None], strict=True):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not documented:
                    undocumented.append(f"{node.name}.{field.target.id}")  # type: ignore[union-attr]
    assert not undocumented
