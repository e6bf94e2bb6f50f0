"""The pretraining network: the Swin encoder and three heads (paper 1.2), named as in the released code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from brainfoundry.models.crops import check_crop
from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.models.swin import bottleneck, build_encoder

ROTATION_CLASSES = 4
"""Quarter turns."""
CONTRAST_FEATURES = 512
"""Length of the vector that the contrastive loss compares (released code)."""


class SSLOutput(NamedTuple):
    """What the heads say of N crops.

    Attributes:
        rotation_logits: (N, 4), one class a quarter turn.
        contrast: (N, 512), not normalised.
        rebuilt: (N, C, D, H, W), the size of the input.
    """

    rotation_logits: torch.Tensor
    contrast: torch.Tensor
    rebuilt: torch.Tensor


class SSLNetwork(nn.Module):
    """Encoder `swinViT` with `rotation_head`, `contrastive_head` and the reconstruction head `conv`.

    The first two are linear layers on the bottleneck tokens 0 and 1, without pooling; the third is five times
    convolution, instance norm, leaky ReLU and doubling by trilinear interpolation, then a 1x1x1 convolution.
    Parameter names, shapes and their order are those of the released code, so weights pass both ways.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        features = spec.dimensions.bottleneck_features
        self.swinViT = build_encoder(spec)
        self.rotation_head = nn.Linear(features, ROTATION_CLASSES)
        self.contrastive_head = nn.Linear(features, CONTRAST_FEATURES)
        layers: list[nn.Module] = []
        width = features
        for narrower in (features // 2, features // 4, features // 8, features // 16, features // 16):
            layers += [
                nn.Conv3d(width, narrower, kernel_size=3, padding=1),
                nn.InstanceNorm3d(narrower),
                nn.LeakyReLU(0.01, inplace=True),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            ]
            width = narrower
        self.conv = nn.Sequential(*layers, nn.Conv3d(width, spec.in_channels, kernel_size=1))

    def forward(self, x_NCDHW: torch.Tensor) -> SSLOutput:
        """The three heads' answers for crops (N, C, D, H, W).

        Raises:
            ConfigError: a crop size that the network cannot take.
        """
        check_crop([int(side) for side in x_NCDHW.shape[2:]], min_tokens=2)
        deep_NKdhw = bottleneck(self.swinViT, x_NCDHW)
        tokens_NTK = deep_NKdhw.flatten(2).transpose(1, 2)
        return SSLOutput(
            rotation_logits=self.rotation_head(tokens_NTK[:, 0]),
            contrast=self.contrastive_head(tokens_NTK[:, 1]),
            rebuilt=self._rebuild(deep_NKdhw),
        )

    def _rebuild(self, deep_NKdhw: torch.Tensor) -> torch.Tensor:
        # The weights of an interpolation sum to 1, so a 1x1x1 convolution with bias may as well come before
        # it: equal up to rounding, on an eighth of the voxels, and the widest tensor of the head is never
        # made.
        *body, upsample, project = self.conv
        for layer in body:
            deep_NKdhw = layer(deep_NKdhw)
        rebuilt: torch.Tensor = upsample(project(deep_NKdhw))
        return rebuilt
