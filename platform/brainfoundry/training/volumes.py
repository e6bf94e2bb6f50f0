"""Whole volumes of a shard set through a network: what validation and evaluation score."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from brainfoundry.core.errors import CheckpointError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.inference.volume import Box, brain_box, predict_probabilities
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.models import EncoderSpec
from brainfoundry.pretext.intensity import normalise
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import BatchReader
from brainfoundry.stream.folds import split_view
from brainfoundry.stream.plan import CROP_METADATA, PLAN_SCHEMA
from brainfoundry.tasks.base import load_task
from brainfoundry.tasks.segmentation import NetworkSpec
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card


@dataclass(frozen=True, kw_only=True)
class Session:
    """One stored session with a mask."""

    subject: str
    session: str
    shard: int
    row: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class VolumeSpec:
    """What is scored, and how."""

    shards: str
    sessions: tuple[Session, ...]
    channels: tuple[int, ...]
    label: int
    """The mask's channel."""
    task: str
    scheme: str
    intensity: str
    window: WindowSpec
    precision: str = "fp32"
    flips: bool = False
    """Mean over the 8 flips."""
    lesionwise: bool = False


@dataclass(frozen=True)
class Scored:
    """One session's scores, and what is needed to draw it."""

    session: Session
    scores: dict[str, float]
    seconds: float
    image_DHW: np.ndarray
    """First channel, normalised."""
    truth_DHW: np.ndarray
    prediction_DHW: np.ndarray


def sessions_of(
    shards: ShardSet,
    *,
    split: str,
    fold: int | None = None,
    limit: int | None = None,
    places: Collection[tuple[int, int]] | None = None,
) -> tuple[Session, ...]:
    """The sessions with a mask of a split, one a subject, subjects in their own order.

    Args:
        split: train, val, test, or held_out: the sessions of `fold`.
        limit: subjects at most: those of lowest hash, so that a larger limit only adds.
        places: (shard, row) of the sessions to take, where somebody else has chosen.
    """
    index = split_view(shards.index, fold)
    names = ("subject", "session", "shard", "row", "shape", "spacing")
    found: dict[str, Session] = {}
    for row in index.select([*names, "split", "has_label"]).to_pylist():
        chosen = places is None or (row["shard"], row["row"]) in places
        if chosen and row["split"] == split and row["has_label"] and row["subject"] not in found:
            values: dict[str, Any] = {n: tuple(row[n]) if isinstance(row[n], list) else row[n] for n in names}
            found[row["subject"]] = Session(**values)
    first = sorted(found, key=lambda subject: (hash64_int(0, key_of(subject)), subject))[:limit]
    return tuple(found[subject] for subject in sorted(first))


class VolumeReader:
    """Reads whole sessions as a network in training would have seen them.

    Example:
        >>> x_CDHW, box, labels_DHW = VolumeReader(shards, (0, 1), 2, "zscore_nonzero")(session)
    """

    def __init__(self, shards: ShardSet, channels: Sequence[int], label: int | None, intensity: str) -> None:
        self._read = BatchReader(shards, channels, label=label)
        self._intensity = intensity

    def __call__(self, session: Session) -> tuple[torch.Tensor, Box, np.ndarray | None]:
        """(C, D, H, W) float32 network input, the box of the brain, and the uint8 mask (None where none was
        asked for)."""
        values: dict[str, Any] = {
            "step": 0, "group": 0, "slot": 0, "subject": session.subject, "session": session.session,
            "shard": session.shard, "row": session.row, "crop_seed": 0, "corner": [0, 0, 0],
        }  # fmt: skip
        schema = PLAN_SCHEMA.with_metadata({CROP_METADATA: json.dumps(list(session.shape))})
        batch = self._read(pa.Table.from_pylist([values], schema=schema))
        x_NCDHW, _ = normalise(batch, self._intensity)
        zero_C111 = batch.zero_code_NC[0, :, None, None, None]
        box = brain_box((batch.codes_NCDHW[0] != zero_C111).numpy())  # without the mask
        labels = None if batch.labels_NDHW is None else batch.labels_NDHW[0].numpy().astype(np.uint8)
        return x_NCDHW[0], box, labels


def load_segmenter(uri: str, device: torch.device | str = "cpu") -> tuple[nn.Module, Card]:
    """The segmentation network of a fine-tuned checkpoint, ready to predict, and its card.

    Raises:
        CheckpointError: missing, damaged, or of a network that was only pretrained.
    """
    found = checkpoint.load(uri, with_state=False)
    if not found.card.task:
        raise CheckpointError(
            f"a checkpoint of stage {found.card.stage} cannot segment: it has no decoder",
            file=uri,
            fix="fine-tune it first: jobs/finetune_brats.py --init.checkpoint ...",
        )
    card = found.card
    spec = NetworkSpec(family=card.family, options=card.family_options, crop=card.crop)
    # Attention: faster on a CPU, MONAI's own elsewhere, the same numbers.
    encoder = {"in_channels": len(card.modalities), **card.encoder, "attention": "segments"}
    network = spec.build(EncoderSpec.from_dict(encoder), len(card.task["regions"]))
    network.load_state_dict(found.model)
    return network.to(device).eval(), card


def score_sessions(
    networks: Sequence[nn.Module],
    spec: VolumeSpec,
    sessions: Iterable[Session],
    *,
    device: torch.device,
    shards: ShardSet | None = None,
) -> Iterator[Scored]:
    """Predict and score sessions, one after the other.

    Raises:
        DataError: a mask that is not of the task's scheme, a damaged shard.
    """
    task = load_task(spec.task)
    read = VolumeReader(shards or ShardSet.open(spec.shards), spec.channels, spec.label, spec.intensity)
    for session in sessions:
        began = time.perf_counter()
        x_CDHW, box, truth = read(session)
        assert truth is not None
        probabilities = predict_probabilities(
            networks, x_CDHW, box, spec.window, device=device,
            precision=spec.precision, flips=spec.flips,
        )  # fmt: skip
        prediction = task.to_labels(probabilities > 0.5, spec.scheme)
        scores = task.score(
            truth, prediction, session.spacing, spec.scheme, lesionwise=spec.lesionwise,
            subject=session.subject,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        yield Scored(session, scores, seconds, x_CDHW[0].numpy(), truth, prediction)
