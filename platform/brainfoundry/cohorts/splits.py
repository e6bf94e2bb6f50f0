"""Splits of a cohort: by subject, stratified, and pure functions of (which subjects, their strata, the seed).

Within a stratum subjects stand in the order of `hash64(seed, key_of(subject))` and are cut into consecutive
blocks: test, then val, then fold 0, 1, ... of the rest. How many of a stratum go to a part is its exact share
rounded up or down, so that the parts' totals are exact. What holds:

- every subject is in one split and in at most one fold, with all its sessions;
- test, val and train have exactly the sizes asked for; folds differ by at most one subject, in all and within
  each stratum; a stratum's share of test is off by less than one subject, of val and train by less than two;
- row order and session counts do not matter; the test set depends neither on val nor on folds;
- one subject more moves at most one other across each boundary between two parts, where there are no strata;
  with them a few more (3,000 subjects in 36 strata, test, val and 5 folds: 3 on average, at most 7).

Few-shot subsets of the training subjects: `cohorts.few_shot`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from brainfoundry.cohorts.few_shot import few_shot, few_shot_recipe
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.rows import Row, canonical_json
from brainfoundry.cohorts.strata import AGE_BANDS, Columns, Person, Source, people_of, strata_of
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.rng import hash64_int, key_of

VERSION = 1
"""Of the record in `ManifestMeta.splits`; to be raised when the same settings would give another split."""

Part = tuple[str, int | None]
"""(split, fold); fold is None outside the folds."""
Assignment = Mapping[str, Part]

_SCALARS = ("seed", "test", "val", "folds", "min_stratum", "val_fold", "test_fold")
_ROUND = key_of("round")


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How to split.

    Args:
        test, val: subjects held out: a count (int), or a share below 1 of all subjects (float).
        folds: the training subjects are dealt to this many folds; 0: none.
        stratify: columns (`cohorts.strata`).
        age_bands: years at which an age band begins.
        min_stratum: strata of fewer subjects are pooled.
        val_fold, test_fold: a fold whose subjects are put into val or test, and keep their fold.

    Raises:
        ConfigError: values that make no sense.
    """

    seed: int = 0
    test: int | float = 0
    val: int | float = 0
    folds: int = 0
    stratify: tuple[str, ...] = ()
    age_bands: tuple[float, ...] = AGE_BANDS
    min_stratum: int = 10
    val_fold: int | None = None
    test_fold: int | None = None

    def __post_init__(self) -> None:
        for name in ("test", "val"):
            size = getattr(self, name)
            if not size >= 0 or (isinstance(size, float) and not size < 1):  # also NaN
                raise ConfigError(
                    f"{name} size {size!r} is neither a count nor a share below 1",
                    fix="write a count such as 100, or a share such as 0.2",
                )
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"{self.folds} folds", fix="choose 2 or more, or 0 for none")
        if len(set(self.stratify)) < len(self.stratify):
            raise ConfigError("a column to stratify by is named twice", fix="name each once")


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split that was made.

    Args:
        parts: subject -> (split, fold), for every included subject.
        strata: subject -> stratum.
        record: what goes into `ManifestMeta.splits`: settings, sizes, digests; enough to make it again.
    """

    parts: Assignment
    strata: Mapping[str, str]
    record: Mapping[str, Any]


def split_subjects(source: Source, spec: SplitSpec, *, columns: Columns | None = None) -> Split:
    """Split the included subjects of a manifest, its rows or its table.

    Args:
        columns: columns of the user's own to stratify by (`strata.read_columns`).

    Raises:
        ConfigError: sizes that leave nobody to train on, more folds than subjects, or an unknown column.

    Example:
        >>> split = split_subjects(manifest, SplitSpec(test=0.2, folds=5, stratify=("sex", "site")))
    """
    people = people_of(source)
    n = len(people)
    test, val = _count(spec.test, n), _count(spec.val, n)
    train = n - test - val
    if train < max(1, spec.folds):
        raise ConfigError(
            f"{n:,} subjects cannot give {test:,} to test and {val:,} to val"
            + (f" and {spec.folds} folds of the rest" if spec.folds else " and leave one to train on"),
            fix="hold out fewer",
        )
    strata = strata_of(
        people, spec.stratify, bands=spec.age_bands, smallest=spec.min_stratum, columns=columns
    )
    order: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(people, key=lambda s: (hash64_int(spec.seed, key_of(s)), s)):
        order[strata.of[subject]].append(subject)
    left = {name: len(members) for name, members in sorted(order.items())}
    # Every part takes its share of what the parts before it left.
    dealt: list[tuple[Part, int, int]] = [(("test", None), test, n), (("val", None), val, n - test)]
    if spec.folds:
        dealt += [(("train", fold), 1, spec.folds - fold) for fold in range(spec.folds)]
    else:
        dealt.append((("train", None), 1, 1))
    parts: dict[str, Part] = {}
    at = dict.fromkeys(left, 0)
    for number, (part, share, of) in enumerate(dealt):
        for name, take in _share_out(left, share, of, hash64_int(spec.seed, _ROUND, number)).items():
            parts.update(dict.fromkeys(order[name][at[name] : at[name] + take], part))
            at[name] += take
            left[name] -= take
    parts = hold_out(dict(sorted(parts.items())), spec.val_fold, spec.test_fold)
    settings = {
        "method": "dealt", "seed": spec.seed, "test": spec.test, "val": spec.val, "folds": spec.folds,
        "stratify": list(spec.stratify), "age_bands": list(spec.age_bands), "min_stratum": spec.min_stratum,
        "own_columns": sorted(set(spec.stratify) & set(columns or ())), "val_fold": spec.val_fold,
        "test_fold": spec.test_fold, "strata": len(left), "strata_sha256": _digest(strata.of),
        "notes": list(strata.notes),
    }  # fmt: skip
    return Split(parts=parts, strata=strata.of, record=record_of(parts, settings))


def hold_out(parts: Assignment, val_fold: int | None, test_fold: int | None) -> dict[str, Part]:
    """The parts with the subjects of one fold in val, of another in test; they keep their fold.

    Raises:
        ConfigError: a fold that nobody is in, or the same for both.
    """
    if val_fold is not None and val_fold == test_fold:
        raise ConfigError(f"fold {val_fold} cannot be both val and test", fix="choose two folds")
    moved = dict(parts)
    for split, fold in (("val", val_fold), ("test", test_fold)):
        who = [subject for subject, part in parts.items() if part == ("train", fold)]
        if fold is not None and not who:
            raise ConfigError(f"no subject is in fold {fold}", fix="folds count from 0")
        if fold is not None:
            moved.update(dict.fromkeys(who, (split, fold)))
    return moved


def placed(row: Row, parts: Assignment) -> Row:
    """A manifest row in its subject's part; excluded rows and subjects left out are in none."""
    split, fold = parts.get(row.subject, ("", None)) if row.included else ("", None)
    return replace(row, split=split, fold=fold)


