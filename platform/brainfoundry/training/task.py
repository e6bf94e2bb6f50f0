"""What one run is, resolved: everything its workers need, and nothing that depends on how many they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brainfoundry.core import files
from brainfoundry.stream.plan import PlanSpec
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.probe_spec import ProbeSpec
from brainfoundry.training.volumes import VolumeSpec


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """One training run, resolved."""

    config: TrainConfig
    name: str
    run_dir: str
    """STORAGE/NAME."""
    shards: str
    modalities: tuple[str, ...]
    """Input channels by name, in order."""
    fed_by: tuple[str, ...]
    """The modality that each channel shows."""
    channels: tuple[int, ...]
    """Their places in the shard set."""
    plan: PlanSpec
    label: int | None = None
    """The mask's channel in the shard set; None: trained without masks."""
    scheme: str = ""
    """Label scheme of the masks; "" without."""
    parent: str | None = None
    """Checkpoint the weights start from."""
    validation: PlanSpec | None = None
    """Held-out crops; None where too few subjects are held out, or whole volumes are validated."""
    validation_groups: int = 0
    volumes: VolumeSpec | None = None
    """Held-out volumes; None where nobody with a mask is held out, or crops are validated."""
    beside: bool = False
    """Volumes are validated beside the training, by Ray Train, not by the workers."""
    probe: ProbeSpec | None = None
    """Whom the probe looks at; None: there is none."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the card that hold for the whole run."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Earlier manifests of the shard set: a run may continue over withdrawals."""
    notes: tuple[str, ...] = ()
    """Lines for the report: what the leak gate found, what changes between the stages, a withdrawal that the
    run continues over."""
    tracking_uri: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return files.join(self.run_dir, "checkpoints")

    @property
    def verdicts(self) -> str:
        """Folder of what validation found, a file a checkpoint."""
        return files.join(self.run_dir, "validation")
