"""The card of a checkpoint: everything the next stage must know, and the contract it is held to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brainfoundry.core.errors import CheckpointError

CARD_VERSION = 1
SEEN_FILE = "seen.parquet"
"""The table of everybody the weights have seen, beside the card (`training.seen`)."""

_SAME = (
    "stage",
    "family",
    "family_options",
    "size",
    "modalities",
    "feeds",
    "merging",
    "objective",
    "objective_config",
    "intensity",
    "crop",
    "frame",
    "task",
    "chosen_on",
    "parents",
    "init",
    "encoder",
    "plan",
    "manifest_hash",
    "plan_hash",
    "steps",
)
"""What must agree for a run to continue, in the order in which a difference is named."""

_FREE = ("attention", "activation_checkpointing")
"""Fields of the encoder that change how it computes, not what."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a checkpoint is. JSON on disk, written last: a checkpoint without a card does not exist."""

    stage: str
    """pretrain-1, pretrain-2 (from a checkpoint) or finetune."""
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
    plan: dict[str, Any] = field(default_factory=dict)
    """The plan's specification: what makes the order, besides the shard set."""
    leaks: tuple[dict[str, Any], ...] = ()
    """Test sets of which the run, or an ancestor, has seen scans, as `training.leak_gate` found them before
    the run started and `allow_leak` let pass; empty: none of those it was held against."""
    feeds: dict[str, str] = field(default_factory=dict)
    """Channels that another modality feeds, channel -> modality: what the run declared, and what prediction
    may substitute."""
    task: dict[str, Any] = field(default_factory=dict)
    """Of a fine-tuned network: name, label scheme, regions in output order; empty for a pretrained one."""
    chosen_on: str = ""
    """Of a fine-tuned network: the split whose scores choose the best checkpoint (val, or held_out: the
    fold); scores on it are optimistic."""
    init: dict[str, Any] = field(default_factory=dict)
    """How the weights began, beside `parents`: mode, parts, freeze, layer_decay, and of CT weights the file's
    name and SHA-256; empty: at random."""
    family: str = "swinunetr"
    """Architecture: a file of models.families. `size`, `merging` and `encoder` are swinunetr's alone."""
    family_options: dict[str, Any] = field(default_factory=dict)
    """All options of another family."""
    probe: dict[str, Any] = field(default_factory=dict)
    """Of a run with a probe: cohort, manifest, task and numbers of the labelled subjects it looked at. They
    are not among those the weights have seen; who chose by `metrics["probe/..."]` chose on them."""
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation losses and figures of the probe at this step, if there were any."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Size in bytes and SHA-256 of every other file of the checkpoint."""
    version: int = CARD_VERSION

    @property
    def label(self) -> str:
        """The network in a word: the size; of another family than swinunetr its name."""
        return self.size if self.family == "swinunetr" else self.family

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
        value.setdefault(
            "plan", {}
        )  # cards from before the leak gate: readable, to be refused by what they lack
        value.setdefault("leaks", [])
        later: dict[str, Any] = {
            "feeds": {}, "task": {}, "init": {}, "chosen_on": "",  # from before there were stages 2 and 3
            "family": "swinunetr", "family_options": {},  # from before there were others
            "probe": {},
        }  # fmt: skip
        for name, nothing in later.items():
            value.setdefault(name, nothing)
        if set(value) != known:
            raise CheckpointError(
                f"card with missing or unknown fields: {', '.join(sorted(set(value) ^ known))}",
                file=uri,
                fix="restore card.json",
            )
        for name in ("modalities", "crop", "parents", "leaks"):
            value[name] = tuple(value[name])
        return Card(**value)

    def refuse_mismatch(
        self, other: Card, uri: str, history: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any] | None:
        """Refuse to continue a run whose checkpoint is of another size, other modalities or another plan.

        Args:
            other: the checkpoint's card.
            history: earlier manifests of the shard set (`ShardSetMeta.history`). Where only withdrawals lie
                between the checkpoint's scans and today's, those may differ, and the order with them.

        Returns:
            `{"subjects": n, "from": hash, "to": hash}` where the run continues over withdrawals, else None.

        Raises:
            CheckpointError: names the first field that differs and both values.
        """
        gone = withdrawn_since(other.manifest_hash, history)
        over = gone is not None and other.manifest_hash != self.manifest_hash
        # Without the specification of its plan, an older card cannot show that only the scans differ.
        accepted = ("manifest_hash", "plan_hash") if over and other.plan else ()
        for name in _SAME:
            mine, theirs = _plain(getattr(self, name)), _plain(getattr(other, name))
            if name in ("plan", "init") and not theirs:
                continue
            if name == "encoder":
                mine, theirs = ({k: v for k, v in e.items() if k not in _FREE} for e in (mine, theirs))
            if mine != theirs and name not in accepted:
                raise CheckpointError(
                    f"the checkpoint has {name} {theirs!r}, this run asks for {mine!r}",
                    file=uri,
                    fix="give this run another --name, or the options the checkpoint was made with",
                )
        if not over:
            return None
        return {"subjects": gone, "from": other.manifest_hash, "to": self.manifest_hash}


def withdrawn_since(manifest_hash: str, history: Sequence[Mapping[str, Any]]) -> int | None:
    """Subjects withdrawn since a shard set had this manifest; None where it never had, or other changes lie
    between."""
    hashes = [entry["manifest_hash"] for entry in history]
    if manifest_hash not in hashes:
        return None
    since = history[len(hashes) - 1 - hashes[::-1].index(manifest_hash) :]
    if any(entry["what"] != "withdrawal" for entry in since):
        return None
    return sum(int(entry["subjects"]) for entry in since)


def _plain(value: Any) -> Any:
    """Tuples inside as lists, as a card read back has them; the value itself keeps its type."""
    return json.loads(json.dumps(value)) if isinstance(value, dict) else value
