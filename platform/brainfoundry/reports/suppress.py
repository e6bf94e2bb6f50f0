"""Small counts hidden so that they stay hidden: nobody can compute one back from the sums around it.

A count of 1 to 4 people is shown as "<5". Sums beside it (a row's total, a group's size) may still give it
away; then a few more counts of the same sums are hidden: zeros (also as "<5") and larger ones (as `HIDDEN`).
Both steps are integer programs over all sums at once. The proof is an attack: does any other value of a small
count fit everything that is shown? If none does, the cheapest set of other counts is found that has to be
hidden for one to fit. What the sizes of the groups give away even when all else is hidden (a split of four,
all of one kind) cannot be protected by hiding counts.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

THRESHOLD = 5
"""Counts under it are not shown (UK Biobank and most data owners: 5)."""
SMALL = f"<{THRESHOLD}"
HIDDEN = f"≥{THRESHOLD}"
"""Shown for a count of at least `THRESHOLD` that would give a small one away."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Sum(Generic[K]):
    """What everybody knows: the count `total` is the sum of the counts `parts`."""

    total: K
    parts: tuple[K, ...]


@dataclass(frozen=True)
class Shown(Generic[K]):
    """Counts as they may be given out.

    Args:
        counts: the true ones.
        hidden: those that are not shown.
    """

    counts: Mapping[K, int]
    hidden: frozenset[K] = frozenset()

    def text(self, key: K) -> str:
        """The count, "<5", or `HIDDEN`."""
        if key not in self.hidden:
            return f"{self.counts[key]:,}"
        return SMALL if self.counts[key] < THRESHOLD else HIDDEN

    def share(self, key: K, whole: K) -> float | None:
        """Fraction of the count `whole`; None where that would give away what is hidden."""
        if {key, whole} & self.hidden or not self.counts[whole]:
            return None
        return self.counts[key] / self.counts[whole]

    def percent(self, key: K, whole: K) -> str:
        """The share as text; empty where it is not shown."""
        share = self.share(key, whole)
        return "" if share is None else percent(share)


def percent(share: float) -> str:
    """A share as text: one digit behind the point, two where it is tiny."""
    return f"{100 * share:.{1 if share >= 0.001 or not share else 2}f} %"


def show_all(counts: Mapping[K, int]) -> Shown[K]:
    """Every count as it is."""
    return Shown(dict(counts))


def protect(
    counts: Mapping[K, int],
    sums: Sequence[Sum[K]],
    *,
    always_shown: Collection[K] = (),
    also: Collection[K] = (),
    last: Sequence[K] = (),
) -> Shown[K]:
    """Hide every count of 1 to 4, and what else is needed so that none of them can be computed.

    Args:
        counts: by name.
        sums: the relations between them that a reader knows.
        always_shown: sizes the study chose itself, such as of its splits: never hidden.
        also: counts that are to be hidden whatever they are.
        last: sizes that may be small, but are hidden when nothing else helps.

    Raises:
        ValueError: the counts do not fulfil the sums.
    """
    for relation in sums:
        if counts[relation.total] != sum(counts[part] for part in relation.parts):
            raise ValueError(f"{relation.total} is not the sum of {relation.parts}")
    fixed = frozenset(always_shown)
    game = _Game(counts, sums, {*counts} - fixed)
    small = [k for k, n in counts.items() if 0 < n < THRESHOLD and k not in fixed and k not in last]
    hidden = {*small, *also} - fixed
    safe: set[K] = set()
    for key in small:
        for direction in (1, -1):
            if key not in safe:
                safe |= game.other_values(key, direction, hidden)
        if key not in safe:
            hidden |= game.to_hide(key, hidden, frozenset(last))  # now another value fits
            safe |= {key}
    return Shown(dict(counts), frozenset(hidden))


