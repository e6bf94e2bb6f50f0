"""What validation found: means over what is defined, written whole, read back with its gaps."""

import math
import uuid

import pytest

from brainfoundry.core import files
from brainfoundry.training.verdicts import Verdict, read_verdict, verdict_of, write_verdict


def judged_steps(folder: str) -> list[int]:
    """Steps that have a verdict, ascending."""
    return sorted(int(name[5:13]) for name in files.list_names(folder))


def test_means_leave_out_what_is_undefined() -> None:
    rows = [
        {"subject": "a", "session": "", "dice": 0.5, "hd95": math.nan},
        {"subject": "b", "session": "", "dice": 1.0, "hd95": math.inf},
    ]
    assert verdict_of(3, rows, 1.0).metrics == {"val/dice": 0.75}
    assert verdict_of(3, [], 1.0).metrics == {}


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_written_and_read(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = str(tmp_path) if kind == "local" else f"memory://{uuid.uuid4().hex}"
    assert read_verdict(folder, 10) is None and judged_steps(folder) == []
    rows = [{"subject": "a", "session": "1", "dice": 0.5, "hd95": math.nan}]
    write_verdict(folder, verdict_of(10, rows, 2.5))
    write_verdict(folder, Verdict(5, {}, (), 0.1, "out of memory"))
    assert judged_steps(folder) == [5, 10]
    found = read_verdict(folder, 10)
    assert found is not None and found.metrics == {"val/dice": 0.5} and found.seconds == 2.5
    assert math.isnan(found.rows[0]["hd95"]) and found.rows[0]["dice"] == 0.5
    failed = read_verdict(folder, 5)
    assert failed is not None and failed.problem == "out of memory" and not failed.metrics
