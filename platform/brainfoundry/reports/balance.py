"""Do the splits differ in who is in them? One test a characteristic, with n, p and a plain sentence.

Complete cases only: whoever gave no answer is in no test. With few participants a test finds nothing, and
with tens of thousands it finds what does not matter; so the largest difference itself is told as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from brainfoundry.reports.demographics import SPLIT_NAMES, UNANSWERED, Person, Table, csv_bytes, line_of
from brainfoundry.reports.suppress import THRESHOLD

LEVEL = 0.05
"""p below this is called a difference."""
_BANDS = (0.001, 0.01, 0.05, 0.2)
_PERMUTATIONS = 9_999
_SEED = 20_240_301  # of the permutations: the same people give the same p


@dataclass(frozen=True, kw_only=True)
class Balance:
    """One characteristic compared between splits.

    Args:
        subject: what was compared, such as "sex".
        test: name of the test; "" where there was nothing to test.
        n: participants in the test, as shown.
        p: as shown; a band where small counts are hidden, because p would give them away.
        difference: the largest difference between splits, as shown.
        sentence: the result in words.
    """

    subject: str
    test: str = ""
    n: str = ""
    p: str = ""
    difference: str = ""
    sentence: str


def compare(table: Table) -> list[Balance]:
    """Every known characteristic of the participants, between the splits that have at least two of them."""
    if len(table.people.splits) < 2:
        return []
    return [_compare(table, section) for section in table.people.sections]


def balance_csv(results: Sequence[Balance]) -> bytes:
    """The results as CSV."""
    rows = [("characteristic", "test", "n", "p", "largest difference", "sentence")]
    rows += [(r.subject, r.test, r.n.replace(",", ""), r.p, r.difference, r.sentence) for r in results]
    return csv_bytes(rows)


def _compare(table: Table, section: str) -> Balance:
    title = table.people.age_kind if section == "age" else section
    known = [p for p in table.people.persons if line_of(p, section) != UNANSWERED]
    sizes = Counter(p.split for p in known)
    splits = [split for split in table.people.splits if sizes[split] >= 2]
    if len(splits) < 2:
        why = "fewer than two splits have at least two participants with an answer"
        return Balance(subject=title, sentence=f"{title.capitalize()} was not compared: {why}.")
    known = [p for p in known if p.split in splits]
    *rest, end = (SPLIT_NAMES[split] for split in splits)
    names = f"{', '.join(rest)} and {end}"
    hidden = table.any_hidden(section)
    by_split = [[p for p in known if p.split == split] for split in splits]
    values = sorted({str(p.age) if section == "age" else line_of(p, section) for p in known})
    test, p, difference = "", 1.0, ""
    if len(values) < 2:
        if not hidden:
            return Balance(
                subject=title,
                sentence=f"{title.capitalize()} was not compared: all who answered are alike in it.",
            )
    elif section == "age":
        test, p, difference = _ages(by_split, splits, hidden)
    else:
        counts = [[sum(line_of(p, section) == value for p in of) for value in values] for of in by_split]
        test, p, difference = _categories(np.array(counts), values, hidden)
    if hidden and section != "age":
        test = "test of independence"  # which one it was would tell how many groups are empty
    elif hidden and not test:
        test = "Kolmogorov-Smirnov test" if len(splits) == 2 else "Kruskal-Wallis test"
    n, told = "hidden" if hidden else f"{len(known):,}", _p_text(p, hidden)
    if p < LEVEL:
        verdict = f"{title} differs between {names}"
    else:
        verdict = f"no sign that {title} differs between {names}"
    size = f"n = {n}, " if not hidden else ""
    end = f"; largest difference: {difference}" if difference else ""
    sentence = f"{verdict} ({test}, {size}{told}{end})."
    if p >= LEVEL and min(len(of) for of in by_split) < 30:
        sentence += " With so few participants in a split a difference could easily be missed."
    return Balance(
        subject=title, test=test, n=n, p=told.removeprefix("p = "), difference=difference,
        sentence=sentence[0].upper() + sentence[1:],
    )  # fmt: skip


def _ages(by_split: list[list[Person]], splits: list[str], hidden: bool) -> tuple[str, float, str]:
    """Two splits: Kolmogorov-Smirnov, which sees a difference of any shape. More: Kruskal-Wallis."""
    ages = [np.array([p.age for p in of], dtype=float) for of in by_split]
    if len(ages) == 2:
        test, p = "Kolmogorov-Smirnov test", float(stats.ks_2samp(*ages).pvalue)
    else:
        test, p = "Kruskal-Wallis test", float(stats.kruskal(*ages).pvalue)
    medians = {SPLIT_NAMES[s]: float(np.median(of)) for s, of in zip(splits, ages, strict=True)}
    if hidden and min(map(len, ages)) < THRESHOLD:
        return test, p, ""  # the median of three people is the age of one of them
    high, low = max(medians, key=lambda s: medians[s]), min(medians, key=lambda s: medians[s])
    if medians[high] == medians[low]:
        return test, p, f"none, all medians are {medians[low]:.4g} years"
    return test, p, f"median {medians[high]:.4g} years in {high}, {medians[low]:.4g} in {low}"


def _categories(counts: np.ndarray, lines: list[str], hidden: bool) -> tuple[str, float, str]:
    """Chi-square where its approximation holds, Fisher's exact test for 2 x 2, else by permutation."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    spread = shares.max(axis=0) - shares.min(axis=0)
    widest = int(spread.argmax())
    difference = "" if hidden else f"{100 * spread[widest]:.1f} percentage points ({lines[widest]})"
    expected = stats.contingency.expected_freq(counts)
    if expected.min() >= 5:
        return "chi-square test", float(stats.chi2_contingency(counts, correction=False).pvalue), difference
    if counts.shape == (2, 2):
        return "Fisher's exact test", float(stats.fisher_exact(counts).pvalue), difference
    return "chi-square by permutation", _permutation(counts, expected), difference


def _permutation(counts: np.ndarray, expected: np.ndarray) -> float:
    """p of the chi-square statistic when splits are dealt out anew, sizes kept."""
    drawn = stats.random_table(counts.sum(axis=1), counts.sum(axis=0)).rvs(_PERMUTATIONS, random_state=_SEED)
    values = _chi_square(drawn, expected)
    # A hair below the observed value: equal tables must count as equal, whatever the rounding.
    reached = int((values >= _chi_square(counts, expected) * (1 - 1e-9)).sum())
    return (reached + 1) / (_PERMUTATIONS + 1)


def _chi_square(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return ((counts - expected) ** 2 / expected).sum(axis=(-2, -1))


def _p_text(p: float, hidden: bool) -> str:
    """p to two digits, or as a band of `_BANDS`."""
    if p < _BANDS[0]:
        return f"p < {_BANDS[0]}"
    if not hidden:
        return f"p = {p:.2g}" if p < 0.995 else "p = 1"
    above = max(b for b in _BANDS if b <= p)
    below = next((b for b in _BANDS if b > p), None)
    return f"p ≥ {above}" if below is None else f"p from {above} to {below}"