def print_split(parts: Assignment, strata: Mapping[str, str]) -> None:
    """Print the table of subjects by stratum, split and fold."""
    count: Counter[tuple[str, str]] = Counter()
    for subject, (split, fold) in parts.items():
        for row in {"all", strata.get(subject, "all")}:
            count[row, split or "none"] += 1
            if fold is not None:
                count[row, f"fold {fold}"] += 1
    used = {column for _, column in count}
    splits = [name for name in ("train", "val", "test", "none") if name in used]
    folds = sorted((name for name in used if name.startswith("fold")), key=lambda name: int(name[5:]))
    table = Table(title=f"{len(parts):,} subjects", title_justify="left")
    table.add_column("stratum")
    for column in (*splits, *folds):
        table.add_column(column, justify="right")
    for row in (*sorted(set(strata.values())), "all"):
        cells = [f"{count[row, column]:,}" for column in (*splits, *folds)]
        table.add_row(row, *cells, style="bold" if row == "all" else "")
    # Names of strata and counts whole, also where the output is no terminal.
    width = max(map(len, [*strata.values(), "stratum"])) + 4 + 11 * len((*splits, *folds))
    Console(width=max(Console().width, width)).print(table)


def parse_size(text: str) -> int | float:
    """A size as a command line has it: "100" subjects, "0.2" or "20%" of them.

    Raises:
        ConfigError: neither.
    """
    try:
        if text.strip().endswith("%"):
            return float(text.strip()[:-1]) / 100
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError as error:
        raise ConfigError(f"size {text!r} is no number", fix="such as 100, 0.2 or 20%") from error


