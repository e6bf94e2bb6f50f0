"""The exclusion table adds up, for subjects and sessions, and reads the same on paper and in JSON."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from brainfoundry.cohorts.exclusions import (
    CONVERSION_REASONS,
    INTAKE_REASONS,
    REASONS,
    SHOWN_WHEN_USED,
    UnsupportedImage,
    exclusion_table,
    first_reason,
    print_exclusions,
    write_exclusions,
)

from .builders import rows

REASON_LISTS = st.lists(st.lists(st.sampled_from(["", *REASONS]), min_size=1, max_size=3), max_size=8)


def cohort(reasons: list[list[str]]):
    """Subjects with sessions of the given reasons ("" = included)."""
    made = []
    for i, of_subject in enumerate(reasons):
        base = rows(i + 1)[-1]
        for session, reason in enumerate(of_subject):
            row = replace(base, session=str(session))
            made.append(row.excluded(reason, "why") if reason else row)
    return made


@settings(deadline=None)
@given(reasons=REASON_LISTS, data=st.data())
def test_table_adds_up_whatever_the_order_of_rows(reasons, data) -> None:
    made = cohort(reasons)
    lines = {line.reason: line for line in exclusion_table(data.draw(st.permutations(made)))}
    for what in ("subjects", "sessions"):
        parts = sum(getattr(line, what) for code, line in lines.items() if code != "assessed")
        assert getattr(lines["assessed"], what) == parts
    assert lines["assessed"].sessions == sum(map(len, reasons))
    assert lines["assessed"].subjects == len(reasons)
    assert lines["included"].subjects == sum("" in of_subject for of_subject in reasons)
    for code in REASONS:
        n = sum(of_subject.count(code) for of_subject in reasons)
        assert lines[code].sessions == n if code in lines else n == 0


def test_a_subject_counts_at_the_furthest_of_its_reasons() -> None:
    lines = {
        line.reason: line.subjects for line in exclusion_table(cohort([["duplicate", "missing_modality"]]))
    }
    assert lines["duplicate"] == 1 and lines["missing_modality"] == 0
    assert first_reason(["duplicate", "missing_modality"]) == "missing_modality"


def test_intake_leaves_out_rules_nobody_applied_yet() -> None:
    made = cohort([[""], ["not_nifti"]])
    intake = [line.reason for line in exclusion_table(made, stage="intake")]
    usual = [code for code in INTAKE_REASONS if code not in SHOWN_WHEN_USED]
    assert intake == ["assessed", *usual, "included"]
    usual = [code for code in REASONS if code not in SHOWN_WHEN_USED]
    assert [line.reason for line in exclusion_table(made)] == ["assessed", *usual, "included"]
    found = exclusion_table(cohort([["empty_volume"]]), stage="intake")
    assert [line.reason for line in found if line.reason in CONVERSION_REASONS] == ["empty_volume"]


@pytest.mark.parametrize("code", SHOWN_WHEN_USED)
def test_a_rule_few_cohorts_have_is_a_line_where_it_left_somebody_out(code: str) -> None:
    lines = {line.reason: line.sessions for line in exclusion_table(cohort([[code], [""]]))}
    assert lines[code] == 1


def test_printed_and_saved_tables_say_the_same(tmp_path) -> None:
    lines = exclusion_table(cohort([[""], ["", "duplicate"], ["not_nifti"]]))
    console = Console(file=io.StringIO(), width=120)
    print_exclusions(lines, title="Cohort", notes=["[a] note"], console=console)
    printed = console.file.getvalue()
    assert "- [a] note" in printed and "the same scan was delivered more than once" in printed
    as_json, as_text = write_exclusions(str(tmp_path / "counts"), lines, title="Cohort", notes=["a note"])
    value = json.loads((tmp_path / "counts.json").read_text())
    assert as_json.endswith("counts.json") and as_text.endswith("counts.md")
    assert value == {"title": "Cohort", "lines": [asdict(line) for line in lines], "notes": ["a note"]}
    text = (tmp_path / "counts.md").read_text()
    assert "| assessed | 3 | 4 |" in text and "| excluded: file is not a NIfTI image | 1 | 1 |" in text
    assert (
        "| included | 2 | 2 |" in text
        and "| excluded: the same scan was delivered more than once | 0 | 1 |" in text
    )


def test_scan_errors_keep_their_reason_across_processes() -> None:
    error = UnsupportedImage("image is 4D", file="a.nii.gz", subject="1")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.reason, again.line()) == (UnsupportedImage, "unsupported_image", error.line())
