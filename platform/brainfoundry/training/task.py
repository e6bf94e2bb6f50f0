"""What the driver decided and every worker is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brainfoundry.core import files
from brainfoundry.stream.plan import PlanSpec
from brainfoundry.training.config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """One pretraining run, resolved: nothing in it depends on the number of workers."""

    config: PretrainConfig
    name: str
    run_dir: str
    """STORAGE/NAME."""
    shards: str
    modalities: tuple[str, ...]
    """Input channels by name, in order."""
    channels: tuple[int, ...]
    """Their places in the shard set."""
    plan: PlanSpec
    validation: PlanSpec | None
    """None where too few subjects are held out for a group."""
    validation_groups: int
    card: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the card that hold for the whole run."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Earlier manifests of the shard set: a run may continue over withdrawals."""
    notes: tuple[str, ...] = ()
    """Lines for the report: what the leak gate found, and a withdrawal that the run continues over."""
    tracking_uri: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return files.join(self.run_dir, "checkpoints")
