"""Masked autoencoding (He et al. 2022): most of a crop is hidden in random patches and is to be rebuilt.

The loss is the mean squared difference (or the absolute one) over the hidden voxels alone. Hidden voxels are
0, in every modality at the same places: a fixed mask token, as masked autoencoding of convolutional networks
has it (nnssl, arXiv 2412.17041), so there is no parameter of it that the next stage would have to drop. All
voxels stay in the network's grid, because windows of a Swin encoder need it whole. The network is that of the
paper's objective without its rotation and contrast heads: encoder `swinViT`, reconstruction head `conv`.

A modality the session came without is neither shown nor rebuilt: the loss of a group is the mean over the
modalities that its crops have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64_torch, key_of
from brainfoundry.models import EncoderSpec, SSLNetwork, check_crop
from brainfoundry.models.swin import bottleneck
from brainfoundry.pretext.presence import group_weights

Loss = Literal["l2", "l1"]

_PATCHES = key_of("pretext.masked_autoencoder.patches")


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderConfig:
    """Settings of the objective.

    Raises:
        ConfigError: an impossible value.
    """

    share: float = 0.75
    """Share of a crop's patches that is hidden (He et al. 2022; nnssl, for CNNs: 0.75)."""
    patch: int = 16
    """Side of a patch in voxels (nnssl: 16 at a crop of 160; He et al.: 16 pixels at 224)."""
    loss: Loss = "l2"
    """l2: mean squared difference (He et al. 2022, nnssl); l1: mean absolute difference."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share is {self.share}", fix="give a share between 0 and 1, such as 0.75")
        if self.patch < 1:
            raise ConfigError(f"patch is {self.patch}", fix="give a side in voxels, such as 16")
        if self.loss not in get_args(Loss):
            raise ConfigError(
                f"loss '{self.loss}' does not exist", fix=f"choose one of {', '.join(get_args(Loss))}"
            )


class MaskedAutoencoder(SSLNetwork):
    """`SSLNetwork` without the heads for rotation and contrast; starts from the same weights for a seed."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        del self.rotation_head, self.contrastive_head

    def forward(self, x_NCDHW: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Crops rebuilt: (N, C, D, H, W) to the same shape."""
        return self._rebuild(bottleneck(self.swinViT, x_NCDHW))


class Objective:
    """Masked autoencoding: see the module's docstring, and `pretext.base.Objective`."""

    Config = MaskedAutoencoderConfig
    loss_names: tuple[str, ...] = ("reconstruction",)
    views_per_crop = 1

    def __init__(self, config: MaskedAutoencoderConfig | None = None) -> None:
        self.config = config or MaskedAutoencoderConfig()

    def check_crop(self, crop: Sequence[int]) -> None:
        """Refuse a crop that the network cannot take or that is not whole patches (ConfigError)."""
        sides = check_crop(crop, min_tokens=2)
        share, patch = self.config.share, self.config.patch
        shown = "x".join(map(str, sides))
        if any(side % patch for side in sides):
            raise ConfigError(
                f"crop {shown} is not whole patches of {patch} voxels",
                fix=f"use sides that are multiples of {math.lcm(patch, 32)}, or patch=16",
            )
        patches, hidden = self._count(sides)
        if not 0 < hidden < patches:
            raise ConfigError(
                f"crop {shown} has {patches} patches of {patch} voxels, and share {share} hides {hidden}",
                fix="use a smaller patch, a larger crop, or a share nearer to 0.75",
            )

    def check_group(self, crops_per_group: int) -> None:
        """Any group will do: crops have nothing to do with each other."""

    def network(self, encoder: EncoderSpec) -> MaskedAutoencoder:
        """The encoder with the reconstruction head."""
        return MaskedAutoencoder(encoder)

    def _count(self, crop: Sequence[int]) -> tuple[int, int]:
        """Patches of a crop, and how many of them are hidden."""
        patches = math.prod(side // self.config.patch for side in crop)
        return patches, round(self.config.share * patches)

    @torch.no_grad()
    def hidden(self, seeds_N: torch.Tensor, crop: Sequence[int]) -> torch.Tensor:
        """Which voxels of each crop are hidden: bool (N, 1, *crop), the same number in every crop."""
        self.check_crop(crop)
        patches, count = self._count(crop)
        number_P = torch.arange(patches, device=seeds_N.device)
        order_NP = hash64_torch(seeds_N[:, None], _PATCHES, number_P).argsort(dim=1, stable=True)
        hidden_NP = torch.zeros_like(order_NP, dtype=torch.bool).scatter_(1, order_NP[:, :count], True)
        hidden = hidden_NP.view(-1, 1, *(side // self.config.patch for side in crop))
        for axis in (2, 3, 4):
            hidden = hidden.repeat_interleave(self.config.patch, dim=axis)
        return hidden

    def loss(
        self,
        network: nn.Module,
        x_NCDHW: torch.Tensor,
        seeds_N: torch.Tensor,
        crops_per_group: int,
        *,
        present_NC: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The reconstruction loss, float32, which is also the total; only `total` carries a gradient."""
        hidden = self.hidden(seeds_N, [int(side) for side in x_NCDHW.shape[2:]])
        rebuilt = network(x_NCDHW.masked_fill(hidden, 0.0))
        # float32 whatever the autocast: this is a mean over many small terms.
        with torch.autocast(x_NCDHW.device.type, enabled=False):
            difference = rebuilt.float() - x_NCDHW
            error = difference.abs() if self.config.loss == "l1" else difference.square()
            voxels = self._count(x_NCDHW.shape[2:])[1] * self.config.patch**3
            error_NC = error.masked_fill(~hidden, 0.0).sum(dim=(2, 3, 4)) / voxels
            if present_NC is not None:
                error_NC = error_NC * group_weights(present_NC, crops_per_group)
            total = error_NC.mean()
        return {"total": total, "reconstruction": total.detach()}

    @torch.no_grad()
    def pictures(
        self, network: nn.Module, x_NCDHW: torch.Tensor, seeds_N: torch.Tensor, crops_per_group: int
    ) -> dict[str, torch.Tensor]:
        """`input`, `cut` (hidden voxels 0) and `rebuilt` (the answer, shown voxels too): float32."""
        cut = x_NCDHW.masked_fill(self.hidden(seeds_N, [int(side) for side in x_NCDHW.shape[2:]]), 0.0)
        return {"input": x_NCDHW.float(), "cut": cut.float(), "rebuilt": network(cut).float()}
