"""A case to predict: one session's scans, where they lie, and what their source claims of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from brainfoundry.cohorts.rows import Row, Scan
from brainfoundry.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Case:
    """One session to predict.

    Args:
        scans: all that were found, one or several a modality. What a shard set stores names its shard file.
        stored: (URI of the shard set, shard, row) where the scans lie in one; None for files.
        problem: why the intake would not take the session, "" where it would.
        space: template space that its source claims, "" where it claims none.
        skull_stripped: what its source claims, None where it claims nothing.
    """

    subject: str
    session: str
    scans: tuple[Scan, ...]
    stored: tuple[str, int, int] | None = None
    problem: str = ""
    space: str = ""
    skull_stripped: bool | None = None

    @staticmethod
    def of(row: Row, space: str, skull_stripped: bool | None) -> Case:
        """The session of a manifest's row."""
        return Case(
            subject=row.subject, session=row.session, scans=row.scans, problem=row.detail, space=space,
            skull_stripped=skull_stripped,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Subject and session, for people."""
        return f"{self.subject} {self.session}".rstrip()

    @property
    def bids_subject(self) -> str:
        """The subject as a BIDS label: letters and digits alone."""
        return _plain(self.subject.removeprefix("sub-"))

    @property
    def bids_session(self) -> str:
        """The session as a BIDS label, "" for none."""
        return _plain(self.session.removeprefix("ses-"))

    @property
    def stem(self) -> str:
        """What the names of its outputs begin with: sub-01 or sub-01_ses-1."""
        session = f"_ses-{self.bids_session}" if self.bids_session else ""
        return f"sub-{self.bids_subject}{session}"

    @property
    def folder(self) -> str:
        """Folder of its outputs, below the derivative's."""
        return f"{self.stem.replace('_', '/')}/anat"


def check_ids(cases: Iterable[Case]) -> None:
    """Refuse cases that BIDS cannot tell apart.

    Raises:
        DataError: naming two of them, or one without a letter or digit.
    """
    seen: dict[str, Case] = {}
    for case in cases:
        if not case.bids_subject or bool(case.session) != bool(case.bids_session):
            raise DataError("id without a letter or digit", subject=case.name, fix="rename it")
        other = seen.setdefault(case.stem, case)
        if other is not case:
            raise DataError(
                f"{other.name} and {case.name} would both be written as {case.stem}: BIDS labels are letters "
                "and digits alone",
                fix="rename one of them, or predict them into two folders",
            )


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)
