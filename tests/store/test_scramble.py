"""Phase-scrambled shard sets: the same people, spectra and intensities, no anatomy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.core.errors import DataError
from brainfoundry.store import scramble as module
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import manifest_uri, meta_uri, sidecar_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.resplit import resplit
from brainfoundry.store.scramble import phase_field, scramble, scramble_set, scrambled_codes
from brainfoundry.store.withdraw import withdraw
from brainfoundry.training.leak_gate import hold, open_test_set
from brainfoundry.training.seen import own_scans
from tests.jobs.in_process import load_job, runner
from tests.store.builders import brain
from tests.store.test_absent import FULL, NO_FLAIR, NO_T1, SPEC, cohort
from tests.store.withdrawals import digests

SIDES = st.tuples(*[st.integers(2, 9)] * 3)


def table(uri: str | Path) -> list[dict[str, Any]]:
    return ShardSet.open(str(uri)).index.to_pylist()


# ---------------------------------------------------------------------------------------------------------
# Volumes


@settings(max_examples=30, deadline=None)
@given(shape=SIDES, seed=st.integers(0, 2**32))
def test_amplitudes_stay_and_phases_do_not(shape: tuple[int, int, int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(3, 2, shape)
    found = scramble(values, phase_field(seed, "somebody", "2", shape))
    assert found.shape == shape and found.dtype == np.float64
    np.testing.assert_allclose(abs(fft.fftn(found)), abs(fft.fftn(values)), atol=1e-9)
    assert found.mean() == pytest.approx(values.mean())  # frequency 0 keeps its sign too
    assert found.std() == pytest.approx(values.std())  # Parseval


def test_phases_are_spread_evenly_and_are_the_sessions_own() -> None:
    field = phase_field(1, "a", "2", (24, 20, 22))
    np.testing.assert_allclose(abs(field), 1)
    assert abs(np.mean(field)) < 0.03 and abs(np.mean(field**2)) < 0.03
    others = [phase_field(*key, (24, 20, 22)) for key in ((2, "a", "2"), (1, "b", "2"), (1, "a", "3"))]
    assert all(abs(np.mean(field * other.conj())) < 0.05 for other in others)
    assert np.array_equal(field, phase_field(1, "a", "2", (24, 20, 22)))


def test_how_two_modalities_relate_at_each_frequency_stays() -> None:
    one, two = (np.random.default_rng(i).normal(size=(12, 10, 14)) for i in range(2))
    field = phase_field(0, "a", "", one.shape)
    pairs = (one, two), (scramble(one, field), scramble(two, field))
    cross = [fft.rfftn(a) * fft.rfftn(b).conj() for a, b in pairs]
    np.testing.assert_allclose(cross[1], cross[0], atol=1e-8)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_background_mean_and_spread_stay_and_the_image_does_not(dtype: str) -> None:
    codes = brain(3).astype(dtype)
    found = scrambled_codes(codes, 0.0, phase_field(0, "a", "2", codes.shape))
    assert found.dtype == codes.dtype
    assert np.array_equal(found == 0, codes == 0)
    inside = codes != 0
    before, after = codes[inside].astype(float), found[inside].astype(float)
    assert after.mean() == pytest.approx(before.mean(), abs=0.05)
    assert after.std() == pytest.approx(before.std(), rel=1e-3)
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.1


@pytest.mark.parametrize("zero", [0, 32_767, -32_768])
def test_brain_never_becomes_background(zero: int) -> None:
    rng = np.random.default_rng(0)
    codes = np.clip(zero + rng.integers(-2, 3, (16, 16, 16)), -32_768, 32_767).astype(np.int16)
    found = scrambled_codes(codes, float(zero), phase_field(0, "a", "2", codes.shape))
    assert np.array_equal(found == zero, codes == zero) and (codes != zero).any()


def test_a_brain_without_contrast_stays_as_it_is() -> None:
    codes = np.zeros((8, 8, 8), np.int16)
    codes[2:6, 2:6, 2:6] = 7
    assert np.array_equal(scrambled_codes(codes, 0.0, phase_field(0, "a", "2", codes.shape)), codes)


# ---------------------------------------------------------------------------------------------------------
# Sets


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both scans, T1w alone, FLAIR of floats alone; two shards, one subject in the test split."""
    folder = tmp_path_factory.mktemp("scramble")
    convert(cohort(folder / "ukb"), str(folder / "source"), SPEC, executor=inline)
    uri = str(folder / "source")
    resplit(uri, {FULL: ("train", 1), NO_FLAIR: ("test", None), NO_T1: ("val", 0)}, {"method": "by hand"})
    return uri


@pytest.fixture(scope="module")
def made(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    scramble_set(source, str(out), seed=5, threads=2)
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "set", copy_function=shutil.copy2)
    return tmp_path / "set"


def test_the_same_people_in_the_same_places(made: Path, source: str) -> None:
    before, after = ShardSet.open(source), ShardSet.open(str(made))
    assert after.verify() == []
    assert after.meta.cohort == before.meta.cohort + "-scrambled"
    assert after.meta.modalities == before.meta.modalities
    same = (
        "subject",
        "session",
        "split",
        "fold",
        "shard",
        "row",
        "shape",
        "spacing",
        "box_lo",
        "box_hi",
        "slices",
    )
    rows = [[{name: row[name] for name in same} for row in table(uri)] for uri in (source, made)]
    assert rows[0] == rows[1]
    for one, two in zip(table(source), table(made), strict=True):
        np.testing.assert_array_equal(
            before.affine(one["shard"], one["row"]), after.affine(two["shard"], two["row"])
        )