def _count(size: int | float, n: int) -> int:
    return size if isinstance(size, int) else math.floor(size * n + 0.5)


def _share_out(left: Mapping[str, int], share: int, of: int, seed: int) -> dict[str, int]:
    """`share / of` of every stratum, rounded up or down so that their sum is that of the whole, rounded.

    Who is rounded up is drawn with chances of about the remainders (Pareto sampling, Rosen 1997), by one
    random number a stratum that never changes: a subject more in one hardly changes the draw of the others.
    """
    takes = {name: n * share // of for name, n in left.items()}
    up = (sum(left.values()) * share + seed % of) // of - sum(takes.values())

    def rank(name: str) -> tuple[float, str]:
        chance = left[name] * share % of / of
        u = ((hash64_int(seed, key_of(name)) >> 11) + 0.5) * 2.0**-53
        return u / (1 - u) * (1 - chance) / chance, name

    for name in sorted((name for name in left if left[name] * share % of), key=rank)[:up]:
        takes[name] += 1
    return takes


def record_of(parts: Assignment, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an assignment: `settings` with its sizes and digests."""
    sizes = Counter(split or "none" for split, _ in parts.values())
    sizes.update(f"fold {fold}" for _, fold in parts.values() if fold is not None)
    return {
        "version": VERSION,
        **settings,
        "sizes": dict(sorted(sizes.items())),
        "subjects_sha256": _digest(sorted(parts)),
        "parts_sha256": _digest({subject: list(part) for subject, part in parts.items()}),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Held against the record


def verify_split(manifest: Manifest, *, columns: Columns | None = None) -> list[str]:
    """What is wrong with a manifest's split: a line each; empty where it is what its record says.

    No subject may be in two parts. A dealt split is made again from its settings and compared; one from a
    list is held against its digest. Where subjects were excluded since, the others' counts must still fit.

    Args:
        columns: the user's columns, where the split was stratified by them.
    """
    people = people_of(manifest)
    problems = []
    for person in people.values():
        try:
            person.part  # noqa: B018
        except DataError as error:
            problems.append(error.line())
    record = manifest.meta.splits
    if problems or not record:
        return problems
    if record.get("version") != VERSION:
        return [f"record of version {record.get('version')!r}; this code reads version {VERSION}"]
    parts = {subject: person.part for subject, person in people.items()}
    if _digest(sorted(parts)) != record["subjects_sha256"]:
        return _fewer(parts, record, manifest)
    if _digest({subject: list(part) for subject, part in parts.items()}) != record["parts_sha256"]:
        return ["subjects are in other splits or folds than the record says"]
    if record.get("method") == "dealt" and set(record["own_columns"]) <= set(columns or ()):
        again = split_subjects(manifest, spec_of(record), columns=columns)
        if again.record["parts_sha256"] != record["parts_sha256"]:
            return ["the recorded settings give another split"]
    return []


def spec_of(record: Mapping[str, Any]) -> SplitSpec:
    """The settings of a dealt split's record."""
    return SplitSpec(
        **{name: record[name] for name in _SCALARS},
        stratify=tuple(record["stratify"]),
        age_bands=tuple(record["age_bands"]),
    )


def _fewer(parts: Assignment, record: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """Problems of a split some of whose subjects were excluded since, by conversion or as withdrawn."""
    now, then = record_of(parts, {})["sizes"], record["sizes"]
    problems = [
        f"{name} has {n:,} subjects, more than the {then.get(name, 0):,} the split gave it"
        for name, n in now.items()
        if n > then.get(name, 0)
    ]
    names = ("train", "val", "test", "none")
    lost = sum(then.get(name, 0) - now.get(name, 0) for name in names)
    excluded = set(
        manifest.table.filter(pc.equal(manifest.table["verdict"], "excluded"))["subject"].to_pylist()
    )
    if not problems and lost > len(excluded - set(parts)):
        problems.append(f"{lost:,} subjects of the split are missing, and fewer are excluded")
    return problems


__all__ = [
    "VERSION", "Assignment", "Part", "Person", "Split", "SplitSpec", "few_shot", "few_shot_recipe",
    "hold_out", "parse_size", "placed", "print_split", "record_of", "spec_of", "split_subjects",
    "verify_split",
]  # fmt: skip
