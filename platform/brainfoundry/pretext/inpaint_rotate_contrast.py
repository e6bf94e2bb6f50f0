"""The paper's objective (1.2): of two augmented views a crop, tell the rotation, match, rebuild what was cut.

loss = w_rotation * cross-entropy + w_contrast * NT-Xent + w_reconstruction * L1, both views together. The
target of the reconstruction is the rotated crop before the cutout, over its whole volume and not only where
it was cut. A modality the session came without (0 throughout) is neither cut nor rebuilt: the L1 of a group
is the mean over the modalities that its crops have.

The released code runs the network once a view. Nothing in it mixes crops (no batch norm), so both views go
through one forward pass here: equal results, larger matrices, and one call for DistributedDataParallel to
see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional as F

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64_torch, key_of
from brainfoundry.models import EncoderSpec, SSLNetwork, check_crop
from brainfoundry.pretext.contrast import Scope, nt_xent
from brainfoundry.pretext.cutout import CutoutSpec, cut_out
from brainfoundry.pretext.presence import group_weights
from brainfoundry.pretext.rotation import draw_turns, rotate

_VIEW = key_of("pretext.view")


@dataclass(frozen=True, kw_only=True)
class InpaintRotateContrastConfig:
    """Settings of the objective; the defaults are the paper's and the released code's.

    Raises:
        ConfigError: an impossible value.
    """

    rotation_weight: float = 1.0
    """Weight of the rotation's cross-entropy (paper 1.2: 1)."""
    contrast_weight: float = 1.0
    """Weight of the contrastive loss (paper 1.2: 1)."""
    reconstruction_weight: float = 1.0
    """Weight of the L1 reconstruction loss (paper 1.2: 1)."""
    temperature: float = 0.5
    """Temperature of the contrastive loss (released code: 0.5)."""
    max_drop: float = 0.3
    """Largest budget of a cutout pass, share of the crop's voxels (released code: 0.3)."""
    max_block: float = 0.25
    """Cutout blocks have sides below this share of the crop's (released code: 0.25)."""
    tolerance: float = 0.05
    """Cutout blocks have sides of at least this share of the crop's (released code: 0.05)."""
    contrast_scope: Scope = "group"
    """Where negatives come from: `group` (released code), or `global`, every crop of every worker."""

    def __post_init__(self) -> None:
        for name in ("rotation_weight", "contrast_weight", "reconstruction_weight"):
            weight = getattr(self, name)
            if not (weight >= 0 and math.isfinite(weight)):
                raise ConfigError(f"{name} is {weight}", fix="give a finite number, 0 or more")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature is {self.temperature}", fix="give a finite number above 0")
        if self.contrast_scope not in get_args(Scope):
            raise ConfigError(
                f"contrast_scope '{self.contrast_scope}' does not exist",
                fix=f"choose one of {', '.join(get_args(Scope))}",
            )
        self.cutout()

    def cutout(self) -> CutoutSpec:
        """The cutout's own parameters."""
        return CutoutSpec(max_drop=self.max_drop, max_block=self.max_block, tolerance=self.tolerance)


class Views(NamedTuple):
    """Both views of N crops, view 1 of all of them first.

    Attributes:
        turns: quarter turns, int64 (2N,).
        target: rotated crops, (2N, C, D, H, W).
        cut: the same after the cutout.
    """

    turns: torch.Tensor
    target: torch.Tensor
    cut: torch.Tensor


