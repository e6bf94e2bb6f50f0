"""Lists of ids, as people write them, and the tables beside them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.left_out import LeftOut, read_ids
from brainfoundry.cohorts.tables import read_table
from brainfoundry.core.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "101\n102\n",
        "\ufeff101\r\n102",
        "# withdrawn in 2026\n\n  101  \n102\n\n# end\n101\n",
        "eid\n101\n102\n",
        "\ufeffEID,why\n101,consent\n102,\n,nobody\n",
        "# list\nwhen\tParticipant_ID\n2026\t101\n2026\t102\n",
        'site;subject\n"a;b";101\nc;102\n',
        "101,\n102,\n",
    ],
)
def test_lists_as_people_write_them(tmp_path, text) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(text, encoding="utf-8")
    assert read_ids(str(path)) == {"101", "102"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no id"),
        (b"# nobody\n\n", "holds no id"),
        (b"eid\n", "holds no id"),
        (b"name,number\nx,101\n", "line 1 has several columns"),
        ("101\n".encode("utf-16"), "not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "is not text"),
        (b"x" * 200_000 + b'\n"' + b"y" * 200_000, "cannot be read: field larger"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, data, words) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_ids(str(path))
    assert caught.value.fix and str(path) in caught.value.line() and "\n" not in caught.value.line()


def test_no_such_list(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no such file.*ids\.txt"):
        read_ids(str(tmp_path / "ids.txt"))
    with pytest.raises(DataError):
        read_ids(str(tmp_path))


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=60))
def test_any_bytes_give_ids_or_one_line(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_bytes(data)
    try:
        ids = read_ids(str(path))
    except DataError as error:
        assert "\n" not in error.line() and error.fix
    else:
        assert ids and all(i == i.strip() and i for i in ids)


def test_reasons_and_notes(tmp_path) -> None:
    withdrawn, tumours = tmp_path / "w.txt", tmp_path / "t.csv"
    withdrawn.write_text("101\n01\n999\n")
    tumours.write_text("subject,icd10\n102,C71\n101,C71\n888,C71\n889,C71\n")
    lists = LeftOut.read(withdrawn=str(withdrawn), brain_tumours=str(tumours))
    reasons = {s: lists.reason(s) for s in ("101", "102", "103", "sub-01", "sub-101", "sub-1")}
    assert reasons == {
        "101": "withdrawn", "102": "brain_tumour", "103": "", "sub-01": "withdrawn", "sub-101": "withdrawn",
        "sub-1": "",
    }  # fmt: skip
    assert lists.rules() == {"withdrawn_ids": 3, "brain_tumour_ids": 4}
    assert lists.notes({"101", "102", "sub-01"}) == [
        "1 of the 3 ids of the withdrawal list are of nobody here",
        "2 of the 4 ids of the list of brain tumours are of nobody here",
    ]
    assert not any(i in " ".join(lists.notes({"101"})) for i in ("999", "888", "889"))
    nobody = LeftOut.read()
    assert (nobody.reason("101"), nobody.rules(), nobody.notes({"101"})) == ("", {}, [])


def test_tables(tmp_path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("\ufeffParticipant_ID\tAge\n# a comment\nsub-01\t 61 \nsub-02\n\nsub-03\t4\t5\n")
    table = read_table(str(path), "table")
    assert table.columns == ("participant_id", "age")
    assert table.rows == (
        (3, {"participant_id": "sub-01", "age": "61"}),
        (4, {"participant_id": "sub-02"}),
        (6, {"participant_id": "sub-03", "age": "4"}),
    )
    assert table.first(("years", "age")) == "age" and table.first(("sex",)) is None
    path.write_text("\n")
    with pytest.raises(DataError, match="table is empty"):
        read_table(str(path), "table")
