"""The card of a checkpoint: everything the next stage must know, and the contract it is held to."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from brainfoundry.core.errors import CheckpointError

CARD_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a checkpoint is. JSON on disk, written last: a checkpoint without a card does not exist."""

    stage: str
    """pretrain-1, pretrain-2 or finetune."""
    size: str
    """Name of the size (Table 2, or nano)."""
    modalities: tuple[str, ...]
    """Input channels by name, in order: transfer between cohorts is by these names."""
    merging: str
    """Patch merging: legacy or current. The same weights mean something else under the other."""
    encoder: dict[str, Any]
    """All fields of the encoder's specification."""
    objective: str
    objective_config: dict[str, Any]
    intensity: str
    """Intensity rule the weights were trained under."""
    crop: tuple[int, int, int]
    patch: int
    frame: str
    spacing_mm: float | None
    """Isotropic voxel size in mm if the shard set was resampled to one; None = as the scans came."""
    orientation: str
    space: str
    """Template space of the scans, such as MNI152."""
    skull_stripped: bool
    manifest_hash: str
    """Which scans: hash of the converted cohort manifest."""
    plan_hash: str
    """In which order: hash of the plan."""
    step: int
    """Optimiser steps done; the plan's cursor."""
    steps: int
    """Optimiser steps planned."""
    run: str
    parents: tuple[str, ...] = ()
    """Checkpoints this one was initialised from."""
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation losses at this step, if there was a validation."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Size in bytes and SHA-256 of every other file of the checkpoint."""
    version: int = CARD_VERSION

    def to_json(self) -> bytes:
        """The card as indented JSON."""
        return (json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_json(data: bytes, uri: str) -> Card:
        """Read a card.

        Raises:
            CheckpointError: not a card, or one of another version.
        """
        try:
            value = json.loads(data)
            version = value["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"not a checkpoint card: {error}", file=uri, fix="name a checkpoint folder"
            ) from error
        if version != CARD_VERSION:
            raise CheckpointError(
                f"card of version {version}, this program reads version {CARD_VERSION}",
                file=uri,
                fix="use the BrainFoundry version that wrote it",
            )
        known = {f.name for f in dataclasses.fields(Card)}
        if set(value) != known:
            raise CheckpointError(
                f"card with missing or unknown fields: {', '.join(sorted(set(value) ^ known))}",
                file=uri,
                fix="restore card.json",
            )
        for name in ("modalities", "crop", "parents"):
            value[name] = tuple(value[name])
        return Card(**value)

    def refuse_mismatch(self, other: Card, uri: str) -> None:
        """Refuse to continue a run whose checkpoint is of another size, other modalities or another plan.

        Raises:
            CheckpointError: names the first field that differs and both values.
        """
        for name in (
            "stage",
            "size",
            "modalities",
            "merging",
            "objective",
            "objective_config",
            "intensity",
            "crop",
            "frame",
            "manifest_hash",
            "plan_hash",
            "steps",
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise CheckpointError(
                    f"the checkpoint has {name} {theirs!r}, this run asks for {mine!r}",
                    file=uri,
                    fix="give this run another --name, or the options the checkpoint was made with",
                )
