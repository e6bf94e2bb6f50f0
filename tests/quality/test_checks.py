"""The rules themselves: facts in, findings out; what is measured of a volume; pictures and tables."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.fingerprint import fingerprint
from brainfoundry.core.errors import ClusterError, ConfigError, DataError
from brainfoundry.quality import executors
from brainfoundry.quality.cohort_checks import duplicates, minorities, outliers
from brainfoundry.quality.expect import Expectation
from brainfoundry.quality.facts import ScanFacts, measure
from brainfoundry.quality.findings import CODES, count, finding, write_findings
from brainfoundry.quality.report import page, write_report
from brainfoundry.quality.scan_checks import check_scan
from brainfoundry.quality.sources import inspection_of
from brainfoundry.quality.thumbnails import planes, png
from brainfoundry.quality.verify import of_intake, verify
from tests.quality.builders import AFFINE, SHAPE, brain, cohort, inside, session

EXPECT = Expectation(
    modalities=("T1w",), space="MNI152", skull_stripped=True, labels="", min_slices=30, resampled=False
)
RNG = np.random.default_rng(0)


def facts(subject: str = "s", seed: int = 0, **changes: object) -> ScanFacts:
    given_ = ScanFacts(
        subject=subject, session="1", modality="T1w", file=f"/data/{subject}.nii.gz", shape=SHAPE,
        spacing=(4.0, 4.0, 4.0), orientation="RAS", sha256="", **_measured(seed),
    )  # fmt: skip
    return replace(given_, **changes)


def _measured(seed: int, _known: dict[int, dict[str, object]] = {}) -> dict[str, object]:  # noqa: B006
    if seed not in _known:
        _known[seed] = measure(brain(seed), AFFINE)
    return _known[seed]


def test_what_is_measured_of_a_brain() -> None:
    found = facts()
    assert found.finite and found.distinct and found.slices == inside().any(axis=(0, 1)).sum()
    assert found.foreground_ml == pytest.approx(inside().sum() * 64 / 1000, rel=0.02)
    assert found.dice > 0.95 and found.cover > 0.95
    assert found.background_share == pytest.approx((brain(0) == 0).mean())
    assert found.mean == pytest.approx(brain(0)[inside()].mean(), rel=0.02)
    assert bytes.fromhex(found.print) == fingerprint(brain(0))
    assert ScanFacts.from_dict(found.to_dict()) == found
    assert list(check_scan(found, EXPECT)) == []


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from(["float32", "float64"]))
def test_scaling_changes_intensities_alone(scale: float, dtype: str) -> None:
    before, after = _measured(0), measure((brain(0) * scale).astype(dtype), AFFINE)
    for name in ("slices", "background_share", "foreground_ml", "dice", "cover"):
        assert after[name] == pytest.approx(before[name], rel=0.005)
    for name in ("mean", "sd", "p1", "median", "p99"):
        assert after[name] == pytest.approx(before[name] * scale, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=3), st.integers(0, 99))
def test_any_volume_can_be_measured_and_drawn(shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape).astype(np.float32)
    values[rng.random(shape) < 0.2] = rng.choice([np.nan, np.inf, 0.0, -5.0, 1e30])
    found = facts(**measure(values, np.diag([*rng.uniform(0.05, 30, 3), 1])))
    assert found.finite == bool(np.isfinite(values).all())
    assert all(f.code in CODES for f in check_scan(found, EXPECT))
    assert planes(values, (1.0, 40.0, 0.01)).dtype == np.uint8


def codes(found: object) -> list[str]:
    return sorted(f.code for f in found)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "expect", "expected"),
    [
        ({"finite": False}, {}, ["not_finite"]),
        ({"distinct": False}, {}, ["constant"]),
        ({"distinct": False, "slices": 0, "dice": 0.0}, {}, ["empty"]),
        ({"slices": 29}, {}, ["few_slices"]),
        ({"slices": 30}, {}, []),
        ({"spacing": (1.0, 1.0, 13.0)}, {}, ["spacing"]),
        ({"spacing": (0.001, 0.001, 0.001)}, {}, ["spacing"]),  # metres written as millimetres
        ({"foreground_ml": 2_300.0}, {}, ["not_stripped"]),
        ({"background_share": 0.01}, {}, ["not_stripped"]),
        ({"dice": 0.84}, {}, ["off_template"]),
        ({"dice": 0.49}, {}, ["not_in_template"]),
        ({"dice": 0.1}, {"space": ""}, []),
        ({"dice": 0.1}, {"space": "SRI24"}, []),
        ({"dice": 0.1}, {"space": "MNI152NLin2009aSym"}, ["not_in_template"]),
        ({}, {"skull_stripped": False}, ["looks_stripped"]),
        ({"foreground_ml": 3_800.0, "dice": 0.65}, {"skull_stripped": False}, []),
        ({"foreground_ml": 3_800.0, "cover": 0.6}, {"skull_stripped": False}, ["not_in_template"]),
    ],
)
def test_rules_for_one_scan(
    changes: dict[str, object], expect: dict[str, object], expected: list[str]
) -> None:
    assert codes(check_scan(facts(**changes), replace(EXPECT, **expect))) == expected  # type: ignore[arg-type]


def people(n: int, **changes: object) -> list[ScanFacts]:
    return [facts(f"s{i:02d}", i % 4, **changes) for i in range(n)]


def test_minorities_need_a_majority() -> None:
    cohort_ = people(10)
    assert list(minorities(cohort_)) == []
    odd = replace(cohort_[3], shape=(40, 40, 40), orientation="LPS")
    assert codes(minorities([*cohort_[:3], odd, *cohort_[4:]])) == ["orientation", "shape"]
    assert list(minorities([*cohort_[:3], odd])) == []  # too few to say what is usual
    half = [replace(f, orientation="LAS") for f in cohort_[:5]]
    assert list(minorities([*half, *cohort_[5:]])) == []


@settings(max_examples=20, deadline=None)
@given(st.floats(2.5, 1e6), st.booleans(), st.integers(0, 19))
def test_outliers_are_found_wherever_they_stand(factor: float, darker: bool, where: int) -> None:
    cohort_ = people(20)
    scale = 1 / factor if darker else factor
    cohort_[where] = replace(cohort_[where], mean=cohort_[where].mean * scale, sd=cohort_[where].sd * scale)
    (one,) = outliers(cohort_)
    assert (one.code, one.subject) == ("intensity_outlier", f"s{where:02d}")
    assert list(outliers(people(20))) == [] and list(outliers(cohort_[:5])) == []


def test_one_pair_of_many_scans() -> None:
    def coded(seed: int) -> str:
        bits = np.packbits(np.random.default_rng(seed).integers(0, 2, 1331, dtype=np.uint8))
        return bits.tobytes().ljust(168, b"\0").hex()

    cohort_ = [facts(f"s{i:05d}", print=coded(i)) for i in range(3_000)]
    cohort_[2_500] = replace(cohort_[2_500], print=coded(17))
    (one,) = duplicates(cohort_)
    assert (one.code, one.subject) == ("duplicate_subjects", "s02500") and "s00017" in one.detail
    assert list(duplicates([])) == []


def test_tables_hold_every_finding(tmp_path: Path) -> None:
    found = [
        finding(
            "changed", "it, was\nanother", "restore it", subject="s1", session="1", file="=cmd|' /C calc'!A0"
        ),
        finding("shape", "grid", "resample", subject="s2", modality="T1w"),
    ]
    table, parquet = write_findings(str(tmp_path), found)
    rows = list(csv.DictReader(io.StringIO(Path(table).read_text())))
    assert [r["code"] for r in rows] == ["changed", "shape"] and rows[0]["detail"] == "it, was\nanother"
    assert rows[0]["file"].startswith("'=")  # no formula for a spreadsheet
    stored = pq.read_table(parquet).to_pylist()
    assert stored[0]["file"].startswith("=") and stored[1]["severity"] == "warning"
    assert count(found) == {"changed": (1, 1), "shape": (1, 1)}
    with pytest.raises(ValueError, match="unknown finding"):
        finding("nonsense", "", "")


def test_planes_show_left_left_and_up_up() -> None:
    volume = np.zeros((20, 24, 28), np.float32)
    volume[2:18, 2:22, 2:26] = 0.4
    volume[2:6, 18:22, 22:26] = 1  # left, front, top
    image = planes(volume, (1.4, 1.4, 1.4))[..., 0]
    assert image.shape == (28, 24 + 20 + 20 + 12)
    sagittal, coronal, axial = image[:, 2:26], image[:, 30:50], image[2:26, 54:74]
    for plane in (sagittal, coronal, axial):
        assert plane.max() > 0
    marks = np.zeros(volume.shape, bool)
    marks[3, 20, 24] = True
    red = planes(volume, (1.4, 1.4, 1.4), marks).astype(int)
    rows, columns = np.nonzero(red[..., 0] - red[..., 1] > 50)
    assert len(rows) == 3  # one voxel in each plane
    at = sorted(zip(columns.tolist(), rows.tolist(), strict=True))
    assert at == [(2 + 20, 28 - 1 - 24), (30 + 3, 28 - 1 - 24), (54 + 3, 2 + 24 - 1 - 20)]
    assert png(planes(volume, (1.4, 1.4, 1.4))).startswith(b"\x89PNG")


def test_the_page_says_when_pictures_are_capped(tmp_path: Path) -> None:
    sessions = [session(n) for n in range(9)]
    for one in sessions[:5]:
        one.images["label"].data[:] = 0
    sessions[0].subject = "<b>s&0"
    done = verify(of_intake(cohort(tmp_path / "c", sessions), "manifest.parquet"))
    written = write_report(done, str(tmp_path / "out"), thumbnails=2)
    text = Path(written[2]).read_text()
    assert text.count("data:image/png") == 2 and "at most 2 of 5 suspects" in text
    assert "<b>s&0" not in text and "&lt;b&gt;s&amp;0" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "Nothing: every scan" in page(replace(done, findings=()), {}, cap=1)


def test_a_failing_task_ends_in_one_line(ray_local: int) -> None:
    run = executors.on_ray(per_task=2)
    assert sorted(run(_square, range(9))) == [n * n for n in range(9)]
    assert list(run(_square, [])) == []
    with pytest.raises(DataError, match="storage is down"):
        list(run(_fail, range(3)))
    with pytest.raises(ClusterError, match="was lost"):
        list(run(_die, range(1)))


def _square(n: int) -> int:
    return n * n


def _fail(n: int) -> int:
    raise DataError("storage is down", file="s3://bucket")


def _die(n: int) -> int:
    import os

    os._exit(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to verify"),
        ({"manifest": "a", "shards": "b"}, "--manifest and --shards"),
        ({"source": "a"}, "--source without --cohort"),
    ],
)
def test_what_to_verify_is_named_once(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        inspection_of(**options)  # type: ignore[arg-type]
