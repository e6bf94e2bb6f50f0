"""The CONSORT flow adds up, names every rule, and hides what is small."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.exclusions import REASONS, count_rows
from brainfoundry.reports.consort import flow
from brainfoundry.reports.consort_figure import draw
from tests.reports.builders import manifest, person


def lines(found) -> dict[str, tuple[str, str]]:
    """code -> (subjects, sessions) of everything in a flow."""
    entries = [*found.steps, *found.splits, *(line for s in found.steps for box in s.boxes for line in box)]
    return {entry.code: (entry.subjects, entry.sessions) for entry in entries}


def cohort(tmp_path, **reasons):
    """A manifest with so many participants of each reason; `included` of train, `val` and `test` too."""
    rows, i = [], 0
    for name, n in reasons.items():
        for _ in range(n):
            split = {"included": "train"}.get(name, name)
            rows.append(person(i, split) if name in ("included", "val", "test") else person(i, reason=name))
            i += 1
    return manifest(tmp_path, rows)


def test_every_rule_and_split_with_its_count(tmp_path) -> None:
    found = flow(cohort(tmp_path, included=20, val=6, test=7, withdrawn=5, brain_tumour=8, missing_modality=9,
                        grid_mismatch=10, damaged_data=11))  # fmt: skip
    assert lines(found) == {
        code: (str(n), str(n))
        for code, n in {
            "assessed": 76, "withdrawn": 5, "brain_tumour": 8, "judged": 63, "missing_modality": 9,
            "grid_mismatch": 10, "readable": 44, "damaged_data": 11, "included": 33, "split train": 20,
            "split val": 6, "split test": 7,
        }.items()
    }  # fmt: skip
    boxes = [[line.code for line in box] for step in found.steps for box in step.boxes]
    # Withdrawn and brain tumours have a box each; other rules share one for headers and one for voxels.
    assert boxes == [["withdrawn"], ["brain_tumour"], ["missing_modality", "grid_mismatch"], ["damaged_data"]]
    assert [step.left_out for step in found.steps[1:3]] == [("19", "19"), ("11", "11")]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["", "", *REASONS]), min_size=1, max_size=3), min_size=1, max_size=30)
)
def test_the_flow_adds_up(tmp_path_factory, people) -> None:
    rows = [
        person(i, reason=reason, session=str(j + 2))
        for i, of in enumerate(people)
        for j, reason in enumerate(of)
    ]
    found = flow(manifest(tmp_path_factory.mktemp("m"), rows), show_small_counts=True)
    expected = count_rows(rows)
    for code, numbers in lines(found).items():
        if code in expected:
            assert numbers == (str(expected[code]["subjects"]), str(expected[code]["sessions"]))
    for what in (0, 1):
        for step, after in zip(found.steps, found.steps[1:], strict=False):
            out = sum(int((line.subjects, line.sessions)[what]) for box in step.boxes for line in box)
            left = int((step.subjects, step.sessions)[what]) - out
            assert left == int((after.subjects, after.sessions)[what])


def test_small_counts_are_hidden(tmp_path) -> None:
    made = cohort(tmp_path, included=20, val=2, brain_tumour=3, damaged_data=7)
    told = lines(flow(made))
    assert told["brain_tumour"] == ("<5", "<5")
    # 32 assessed less 29 judged would give it away; the sizes that remain and the splits are always shown.
    assert not (told["assessed"][0] == "32" and told["readable"][0].isdecimal())
    assert told["included"] == ("22", "22") and told["split val"] == ("2", "2")
    assert lines(flow(made, show_small_counts=True))["brain_tumour"] == ("3", "3")


def test_one_file_each_as_in_the_demo(tmp_path) -> None:
    once = dict.fromkeys(("unreadable_archive", "missing_modality", "too_few_slices_header",
                                     "damaged_data", "too_few_slices_content"), 1)  # fmt: skip
    found = flow(cohort(tmp_path, included=10, val=2, **once))
    told = lines(found)
    assert all(told[reason] == ("<5", "<5") for reason in once)
    # Nor can the three and the two that a step left out be told from the sizes before and after it.
    assert told["assessed"] == ("17", "17") and told["included"] == ("12", "12")
    assert not told["readable"][0].isdecimal()
    assert [step.left_out for step in found.steps[:2]] == [("<5", "<5")] * 2


def test_rules_carry_their_values(tmp_path) -> None:
    rules = {"min_slices_header": 90, "conversion": {"min_slices": 80}, "grid_tolerance_mm": 0.001}
    rows = [person(0), person(1, reason="too_few_slices_header"), person(2, reason="too_few_slices_content"),
            person(3, reason="grid_mismatch"), person(4, reason="missing_modality")]  # fmt: skip
    texts = {line.code: line.text for step in flow(manifest(tmp_path, rows, rules=rules)).steps
             for box in step.boxes for line in box}  # fmt: skip
    assert "fewer than 90 slices" in texts["too_few_slices_header"]
    assert "fewer than 80 axial slices" in texts["too_few_slices_content"]
    assert "0.001 mm" in texts["grid_mismatch"] and "T1w, FLAIR" in texts["missing_modality"]


def test_an_intake_promises_nothing_of_voxels(tmp_path) -> None:
    rows = [person(0, ""), person(1, reason="not_nifti")]
    found = flow(manifest(tmp_path, rows, stage="intake"), show_small_counts=True)
    assert [step.code for step in found.steps] == ["assessed", "included"]
    assert "voxels not yet read" in found.steps[-1].text and not found.splits


def test_a_clean_cohort_and_an_empty_one(tmp_path) -> None:
    clean = flow(manifest(tmp_path, [person(0), person(1)]))
    assert [(s.code, s.subjects) for s in clean.steps] == [("assessed", "2"), ("included", "2")]
    nobody = flow(manifest(tmp_path, [person(0, reason="not_nifti")]))
    assert nobody.steps[-1].subjects == "0"
    for found in (clean, nobody):
        assert draw(found)[0].startswith(b"\x89PNG")


def test_the_paper_stands_beside_uk_biobank_only(tmp_path) -> None:
    assert [n for _, n in flow(manifest(tmp_path, [person(0)])).paper] == [44_172, 43_369, 41_400]
    assert not flow(manifest(tmp_path, [person(0)], cohort="brats")).paper


def test_csv_and_pictures(tmp_path) -> None:
    found = flow(cohort(tmp_path, included=20, val=6, brain_tumour=8, missing_modality=9, damaged_data=2))
    rows = list(csv.DictReader(io.StringIO(found.csv().decode())))
    told = {row["code"]: row["subjects"] for row in rows if row["source"] == "this cohort"}
    assert told["brain_tumour"] == "8" and told["split train"] == "20" and told["damaged_data"] == "<5"
    assert sum(row["source"] == "paper, Fig. 3" for row in rows) == 3
    png, svg = draw(found)
    assert png.startswith(b"\x89PNG") and b"<svg" in svg[:500]
    assert draw(found) == (png, svg)  # the same bytes every time


@pytest.mark.parametrize("splits", [(), ("train",), ("train", "val", "test", "")])
def test_any_splits_can_be_drawn(tmp_path, splits) -> None:
    rows = [person(i, split) for i, split in enumerate(splits or ("",))]
    found = flow(manifest(tmp_path, rows))
    assert [s.code.removeprefix("split ") for s in found.splits] == list(splits)
    assert draw(found)[0]


def test_a_manifest_older_than_some_rules(tmp_path) -> None:
    made = manifest(tmp_path, [person(0), person(1, reason="not_nifti")])
    older = {code: n for code, n in made.counts().items() if code not in ("withdrawn", "label_values")}
    found = flow(replace(made, meta=replace(made.meta, counts=older)), show_small_counts=True)
    assert lines(found)["not_nifti"] == ("1", "1") and lines(found)["included"] == ("1", "1")
