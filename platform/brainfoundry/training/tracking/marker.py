"""What has been delivered where, and which steps a server already has."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.training.tracking.spool import spool_of

log = logging.getLogger("brainfoundry.tracking")

_REFUSED_KEPT = 100


def without_secrets(uri: str) -> str:
    """The URI without user name and password: what may be written to a file."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def reason_of(error: BaseException) -> str:
    """Why a request failed, on one line and without passwords: the network's own word where there is one."""
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    told = root if isinstance(root, OSError) else error
    text = " ".join(str(told).split())[:500] or type(told).__name__
    return re.sub(r"://[^/@\s]*@", "://", text)


@dataclass
class Destination:
    """What one server has of a run.

    Attributes:
        run_id: MLflow's id of the run; None before it was made.
        done: per session and lane (artifacts, all other events), how many leading events are dealt with.
        refused: what the server would not take for good (session, seq, reason).
    """

    run_id: str | None = None
    experiment_id: str | None = None
    done: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)

    def position(self, session: str, lane: str) -> int:
        """Events of the session that are done with in a lane ("events" or "artifacts")."""
        return int(self.done.get(session, {}).get(lane, 0))

    def advance(self, session: str, lane: str, count: int) -> None:
        """The first `count` events of the session are done with in the lane."""
        self.done.setdefault(session, {})[lane] = count

    def refuse(self, session: str, seq: int, reason: str) -> None:
        """Note what the server will never take."""
        log.warning("MLflow refused event %d of session %s: %s", seq, session, reason)
        self.refused = [*self.refused, {"session": session, "seq": seq, "reason": reason}][-_REFUSED_KEPT:]


class Marker:
    """`RUN/spool/delivered.json`, written whole or not at all; one entry a destination."""

    def __init__(self, run_dir: str) -> None:
        self._uri = files.join(spool_of(files.absolute(run_dir)), "delivered.json")

    def load(self, uri: str) -> Destination:
        """The state of a destination; a fresh one where nothing is known.

        A damaged marker counts as none: it only saves work, the server is asked what it has.
        """
        entry = self._read().get(without_secrets(uri), {})
        known = {k: entry[k] for k in ("run_id", "experiment_id", "done", "refused") if k in entry}
        return Destination(**known)

    def save(self, uri: str, state: Destination) -> None:
        """Write the state of a destination and keep the others'."""
        files.write_json(self._uri, {**self._read(), without_secrets(uri): vars(state)})

    def _read(self) -> dict[str, Any]:
        try:
            content = files.read_json(self._uri)
        except StorageError:  # an outage: not the same as nothing there
            raise
        except DataError:
            return {}
        return (
            content
            if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values())
            else {}
        )


class StepSet:
    """A set of steps in one bit each: a metric of 200,000 steps takes 25 kB instead of 14 MB."""

    _PAGE = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, step: int) -> None:
        """Put a step in."""
        page, bit = divmod(step, self._PAGE)
        self._pages.setdefault(page, bytearray(self._PAGE // 8))[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, step: int) -> bool:
        page, bit = divmod(step, self._PAGE)
        bits = self._pages.get(page)
        return bits is not None and bool(bits[bit >> 3] >> (bit & 7) & 1)
