"""Balance between splits: the right test, an honest sentence, and no p that gives a small count away."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from brainfoundry.reports.balance import balance_csv, compare
from brainfoundry.reports.demographics import People, Person, tabulate


def results(persons, *, sections=("age", "sex", "ethnicity"), show=True):
    found = compare(tabulate(People(persons=tuple(persons), sections=sections), show_small_counts=show))
    return {result.subject: result for result in found}


def crowd(split: str, n: int, seed: int, *, older: float = 0.0, men: float = 0.5) -> list[Person]:
    rnd = random.Random(seed)
    return [
        Person(
            split=split, age=rnd.gauss(57 + older, 7), sex="M" if rnd.random() < men else "F",
            ethnicity=rnd.choice(["White"] * 8 + ["Asian", "Black"]),
        )
        for _ in range(n)
    ]  # fmt: skip


def test_alike_and_unlike() -> None:
    alike = results(crowd("train", 400, 1) + crowd("val", 200, 2))
    assert all(r.sentence.startswith("No sign that") for r in alike.values())
    assert alike["age"].test == "Kolmogorov-Smirnov test" and alike["sex"].test == "chi-square test"
    assert alike["sex"].n == "600"
    unlike = results(crowd("train", 400, 1) + crowd("val", 200, 2, older=6, men=0.8))
    assert unlike["age"].sentence.startswith("Age differs between train and validation")
    assert unlike["age"].p == "p < 0.001" and "median" in unlike["age"].difference
    assert (
        unlike["sex"].sentence.startswith("Sex differs") and "percentage points" in unlike["sex"].difference
    )


def test_the_p_values_are_scipy_s() -> None:
    persons = crowd("train", 300, 3) + crowd("val", 100, 4) + crowd("test", 100, 5)
    found = results(persons)
    ages = [[p.age for p in persons if p.split == split] for split in ("train", "val", "test")]
    assert found["age"].test == "Kruskal-Wallis test"
    assert found["age"].p == f"{stats.kruskal(*ages).pvalue:.2g}"
    counts = [
        [sum(p.split == s and p.sex == x for p in persons) for x in "FM"] for s in ("train", "val", "test")
    ]
    assert found["sex"].p == f"{stats.chi2_contingency(counts, correction=False).pvalue:.2g}"
    assert "train, validation and test" in found["sex"].sentence


def test_few_participants_get_exact_tests_and_a_warning() -> None:
    persons = [Person(split="train", sex="F", ethnicity="White")] * 6 + [
        Person(split="train", sex="M", ethnicity="Asian")
    ] * 3
    persons += [Person(split="val", sex="M", ethnicity="Black")] * 3
    found = results(persons, sections=("sex", "ethnicity"))
    assert found["sex"].test == "Fisher's exact test"
    assert found["sex"].p == f"{stats.fisher_exact([[6, 3], [0, 3]]).pvalue:.2g}"
    assert "could easily be missed" in found["sex"].sentence
    assert found["ethnicity"].test == "chi-square by permutation"


def test_the_permutation_test_against_the_exact_one() -> None:
    # 2 x 3 with small cells: scipy has no exact test for it, so count all tables by brute force.
    counts = np.array([[5, 2, 1], [1, 1, 4]])
    names = ("White", "Asian", "Black")
    persons = [Person(split=s, ethnicity=e) for s, row in zip(("train", "val"), counts, strict=True)
               for e, n in zip(names, row, strict=True) for _ in range(n)]  # fmt: skip
    given = float(results(persons, sections=("ethnicity",))["ethnicity"].p)
    rows, columns = counts.sum(1), counts.sum(0)
    expected = np.outer(rows, columns) / counts.sum()
    law = stats.random_table(rows, columns)
    exact = 0.0
    for a in range(columns[0] + 1):
        for b in range(columns[1] + 1):
            top = np.array([a, b, rows[0] - a - b])
            if 0 <= top[2] <= columns[2]:
                table = np.array([top, columns - top])
                if ((table - expected) ** 2 / expected).sum() >= (
                    (counts - expected) ** 2 / expected
                ).sum() - 1e-9:
                    exact += law.pmf(table)
    assert given == pytest.approx(exact, abs=0.015)


def test_unanswered_are_in_no_test() -> None:
    persons = crowd("train", 100, 1) + crowd("val", 50, 2) + [Person(split="val")] * 10
    assert results(persons)["sex"].n == "150"


def test_nothing_to_compare_is_said() -> None:
    assert not results(crowd("train", 50, 1))
    one = results([*crowd("train", 50, 1), Person(split="val", age=50, sex="F", ethnicity="White")])
    assert all("was not compared" in r.sentence and not r.p for r in one.values())
    same = results(
        [Person(split=s, age=50, sex="F", ethnicity="White") for s in ("train", "val") for _ in range(9)]
    )
    assert all("alike in it" in r.sentence for r in same.values())


def test_hidden_counts_are_not_given_away_by_p_or_n() -> None:
    persons = crowd("train", 60, 1) + crowd("val", 40, 2) + [Person(split="val", sex="F", age=50.0)] * 3
    open_, closed = results(persons)["ethnicity"], results(persons, show=False)["ethnicity"]
    assert open_.n == "100" and open_.p[0].isdigit()
    assert closed.n == "hidden" and "n = " not in closed.sentence
    assert closed.p.startswith(("p ", "p≥")) and not closed.difference
    assert "from" in closed.p or "≥" in closed.p or "<" in closed.p


def test_that_all_are_alike_is_not_said_of_hidden_counts() -> None:
    persons = [Person(split="train", sex="F")] * 40 + [Person(split="test", sex="F")] * 20
    persons += [Person(split="train")] * 3
    closed = results(persons, sections=("sex",), show=False)["sex"]
    assert "alike" not in closed.sentence and closed.test == "test of independence"


def test_csv() -> None:
    found = list(results(crowd("train", 100, 1) + crowd("val", 60, 2)).values())
    lines = balance_csv(found).decode().splitlines()
    assert lines[0].startswith("characteristic,test,n,p") and len(lines) == 4
