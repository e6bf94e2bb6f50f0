"""The UK Biobank reader with the user's lists of withdrawn participants and brain tumours."""

from __future__ import annotations

from brainfoundry.cohorts.intake import exclusions_of
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.ukb import UKBRules

from .builders import intake, put_subject, put_zip


def test_lists_leave_participants_out(bulk, tmp_path) -> None:
    for eid in (101, 102, 103, 104):
        put_subject(bulk, eid)
    put_subject(bulk, 101, instance=3)
    put_zip(bulk, 105, "T1w")
    (bulk / "101_20252_2_0.zip").write_bytes(b"")  # of somebody withdrawn nothing is read
    table = tmp_path / "people.tsv"
    table.write_text("eid\tage\n102\t61\n103\t62\n104\t63\n105\t64\n")
    withdrawn, tumours = tmp_path / "w.txt", tmp_path / "t.csv"
    withdrawn.write_text("101\n777\n")
    tumours.write_text("eid\n101\n102\n105\n")
    lists = LeftOut.read(withdrawn=str(withdrawn), brain_tumours=str(tumours))
    manifest = intake(bulk, UKBRules(instances=(2, 3)), participants=str(table), left_out=lists)
    rows = {row.key: row for row in manifest.rows()}
    assert {key: row.reason for key, row in rows.items()} == {
        ("101", "2"): "withdrawn", ("101", "3"): "withdrawn", ("102", "2"): "brain_tumour",
        ("103", "2"): "", ("104", "2"): "", ("105", "2"): "brain_tumour",
    }  # fmt: skip
    gone = rows["101", "2"]
    assert (gone.scans, gone.age, gone.detail) == ((), None, "consent was withdrawn")
    assert rows["102", "2"].age == 61 and len(rows["102", "2"].scans) == 2
    assert "FLAIR: no file" in rows["105", "2"].detail
    assert manifest.meta.rules["withdrawn_ids"] == 2
    assert "1 of the 2 ids of the withdrawal list are of nobody here" in manifest.meta.notes
    assert not any("do not know" in note or "does not know" in note for note in manifest.meta.notes)
    counts = {line.reason: (line.subjects, line.sessions) for line in exclusions_of(manifest)}
    assert counts["withdrawn"] == (1, 2) and counts["brain_tumour"] == (2, 2)
    assert counts["included"] == (2, 2)


def test_without_lists_the_manifest_is_as_before(bulk) -> None:
    put_subject(bulk, 101)
    manifest = intake(bulk)
    assert not any(name.endswith("_ids") for name in manifest.meta.rules)
    assert intake(bulk, left_out=LeftOut()).hash == manifest.hash
