"""What a study says of a shard set that lacks something: never to lose what it has."""

from __future__ import annotations

import pytest

from brainfoundry.core.errors import ConfigError
from tests.experiments.cohort_infos import brats, ukb

DEALT = {
    "method": "dealt", "seed": 7, "test": 20, "val": 0.1, "folds": 5, "val_fold": None, "test_fold": None,
    "stratify": ["sex", "site"],
}  # fmt: skip


def test_a_further_part_is_dealt_beside_those_that_are_there() -> None:
    info = brats(split=DEALT, shares=(5.0, 100.0), draws=3)
    made = info.split_command(folds="5", val="0.2")
    flags = "--folds 5 --val 0.1 --test 20 --seed 7 --stratify sex,site --few-shot 5,100 --draws 3"
    assert made.startswith(f"jobs/split.py --shards /data/brats {flags} --replace, on a copy")


def test_a_split_of_the_conversion_is_kept_too() -> None:
    assert ukb().split_command(test="0.2") == "jobs/split.py --shards /data/ukb --test 0.2 --val 10"


def test_a_published_list_knows_no_other_parts() -> None:
    info = brats(split={"method": "published"}, subjects={("train", 0): 5})
    with pytest.raises(ConfigError, match=r"test split.*deal a copy.*COPY --test 0\.2 --val 0\.1") as error:
        info.check_test()
    assert "--replace" not in str(error.value)


def test_all_shares_that_are_missing_are_named_at_once() -> None:
    info = brats(shares=(50.0,), draws=2)
    with pytest.raises(ConfigError, match=r"--few-shot 5,10,50,100 --draws 2"):
        info.check_share(5, 0, also=(5, 10, 100))
