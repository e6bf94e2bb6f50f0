"""What a plan must know of a shard set: parts, few-shot subsets, modalities."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.axes import ALL, channels, nearest
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks import load_task
from brainfoundry.training.runs import identity_hash

_SETTINGS = ("test", "val", "folds", "val_fold", "test_fold", "seed")
"""Of `jobs/split.py`, that are numbers."""


@dataclass(frozen=True, kw_only=True)
class CohortInfo:
    """A shard set as it is."""

    uri: str
    cohort: str
    """Its own name."""
    modalities: tuple[str, ...]
    manifest_hash: str
    identity: str
    """The manifest hash from before the latest withdrawals, which names what runs on the set."""
    labels: str = ""
    """Scheme of its masks; "" without."""
    subjects: Mapping[tuple[str, int | None], int] = field(default_factory=dict)
    """(split, fold) -> how many."""
    shares: tuple[float, ...] = ()
    """Per cent, of its few-shot recipe."""
    draws: int = 0
    split: Mapping[str, Any] = field(default_factory=dict)
    """Its record (`cohorts.splits`)."""

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds outside the test split."""
        dealt = (fold for split, fold in self.subjects if fold is not None and split != "test")
        return tuple(sorted(set(dealt)))

    def has_split(self, split: str, fold: int | None = None) -> bool:
        """Whether somebody is in a split, as a run that holds a fold out sees it (`stream.split_view`)."""
        return any(
            name == split and (fold is None or own is None or split == "test") for name, own in self.subjects
        )

    def training(self, fold: int | None = None, share: float = 100) -> int:
        """Training subjects of a run, about: the few-shot recipe rounds by stratum."""
        if fold is None:
            whole = sum(n for (split, _), n in self.subjects.items() if split == "train")
        else:
            whole = sum(
                n
                for (split, own), n in self.subjects.items()
                if own != fold and (split == "train" or (own is not None and split != "test"))
            )
        return max(1, math.floor(whole * share / 100 + 0.5))

    def check_fold(self, fold: int | None) -> None:
        """Refuse (ConfigError) a fold that nobody is in."""
        if fold is None or fold in self.folds:
            return
        there = ", ".join(map(str, self.folds))
        raise ConfigError(
            f"nobody outside the test set is in fold {fold}",
            file=self.uri,
            fix=f"choose one of the folds {there}" if there else self.split_command(folds="5"),
        )

    def check_share(self, share: float, draw: int, also: Collection[float] = ()) -> None:
        """Refuse (ConfigError) a few-shot subset that the shard set's recipe does not have.

        Args:
            also: what else is needed, for the command that would make them.
        """
        if share == 100 or (share in self.shares and draw < self.draws):
            return
        there = ", ".join(f"{s:g}" for s in self.shares)
        raise ConfigError(
            f"no few-shot subset of {share:g} %, draw {draw}: there are "
            + (f"{there} %, draws 0 to {self.draws - 1}" if there else "none"),
            file=self.uri,
            fix=f"jobs/split.py --shards {self.uri} {self._few_shot((*self.shares, *also, share, 100))} "
            f"--draws {max(self.draws, draw + 1)}",
        )

    def check_modalities(self, value: str) -> None:
        """Refuse (ConfigError) channels (the axis `modalities`) whose scans are not there."""
        if value == ALL:
            return
        names, feeds = channels(value)
        feed = dict(text.split("=") for text in feeds)
        for name in names:
            scan = feed.get(name, name)
            if scan not in self.modalities:
                raise ConfigError(
                    f"modalities {value}: the shard set has no {scan}",
                    file=self.uri,
                    fix=f"{nearest(scan, self.modalities)}; {name}=SCAN shows the channel another scan",
                )

    def check_task(self, task: str) -> None:
        """Refuse (ConfigError) a shard set without masks that the task understands."""
        try:
            load_task(task).check_scheme(self.labels)
        except ConfigError as error:
            problem = error.problem if self.labels else "the shard set has no masks to learn from"
            raise ConfigError(problem, file=self.uri, fix="prepare the cohort with its masks") from None

    def check_test(self) -> None:
        """Refuse (ConfigError) a shard set without a test split."""
        if not self.has_split("test"):
            raise ConfigError(
                "nobody is in the test split, on which the study's trials are scored",
                file=self.uri,
                fix=self.split_command(test="0.2", val="0.1"),
            )

    def split_command(self, **wanted: str) -> str:
        """The command that splits the set as it is split, and what is wanted too."""
        made = str(self.split.get("method", ""))
        if made not in ("", "dealt", "conversion"):  # a list from elsewhere knows no other parts
            flags = " ".join(f"--{name} {value}" for name, value in wanted.items())
            return f"deal a copy of the folder, which is split by {made}: jobs/split.py --shards COPY {flags}"
        if made == "dealt":
            kept = {name: self.split.get(name) for name in _SETTINGS}
        else:
            parts = self.subjects.items()
            kept = {name: sum(n for (own, _), n in parts if own == name) for name in ("test", "val")}
        settings = {**wanted, **{name: f"{value}" for name, value in kept.items() if value}}
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
        if self.split.get("stratify"):
            flags += f" --stratify {','.join(self.split['stratify'])}"
        if self.shares:
            flags += f" {self._few_shot(self.shares)} --draws {self.draws}"
        again = " --replace, on a copy of the folder where runs on it are to go on" if self.split else ""
        return f"jobs/split.py --shards {self.uri} {flags}{again}"

    def _few_shot(self, shares: Collection[float]) -> str:
        return f"--few-shot {','.join(f'{share:g}' for share in sorted(set(shares)))}"


def cohort_info(shards: ShardSet) -> CohortInfo:
    """What a plan must know of a shard set.

    Raises:
        DataError: its manifest is missing or damaged.
    """
    people: dict[tuple[str, int | None], set[str]] = defaultdict(set)
    columns = (shards.index[name].to_pylist() for name in ("subject", "split", "fold"))
    for subject, split, fold in zip(*columns, strict=True):
        people[split or "", fold].add(subject)
    record = read_manifest(manifest_uri(shards.uri)).meta.splits
    recipe = record.get("few_shot") or {}
    return CohortInfo(
        uri=shards.uri,
        cohort=shards.meta.cohort,
        modalities=tuple(shards.meta.modalities),
        manifest_hash=shards.meta.manifest_hash,
        identity=identity_hash(shards.meta),
        labels=shards.meta.labels,
        subjects={part: len(who) for part, who in people.items()},
        shares=tuple(recipe.get("shares", ())),
        draws=int(recipe.get("draws", 0)),
        split=record,
    )
