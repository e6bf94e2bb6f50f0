"""One kind of error for whatever a user can mend: what is wrong, where, and what to do about it."""

from __future__ import annotations


class BrainFoundryError(Exception):
    """A problem a user can act on, told in one line.

    Args:
        problem: what is wrong, in the user's words.
        file: the file, archive member or URI it is about.
        subject: the participant it is about.
        fix: what to do, as an instruction.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object | None = None,
        subject: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem = " ".join(str(problem).split())
        self.file = None if file is None else str(file)
        self.subject = subject
        self.fix = None if fix is None else " ".join(fix.split())
        super().__init__(self.line())

    def line(self) -> str:
        """The whole message on one line: problem [subject; file]. Fix: ..."""
        where = "; ".join(
            part
            for part in (
                f"subject {self.subject}" if self.subject else "",
                f"file {self.file}" if self.file else "",
            )
            if part
        )
        text = self.problem + (f" [{where}]" if where else "")
        return text + (f". Fix: {self.fix}" if self.fix else "")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries in Ray; keyword-only fields need a hand.
        return (_rebuild, (type(self), self.problem, self.file, self.subject, self.fix))


def _rebuild(
    kind: type[BrainFoundryError], problem: str, file: str | None, subject: str | None, fix: str | None
) -> BrainFoundryError:
    error = kind.__new__(kind)
    BrainFoundryError.__init__(error, problem, file=file, subject=subject, fix=fix)
    return error


class ConfigError(BrainFoundryError):
    """A configuration that cannot be used: unknown field, wrong type, impossible combination."""


class DataError(BrainFoundryError):
    """A scan, archive, manifest or shard that cannot be used."""


class DivergedError(DataError):
    """A training whose loss is no longer finite: by its options, or by what it reads."""


class CheckpointError(BrainFoundryError):
    """A checkpoint that is damaged or does not fit the model or data it is asked to serve."""


class ClusterError(BrainFoundryError):
    """The cluster cannot give what the run asks for."""
