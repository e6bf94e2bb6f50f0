"""Which subject is visited when: pure functions of a seed, an epoch and the subjects' names.

An epoch's order sorts `hash64(seed, epoch, key_of(subject))`. A subject's place relative to any other
depends on those two alone, so withdrawing one participant leaves everybody else in the same relative
order, and no library's generator can change it. The visits of all epochs form one endless sequence:
visit v is number v % n of epoch v // n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainfoundry.core.rng import hash64, key_of

_SESSION = key_of("stream.session")
# Bound on hashes held at once when a request spans many epochs (8 MB of uint64).
_MAX_HASHES = 1 << 20


def keys_of(names: Sequence[str]) -> np.ndarray:
    """uint64 keys of names, in their order."""
    return np.fromiter((key_of(n) for n in names), np.uint64, len(names))


def order(seed: int, epoch: int, subject_keys: np.ndarray) -> np.ndarray:
    """Visit order of one epoch: int64 indices into `subject_keys`, each once.

    Args:
        seed: the plan's seed.
        epoch: epoch number from 0.
        subject_keys: (n,) uint64 from `keys_of`, in a fixed order (equal hashes keep it).
    """
    return np.argsort(hash64(seed, epoch, subject_keys), kind="stable")


def visit(position: int | np.ndarray, n_subjects: int) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, place in that epoch's order) of positions in the endless sequence of visits."""
    epoch, place = np.divmod(np.asarray(position, np.int64), n_subjects)
    return epoch, place


class Visits:
    """The endless sequence of visits of a set of subjects, seekable, holding one epoch's order.

    Args:
        seed: the plan's seed.
        subjects: one name per stored session; sessions of a subject lie next to each other and
            subjects ascend.
        sessions: the session's name, same length.
    """

    def __init__(self, seed: int, subjects: Sequence[str], sessions: Sequence[str]) -> None:
        names, first, counts = np.unique(
            np.asarray(subjects, dtype=object), return_index=True, return_counts=True
        )
        if not np.array_equal(first, np.cumsum(counts) - counts):
            raise ValueError("sessions of a subject must lie next to each other, subjects ascending")
        self._seed = seed
        self._subject_keys = keys_of(list(names))
        self._first = first.astype(np.int64)
        self._counts = counts.astype(np.int64)
        self._session_keys = keys_of(list(sessions))
        self._cached_epoch = -1
        self._cached_rows = np.empty(0, np.int64)

    @property
    def n_subjects(self) -> int:
        """Subjects, each visited once an epoch."""
        return len(self._subject_keys)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Index of the session visited at each position: int64, the shape of `positions`."""
        positions = np.asarray(positions, np.int64)
        out = np.empty(positions.shape, np.int64)
        epoch, place = visit(positions, self.n_subjects)
        wanted = np.unique(epoch)
        block = max(1, _MAX_HASHES // max(len(self._session_keys), 1))
        for start in range(0, len(wanted), block):
            some = wanted[start : start + block]
            orders = self._orders(some)
            inside = (epoch >= some[0]) & (epoch <= some[-1])
            out[inside] = orders[np.searchsorted(some, epoch[inside]), place[inside]]
        return out

    def _orders(self, epochs: np.ndarray) -> np.ndarray:
        """(epochs, subjects) session index in visit order; the last epoch stays cached."""
        if len(epochs) == 1 and epochs[0] == self._cached_epoch:
            return self._cached_rows[None]
        visits = np.argsort(
            hash64(self._seed, epochs[:, None], self._subject_keys[None]), axis=1, kind="stable"
        )
        rows = np.take_along_axis(self._drawn(epochs), visits, axis=1)
        self._cached_epoch, self._cached_rows = int(epochs[-1]), rows[-1]
        return rows

    def _drawn(self, epochs: np.ndarray) -> np.ndarray:
        """(epochs, subjects) the session each subject shows in an epoch, in subject order.

        The lowest hash wins, so a withdrawn session changes only the visits it would have won.
        """
        if len(self._session_keys) == self.n_subjects:
            return np.broadcast_to(self._first, (len(epochs), self.n_subjects))
        owner = np.repeat(self._subject_keys, self._counts)
        hashes = hash64(self._seed, _SESSION, epochs[:, None], owner[None], self._session_keys[None])
        lowest = np.repeat(np.minimum.reduceat(hashes, self._first, axis=1), self._counts, axis=1)
        index = np.arange(hashes.shape[1], dtype=np.int64)
        candidates = np.where(hashes == lowest, index, hashes.shape[1])
        return np.minimum.reduceat(candidates, self._first, axis=1)
