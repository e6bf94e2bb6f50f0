"""Hidden counts stay hidden: against every table a reader could think of."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.reports.suppress import HIDDEN, SMALL, THRESHOLD, Shown, Sum, percent, protect, show_all

LINES, COLUMNS = ("a", "b", "c"), ("x", "y")


def two_way(cells: list[list[int]]) -> tuple[dict, list[Sum], list]:
    """Counts, sums and sizes of a table with both margins, as demographics by split is one."""
    counts = {(line, column): n for line, row in zip(LINES, cells, strict=True)
              for column, n in zip(COLUMNS, row, strict=True)}  # fmt: skip
    for line in LINES:
        counts[line, "all"] = sum(counts[line, column] for column in COLUMNS)
    sums = [Sum((line, "all"), tuple((line, column) for column in COLUMNS)) for line in LINES]
    sizes = []
    for column in (*COLUMNS, "all"):
        counts["n", column] = sum(counts[line, column] for line in LINES)
        sums.append(Sum(("n", column), tuple((line, column) for line in LINES)))
        sizes.append(("n", column))
    return counts, sums, sizes


def readings(shown: Shown, sums: list[Sum]) -> dict:
    """For every hidden count the values that fit what is shown, by trying all tables (the attack by hand)."""
    cells = [key for key in shown.counts if key[0] != "n"]
    # Where no zero is hidden "<5" is taken as 1 to 4, unless there is no zero that could have been.
    zeros = any(shown.counts[k] == 0 for k in shown.hidden) or all(shown.counts[k] for k in cells)
    found: dict = {key: set() for key in shown.hidden}

    def choices(key):
        if key not in shown.hidden:
            return (shown.counts[key],)
        if shown.text(key) == SMALL:
            return range(0 if zeros else 1, THRESHOLD)
        return range(THRESHOLD, max(shown.counts.values()) + 2)

    columns = [
        [
            v
            for v in itertools.product(*(choices((line, c)) for line in LINES))
            if sum(v) == shown.counts["n", c]
        ]
        for c in COLUMNS
    ]
    for x, y in itertools.product(*columns):
        totals = [a + b for a, b in zip(x, y, strict=True)]
        if all(n in choices((line, "all")) for line, n in zip(LINES, totals, strict=True)):
            for column, values in zip((*COLUMNS, "all"), (x, y, totals), strict=True):
                for line, n in zip(LINES, values, strict=True):
                    if (line, column) in found:
                        found[line, column].add(n)
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=3, max_size=3))
def test_no_small_count_can_be_computed(cells) -> None:
    counts, sums, sizes = two_way(cells)
    shown = protect(counts, sums, always_shown=sizes)
    for key, n in counts.items():
        if 0 < n < THRESHOLD and key not in sizes:
            assert key in shown.hidden
    assert not shown.hidden.intersection(sizes)
    possible = readings(shown, sums)
    for key in shown.hidden:
        assert counts[key] in possible[key]
        if 0 < counts[key] < THRESHOLD:
            # What the sizes alone give away, with everything else hidden, no table can keep.
            alone = readings(Shown(counts, frozenset(counts).difference(sizes)), sums)[key]
            assert len(possible[key]) > 1 or len(alone) == 1, {k: shown.text(k) for k in counts}


def test_the_attack_works_without_protection() -> None:
    # Only the small count itself hidden: the attack of the test above must find it out.
    counts, sums, _ = two_way([[3, 20], [30, 40], [50, 60]])
    naive = Shown(counts, frozenset({("a", "x")}))
    assert readings(naive, sums) == {("a", "x"): {3}}


def test_one_small_cell_costs_three_others() -> None:
    counts, sums, sizes = two_way([[3, 20], [30, 40], [50, 60]])
    shown = protect(counts, sums, always_shown=sizes)
    assert len(shown.hidden) == 4 and ("a", "x") in shown.hidden
    assert shown.text(("a", "x")) == SMALL
    assert {shown.text(k) for k in shown.hidden - {("a", "x")}} == {HIDDEN}
    assert shown.text(("a", "y")) in ("20", HIDDEN)


def test_nothing_small_nothing_hidden() -> None:
    counts, sums, sizes = two_way([[0, 20], [30, 40], [50, 60]])
    assert not protect(counts, sums, always_shown=sizes).hidden  # a zero is nobody's
    assert show_all({"a": 3}).text("a") == "3"


def test_sums_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="not the sum"):
        protect({"n": 5, "a": 1, "b": 3}, [Sum("n", ("a", "b"))])


def test_shares_only_of_what_is_shown() -> None:
    shown = Shown({"n": 40, "a": 3, "b": 37}, frozenset({"a", "b"}))
    assert shown.share("b", "n") is None and shown.percent("b", "n") == ""
    assert show_all({"n": 40, "b": 37}).percent("b", "n") == "92.5 %"
    assert percent(0.0002) == "0.02 %" and percent(0.0) == "0.0 %" and percent(1.0) == "100.0 %"
