"""The frame of every job: exit codes, and one line instead of a traceback."""

import pickle
from dataclasses import dataclass

import pytest

from brainfoundry.core.errors import BrainFoundryError, ConfigError, DataError
from brainfoundry.core.job import run_job


@dataclass(frozen=True, kw_only=True)
class Config:
    n: int = 1
    """A number."""


def run(main, *argv: str) -> int:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stop:
        run_job(Config, main, description="Test.", argv=argv)
    return int(stop.value.code or 0)


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(config: Config) -> None:
        raise DataError("bad scan", file="x.zip", subject="9900001", fix="download it again")

    assert run(lambda c: None) == 0
    assert run(lambda c: c.n, "--n", "3") == 3
    assert run(broken) == 1
    assert capsys.readouterr().err == (
        "error: bad scan [subject 9900001; file x.zip]. Fix: download it again\n"
    )
    assert run(lambda c: None, "--m", "3") == 2
    assert "unknown option --m" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [BrainFoundryError, ConfigError, DataError])
def test_errors_survive_pickling(kind: type[BrainFoundryError]) -> None:
    error = kind("a\n  problem", file="f", subject="s", fix="do\nthis")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.line() == error.line() == "a problem [subject s; file f]. Fix: do this"