class Objective:
    """Inpainting, rotation and contrast: see the module's docstring, and `pretext.base.Objective`."""

    Config = InpaintRotateContrastConfig
    loss_names: tuple[str, ...] = ("rotation", "contrast", "reconstruction")
    views_per_crop = 2

    def __init__(self, config: InpaintRotateContrastConfig | None = None) -> None:
        self.config = config or InpaintRotateContrastConfig()

    def check_crop(self, crop: Sequence[int]) -> None:
        """Refuse a crop that the network, the rotation or the cutout cannot take (ConfigError)."""
        self.config.cutout().check_crop(check_crop(crop, min_tokens=2, square=True))

    def check_group(self, crops_per_group: int) -> None:
        """Refuse a group without negatives (ConfigError)."""
        if crops_per_group < 2:
            raise ConfigError(
                "a group of one crop has nothing to contrast with",
                fix="raise --data.subjects-per-group or --data.crops-per-subject",
            )

    def network(self, encoder: EncoderSpec) -> SSLNetwork:
        """The encoder with its three heads."""
        return SSLNetwork(encoder)

    @torch.no_grad()
    def views(
        self,
        x_NCDHW: torch.Tensor,
        seeds_N: torch.Tensor,
        crops_per_group: int,
        count: int = 2,
        present_NC: torch.Tensor | None = None,
    ) -> Views:
        """The first `count` views of each crop; absent modalities stay 0 in the cut one too."""
        self.check_crop([int(side) for side in x_NCDHW.shape[2:]])
        seeds = torch.cat([hash64_torch(seeds_N, _VIEW, view) for view in range(count)])
        turns = draw_turns(seeds)
        target = rotate(torch.cat([x_NCDHW] * count), turns)
        cut = cut_out(target, seeds, crops_per_group, self.config.cutout())
        if present_NC is not None:  # noise, and voxels of another crop's modality
            cut.mul_(present_NC.repeat(count, 1)[:, :, None, None, None])
        return Views(turns, target, cut)

    def loss(
        self,
        network: nn.Module,
        x_NCDHW: torch.Tensor,
        seeds_N: torch.Tensor,
        crops_per_group: int,
        *,
        present_NC: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The weighted sum and its three parts, float32 scalars; only `total` carries a gradient."""
        views = self.views(x_NCDHW, seeds_N, crops_per_group, present_NC=present_NC)
        return self.losses(network(views.cut), views, crops_per_group, present_NC=present_NC)

    def losses(
        self,
        answers: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        views: Views,
        crops_per_group: int,
        *,
        present_NC: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """`loss` from the network's answers to both views."""
        logits, features, rebuilt = answers
        config = self.config
        # float32 whatever the autocast: these are means over many small terms.
        with torch.autocast(logits.device.type, enabled=False):
            rotation = F.cross_entropy(logits.float(), views.turns)
            first, second = features.unflatten(0, (2, -1, crops_per_group))
            contrast = nt_xent(first, second, config.temperature, config.contrast_scope)
            reconstruction = _l1(rebuilt.float(), views.target, crops_per_group, present_NC)
            total = (
                config.rotation_weight * rotation
                + config.contrast_weight * contrast
                + config.reconstruction_weight * reconstruction
            )
        return {
            "total": total,
            "rotation": rotation.detach(),
            "contrast": contrast.detach(),
            "reconstruction": reconstruction.detach(),
        }

    @torch.no_grad()
    def pictures(
        self, network: nn.Module, x_NCDHW: torch.Tensor, seeds_N: torch.Tensor, crops_per_group: int
    ) -> dict[str, torch.Tensor]:
        """View 1: `input` (rotated, uncut), `cut` and `rebuilt`, each (N, C, D, H, W) float32."""
        views = self.views(x_NCDHW, seeds_N, crops_per_group, count=1)
        _, _, rebuilt = network(views.cut)
        return {"input": views.target.float(), "cut": views.cut.float(), "rebuilt": rebuilt.float()}


def _l1(
    rebuilt: torch.Tensor, target: torch.Tensor, crops_per_group: int, present_NC: torch.Tensor | None
) -> torch.Tensor:
    """Mean over groups of a group's mean absolute difference over its present (crop, modality) pairs.

    Both tensors hold all views, one after the other. With everything present each weight is exactly 1, and
    the result bit for bit that of `F.l1_loss`.
    """
    if present_NC is None:
        return F.l1_loss(rebuilt, target)
    weights_NC = group_weights(present_NC.repeat(len(target) // len(present_NC), 1), crops_per_group)
    return ((rebuilt - target).abs() * weights_NC[:, :, None, None, None]).mean()
