"""What an objective is, and how the engine finds one by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from brainfoundry.core.plugins import Plugins
from brainfoundry.models.sizes import EncoderSpec


@runtime_checkable
class Objective(Protocol):
    """A self-supervised task: which network it trains, on what loss.

    An implementation is a file `brainfoundry/pretext/<name>.py` with a class named `Objective` that has these
    members. Its attribute `Config` is a frozen dataclass with a default for every field, and is the only
    argument of the constructor. It keeps no state that changes from step to step, and takes all its
    randomness from the seeds.
    """

    Config: type
    config: Any
    """The `Config` in force; it goes on the checkpoint's card."""
    loss_names: tuple[str, ...]
    """Names of the parts of the loss, without the total."""
    views_per_crop: int
    """How often a crop goes through the network in a step, for estimates of cost."""

    def __init__(self, config: Any = None) -> None: ...

    def check_crop(self, crop: Sequence[int]) -> None:
        """Refuse a crop that the objective cannot use: a `ConfigError` naming the nearest valid sizes."""
        ...

    def check_group(self, crops_per_group: int) -> None:
        """Refuse groups of too few crops: a `ConfigError`."""
        ...

    def network(self, encoder: EncoderSpec) -> nn.Module:
        """The network to train, freshly initialised."""
        ...

    def loss(
        self,
        network: nn.Module,
        x_NCDHW: torch.Tensor,
        seeds_N: torch.Tensor,
        crops_per_group: int,
        *,
        present_NC: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scalars `total` (with gradient) and one for each of `loss_names` (detached): means over the groups.

        Args:
            network: what `network()` built, bare or wrapped (DistributedDataParallel); called exactly once.
            x_NCDHW: normalised crops, groups whole and in order.
            seeds_N: int64, one seed a crop.
            crops_per_group: consecutive crops that share one contrast matrix and lend voxels to each other.
            present_NC: bool, False for modalities a crop's session came without: `x_NCDHW` is 0 there, and
                nothing is to be learnt from it. None: all are there.
        """
        ...

    def pictures(
        self, network: nn.Module, x_NCDHW: torch.Tensor, seeds_N: torch.Tensor, crops_per_group: int
    ) -> dict[str, torch.Tensor]:
        """What to show of a batch: `input`, `cut`, `rebuilt`, each (N, C, D, H, W) float32, no gradient."""
        ...


_MEMBERS = (
    "Config", "loss_names", "views_per_crop", "check_crop", "check_group", "network", "loss", "pictures",
)  # fmt: skip
_OBJECTIVES = Plugins[type[Objective]](
    package="brainfoundry.pretext", attribute="Objective", what="objective",
    accepts=lambda found: isinstance(found, type) and all(hasattr(found, member) for member in _MEMBERS),
)  # fmt: skip


def available() -> list[str]:
    """Names of the objectives that are there."""
    return _OBJECTIVES.names()


def load_objective(name: str) -> type[Objective]:
    """The class `Objective` of the file `brainfoundry/pretext/<name>.py`.

    Raises:
        ConfigError: there is no such file, or no objective in it; the message lists those that are there.
    """
    return _OBJECTIVES.load(name)