def test_scans_keep_their_codes_mean_and_spread(made: Path, source: str) -> None:
    before, after = ShardSet.open(source), ShardSet.open(str(made))
    for one, two in zip(table(source), table(made), strict=True):
        for a, b in zip(one["scans"], two["scans"], strict=True):
            kept = ("modality", "present", "coding", "code_dtype", "nonzero")
            assert {n: a[n] for n in kept} == {n: b[n] for n in kept}
            if a["coding"] != "affine":
                assert all(a[n] == b[n] for n in ("slope", "inter", "zero_code"))
            assert b["mean"] == pytest.approx(a["mean"], rel=1e-4)
            assert b["sd"] == pytest.approx(a["sd"], rel=1e-3)
            place = one["shard"], one["row"], a["modality"]
            codes = [shards.read_volume(*place) for shards in (before, after)]
            assert np.array_equal(codes[0] == a["zero_code"], codes[1] == b["zero_code"])
            assert not a["present"] or not np.array_equal(*codes)


def test_what_the_manifest_says_of_it(made: Path, source: str) -> None:
    before, after = (read_manifest(manifest_uri(str(uri))) for uri in (source, made))
    assert after.meta.rules["scrambled"] == {"source": source, "manifest_hash": before.hash, "seed": 5}
    assert "a control" in after.meta.notes[-1] and after.meta.splits == before.meta.splits
    assert after.meta.source == source
    people = [[(r.key, r.split, r.fold, r.age, r.sex, r.site) for r in m.rows()] for m in (before, after)]
    assert people[0] == people[1]
    restored = ShardSet.open(str(made)).to_nifti(0, 0, "T1w")
    assert restored.header["descrip"].tobytes().startswith(b"phases scrambled")


def test_who_is_trained_on_counts_as_seen(made: Path, source: str) -> None:
    seen = own_scans(ShardSet.open(str(made)), ("T1w", "FLAIR"), run="control", stage="pretrain-1")
    tests = [open_test_set(source, split=split) for split in ("train", "test")]
    held = hold(tests, {"control": seen})
    assert [h.leaks.subjects for h in held] == [[FULL], []]


def test_masks_are_left_behind(labelled: tuple[Path, Manifest], tmp_path: Path) -> None:
    source, _ = labelled
    meta = scramble_set(str(source), str(tmp_path / "out"))
    before, after = table(source), table(tmp_path / "out")
    assert meta.labels == "" and ShardSet.open(str(tmp_path / "out")).label_channel is None
    assert any(row["has_label"] for row in before) and not any(row["has_label"] for row in after)
    manifest = read_manifest(manifest_uri(str(tmp_path / "out")))
    assert manifest.meta.labels == "" and all(row.label is None for row in manifest.rows())
    excluded = [row for row in manifest.rows() if not row.included]
    assert [row.reason for row in excluded] == ["label_values"]  # case 6 of the source: still told


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    from tests.store.builders import brats_intake, lesion, put_brats

    folder = tmp_path_factory.mktemp("labelled")
    for case in range(1, 4):
        put_brats(folder / "brats", case, lesion(5) if case == 3 else lesion(1, 2, 4))
    intake = brats_intake(folder / "brats")
    convert(intake, str(folder / "out"), replace(SPEC, min_slices=10), executor=inline)
    return folder / "out", intake


def test_the_seed_decides(made: Path, source: str, tmp_path: Path) -> None:
    scramble_set(source, str(tmp_path / "again"), seed=5, threads=1)
    assert digests(tmp_path / "again") == digests(made)
    scramble_set(source, str(tmp_path / "other"), seed=6)
    first = [ShardSet.open(str(uri)).read_volume(0, 0, "T1w") for uri in (made, tmp_path / "other")]
    assert not np.array_equal(*first)


def test_an_interrupted_one_is_gone_on_with(
    copy: Path, made: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(meta_uri(str(copy))).unlink()
    Path(sidecar_uri(str(copy), 1)).unlink()
    done: list[int] = []
    plain = module._scramble_shard

    def noted(job: Any, shard: int, *rest: Any) -> None:
        done.append(shard)
        plain(job, shard, *rest)

    monkeypatch.setattr(module, "_scramble_shard", noted)
    scramble_set(source, str(copy), seed=5)
    assert done == [1] and digests(copy) == digests(made)
    scramble_set(source, str(copy), seed=5)
    assert done == [1]


def test_what_is_something_else_is_left_alone(copy: Path, source: str, tmp_path: Path) -> None:
    before = digests(copy)
    with pytest.raises(DataError, match=r"with another seed.*Fix: choose another folder"):
        scramble_set(source, str(copy), seed=6)
    with pytest.raises(DataError, match="scrambled from another source"):
        scramble_set(str(copy), str(copy), seed=5)
    with pytest.raises(DataError, match="holds another shard set"):
        scramble_set(source, source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"folder is not empty: notes.txt"):
        scramble_set(source, str(tmp_path / "full"))
    with pytest.raises(DataError, match="no shard set here"):
        scramble_set(str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert digests(copy) == before and not (tmp_path / "out").exists()


def test_people_can_be_withdrawn_from_it(copy: Path) -> None:
    assert withdraw(str(copy), [FULL]).subjects == (FULL,)
    assert [row["subject"] for row in table(copy)] == [NO_FLAIR, NO_T1]
    assert ShardSet.open(str(copy)).verify() == []
    assert read_manifest(manifest_uri(str(copy))).meta.rules["scrambled"]["seed"] == 5


def test_the_job(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = load_job("scramble")
    run = runner(job, job.ScrambleConfig, capsys)
    code, out, err = run("--shards", source, "--out", tmp_path / "out", "--seed", 5)
    assert code == 0, err
    assert "3 sessions of ukb-scrambled (T1w, FLAIR) in 2 shards" in out
    code, _, err = run("--shards", source)
    assert code == 2 and "nothing to scramble. Fix: --shards SHARDS --out FOLDER" in err
