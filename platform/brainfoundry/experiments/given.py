"""Pretraining that a study does not run: a checkpoint of the user's takes a stage's place (`--weights`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.experiments.axes import ALL, DEFAULTS, Point, channels
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.records import StudyFolder, TrialRecord, write_record
from brainfoundry.training.card import Card
from brainfoundry.training.checkpoint import read_card
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.initialise import find_checkpoint
from brainfoundry.training.leak_gate import gate, parse_test_set


@dataclass(frozen=True, kw_only=True)
class Given:
    """A checkpoint in the place of a stage, for the trials of its size and objective."""

    stage: str
    uri: str
    """The checkpoint's folder."""
    digest: str
    """SHA-256 of its card, which holds those of its files."""
    card: Card

    @property
    def card_uri(self) -> str:
        """The file that the digest is of."""
        return files.join(self.uri, "card.json")

    @property
    def name(self) -> str:
        """What tells it from others of the study."""
        return f"{self.stage}.{self.card.size}.{self.card.objective}"

    def node(self, name: str, point: Point, stage: PretrainConfig) -> Node:
        """Its node in a study.

        Args:
            stage: configuration of the stage whose place it takes.
        """
        card = self.card
        own: dict[str, Any] = {"size": card.size, "objective": card.objective, "merging": card.merging}
        model = replace(stage.model, **own)
        config = replace(stage, model=model, init=replace(stage.init, checkpoint=self.uri))
        return Node(id=name, kind="given", role="ancestor", point=point, config=config)


def open_given(stage: str, uri: str) -> Given:
    """The checkpoint at a URI, or the best of the run that is there.

    Raises:
        CheckpointError: there is none, or it is of a fine-tuned network.
    """
    found = find_checkpoint(uri)
    card = read_card(found)
    if card.task:
        raise CheckpointError(
            f"--weights {stage}: the checkpoint is of a fine-tuned network (task {card.task.get('name')})",
            file=found,
            fix="name a pretraining run, or one of its checkpoints",
        )
    digest = hashlib.sha256(files.read_bytes(files.join(found, "card.json"))).hexdigest()
    return Given(stage=stage, uri=found, digest=digest, card=card)


def given_for(given: Sequence[Given], point: Point) -> Given:
    """Of the checkpoints that take a stage's place the one that a trial starts from.

    Raises:
        ConfigError: none is of the trial's size, objective and channels, or it would be counted as several.
    """
    stage = given[0].stage
    for one in given:
        if (one.card.size, one.card.objective) == (point["size"], point["objective"]):
            found = one
            break
    else:
        there = " and ".join(f"{one.card.size}, {one.card.objective}" for one in given)
        raise ConfigError(
            f"trials of {point['size']}, {point['objective']} start from {stage}, and --weights gives it as "
            f"{there}",
            fix=f"run the others alone (--only size={given[0].card.size} "
            f"objective={given[0].card.objective}), name one for these too "
            f"(--weights {stage}=A {stage}=B), or leave {stage} out, which trains it",
        )
    if point["pretrain_seed"] != DEFAULTS["pretrain_seed"]:
        raise ConfigError(
            f"--weights gives {stage} once, but the grid asks for it of pretrain_seed "
            f"{point['pretrain_seed']} too: one run would count as several",
            file=found.uri,
            fix=f"--only pretrain_seed={DEFAULTS['pretrain_seed']}, or leave {stage} out of --weights",
        )
    if point["modalities"] != ALL:
        wanted, feeds = channels(point["modalities"])
        fed = tuple(f"{channel}={scan}" for channel, scan in found.card.feeds.items())
        if (found.card.modalities, sorted(fed)) != (wanted, sorted(feeds)):
            raise ConfigError(
                f"trials of modalities {point['modalities']} start from a {stage} that was trained on them, "
                f"and --weights gives one of {'+'.join((*found.card.modalities, *fed))}",
                file=found.uri,
                fix=f"leave {stage} out of --weights, which trains it on these",
            )
    return found


def check_leaks(nodes: Sequence[Node]) -> None:
    """Hold checkpoints that were given against the test sets of all that starts from them.

    Raises:
        DataError: one has seen a test subject.
        CheckpointError: one cannot prove whom it has seen. Neither where all that start from it allow it.
    """
    for node in nodes:
        if node.kind == "given":
            heirs = [other.config.data for other in nodes if node.id in other.parents]
            gate(
                [parse_test_set(text) for text in node.config.data.guard],
                [str(node.config.init.checkpoint)],
                allow=all(data.allow_leak for data in heirs),
                flag="data.allow_leak: true in the options of the study's runs",
            )


def record_given(study: StudyFolder, nodes: Sequence[Node]) -> dict[str, TrialRecord]:
    """Records of the nodes that checkpoints were given for, written anew where these lie: they are done."""
    found = {}
    for node in nodes:
        if node.kind != "given":
            continue
        uri = str(node.config.init.checkpoint)
        card = read_card(uri)
        folder, _, _ = uri.rpartition("/checkpoints/")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        found[node.id] = TrialRecord(
            study=study.name, id=node.id, kind="given", role="ancestor", point=dict(node.point),
            state="finished", run_dir=folder or uri, checkpoint=uri, steps=card.step, leaks=card.leaks,
            validation=dict(card.metrics), git_commit=card.git_commit, started=now, ended=now,
        )  # fmt: skip
        write_record(study, found[node.id])
    return found
