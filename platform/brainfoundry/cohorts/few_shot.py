"""Nested few-shot subsets of the training subjects: any number of draws, one fixed test set.

A draw puts the training subjects into one order whose every prefix has about the same share of every stratum;
its subsets are prefixes, so that 5 % lie within 10 % within 20 %. They are functions of who is in the train
split, the strata, the seed and the draw, and never touch val or test.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from brainfoundry.cohorts.strata import AGE_BANDS, Columns, Source, people_of, strata_of
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.rng import hash64_int, key_of

RECIPE_VERSION = 1
"""To be raised when the same recipe would give other subsets."""

Subsets = Mapping[tuple[float, int], tuple[str, ...]]
"""(share in per cent, draw) -> subjects."""

_FEW_SHOT, _PLACE = key_of("few-shot"), key_of("place")


def few_shot_recipe(
    *,
    seed: int = 0,
    shares: Sequence[float] = (5, 10, 20, 40, 100),
    draws: int = 5,
    stratify: Sequence[str] = (),
    age_bands: Sequence[float] = AGE_BANDS,
    min_stratum: int = 10,
) -> dict[str, Any]:
    """The recipe of nested few-shot subsets of the training subjects, for `ManifestMeta.splits["few_shot"]`.

    Args:
        shares: per cent of the training subjects.
        draws: how many independent subsets of each size.

    Raises:
        ConfigError: a share outside 0 to 100, or no draw.
    """
    if any(not 0 < share <= 100 for share in shares) or len(set(shares)) < len(shares):
        raise ConfigError(f"few-shot shares {list(shares)} per cent", fix="name each of 0 to 100 once")
    if draws < 1:
        raise ConfigError(f"{draws} few-shot draws", fix="choose at least 1")
    return {
        "version": RECIPE_VERSION, "seed": seed, "shares": sorted(shares), "draws": draws,
        "stratify": list(stratify), "age_bands": list(age_bands), "min_stratum": min_stratum,
    }  # fmt: skip


def few_shot(
    source: Source,
    recipe: Mapping[str, Any],
    share: float,
    draw: int,
    *,
    without_fold: int | None = None,
    columns: Columns | None = None,
) -> tuple[str, ...]:
    """The training subjects of one few-shot subset, ascending; a smaller share's are among them.

    Args:
        source: manifest, rows or table with the split that was made.
        recipe: `few_shot_recipe(...)`, or a manifest's `meta.splits["few_shot"]`.
        share: per cent, one of the recipe's.
        draw: 0 <= draw < the recipe's draws.
        without_fold: the fold validated on, whose subjects are no candidates.
        columns: the user's columns, where the recipe stratifies by them.

    Raises:
        ConfigError: a share or draw that the recipe does not have.
        DataError: a subject in several splits, or nobody to train on.
    """
    candidates = _candidates(source, recipe, without_fold, columns)
    if share not in recipe["shares"] or not 0 <= draw < recipe["draws"]:
        shares = ", ".join(f"{s:g}" for s in recipe["shares"])
        raise ConfigError(
            f"no few-shot subset of {share:g} %, draw {draw}",
            fix=f"choose of {shares} % and draws 0 to {recipe['draws'] - 1}",
        )
    return _prefix(_order(candidates, recipe, draw), share)


def few_shot_subsets(source: Source, recipe: Mapping[str, Any], columns: Columns | None = None) -> Subsets:
    """Every subset of a recipe; see `few_shot`."""
    candidates = _candidates(source, recipe, None, columns)
    orders = [_order(candidates, recipe, draw) for draw in range(recipe["draws"])]
    return {(s, d): _prefix(order, s) for s in recipe["shares"] for d, order in enumerate(orders)}


def _candidates(
    source: Source, recipe: Mapping[str, Any], without_fold: int | None, columns: Columns | None
) -> Mapping[str, str]:
    """Subject -> stratum of everybody a subset may hold."""
    if recipe.get("version") != RECIPE_VERSION:
        version = recipe.get("version")
        raise DataError(f"few-shot recipe of version {version!r}", fix="run jobs/split.py again")
    people = {s: p for s, p in people_of(source).items() if p.split == "train"}
    if without_fold is not None:
        people = {s: p for s, p in people.items() if p.part[1] != without_fold}
    if not people:
        raise DataError("no training subject to take few-shot subsets of", fix="split the cohort first")
    strata = strata_of(
        people, recipe["stratify"], bands=recipe["age_bands"], smallest=recipe["min_stratum"], columns=columns
    )
    return strata.of


def _order(strata: Mapping[str, str], recipe: Mapping[str, Any], draw: int) -> list[str]:
    """An order whose every prefix has about the same share of every stratum.

    The subject of rank r among its stratum's n stands at (r + u) / n, with one u in [0, 1) a stratum.
    """
    seed = hash64_int(recipe["seed"], _FEW_SHOT, draw)
    groups: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(strata, key=lambda s: (hash64_int(seed, key_of(s)), s)):
        groups[strata[subject]].append(subject)
    places = []
    for name, members in groups.items():
        u = (hash64_int(seed, _PLACE, key_of(name)) >> 11) * 2.0**-53
        places += [((rank + u) / len(members), name, subject) for rank, subject in enumerate(members)]
    return [subject for *_, subject in sorted(places)]


def _prefix(order: Sequence[str], share: float) -> tuple[str, ...]:
    return tuple(sorted(order[: max(1, math.floor(len(order) * share / 100 + 0.5))]))


def write_few_shot(uri: str, subsets: Subsets) -> None:
    """Write subsets as a table `share,draw,subject_id`."""
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(("share", "draw", "subject_id"))
    for (share, draw), subjects in subsets.items():
        table.writerows((f"{share:g}", draw, subject) for subject in subjects)
    files.write_bytes(uri, sink.getvalue().encode())