class _Game(Generic[K]):
    """The sums as an integer program over how far each count could be from the truth.

    Args:
        free: counts that may be hidden.
    """

    def __init__(self, counts: Mapping[K, int], sums: Sequence[Sum[K]], free: Collection[K]) -> None:
        self.names = [k for k in counts if k in free]
        self.place = {k: i for i, k in enumerate(self.names)}
        self.truth = np.array([counts[k] for k in self.names], dtype=int)
        self.sums = np.zeros((len(sums), len(self.names)))
        for row, relation in zip(self.sums, sums, strict=True):
            for key, sign in ((relation.total, 1), *((part, -1) for part in relation.parts)):
                if key in self.place:
                    row[self.place[key]] += sign

    def _zero_in(self, hidden: Collection[K]) -> bool:
        return any(self.truth[self.place[k]] == 0 for k in hidden)

    def _bounds(self, movable: np.ndarray, zero: bool) -> tuple[np.ndarray, np.ndarray]:
        """How far down and up each count may be, for a reader who sees what is hidden and how."""
        # "<5" is 1 to 4, unless a zero is among them; HIDDEN is at least 5.
        below = self.truth < THRESHOLD
        least = np.where(below, 0 if zero else np.minimum(self.truth, 1), THRESHOLD)
        most = np.where(below, THRESHOLD - 1, self.truth + 10 * THRESHOLD)
        return np.where(movable, least - self.truth, 0), np.where(movable, most - self.truth, 0)

    def _is_hidden(self, hidden: Collection[K]) -> np.ndarray:
        return np.array([k in hidden for k in self.names])

    def other_values(self, key: K, direction: int, hidden: Collection[K]) -> set[K]:
        """Counts that are found at another value when `key` is pushed up (1) or down (-1)."""
        goal = np.zeros(len(self.names))
        goal[self.place[key]] = -direction
        low, high = self._bounds(self._is_hidden(hidden), self._zero_in(hidden))
        known = LinearConstraint(self.sums, 0, 0)
        found = milp(goal, constraints=known, bounds=Bounds(low, high), integrality=np.ones(len(self.names)))
        moved = np.zeros(len(self.names)) if found.x is None else np.rint(found.x)
        return {k for k, by in zip(self.names, moved, strict=True) if by}

    def to_hide(self, key: K, hidden: set[K], last: Collection[K]) -> set[K]:
        """The cheapest counts to hide so that another value of `key` fits; none where nothing can help."""
        n = len(self.names)
        free = ~self._is_hidden(hidden)
        price = 1 + 0.05 * np.log1p(self.truth) + 20 * np.array([k in last for k in self.names])
        price = np.where(free, price, 1e-3)
        best: tuple[float, set[K]] = (np.inf, set())
        # Either way; and with a zero among what is hidden, which makes every "<5" mean 0 to 4.
        for step, zero in ((1, False), (-1, False), (1, True), (-1, True)):
            low, high = self._bounds(np.ones(n, dtype=bool), zero or self._zero_in(hidden))
            push = np.zeros((1, 2 * n))  # moves up and down apart, so that their prices add
            push[0, self.place[key]], push[0, n + self.place[key]] = 1, -1
            sums = LinearConstraint(np.hstack([self.sums, -self.sums]), 0, 0)
            found = milp(
                np.concatenate([price, price]),
                constraints=[sums, LinearConstraint(push, step, step)],
                bounds=Bounds(np.zeros(2 * n), np.concatenate([high, -low])),
                integrality=np.ones(2 * n),
            )
            if found.x is None:
                continue
            moved = np.rint(found.x[:n] - found.x[n:]) != 0
            hide, cost = {k for k, by in zip(self.names, moved & free, strict=True) if by}, float(found.fun)
            if zero and not self._zero_in(hidden | hide):
                # Where there is no zero, a reader still cannot know that.
                hide |= set([k for k, n in zip(self.names, self.truth, strict=True) if n == 0][:1])
                cost += 1
            if cost < best[0] - 1e-9:
                best = (cost, hide)
        return best[1]
