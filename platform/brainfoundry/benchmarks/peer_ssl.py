"""What the benchmark `step` measures against: pretraining as one would write it with MONAI's parts.

The network and the loop have the shape of the public SwinUNETR pretraining code: the whole encoder's five
hidden states, the heads' layers one after the other, one forward pass a view, MONAI's contrastive loss.
Anomaly detection, which that code leaves on, is off. Parameter names equal `SSLNetwork`'s, so both can start
from the same weights.
"""

from __future__ import annotations

import torch
from monai.losses import ContrastiveLoss
from monai.networks.nets.swin_unetr import PatchMerging, SwinTransformer
from torch import nn
from torch.nn import functional as F

from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.models.swin import LegacyPatchMerging


class PeerNetwork(nn.Module):
    """MONAI's encoder with rotation, contrast and reconstruction heads, run plainly."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        size = spec.dimensions
        self.swinViT = SwinTransformer(
            in_chans=spec.in_channels,
            embed_dim=size.feature_size,
            window_size=(size.window,) * 3,
            patch_size=(2, 2, 2),
            depths=size.depths,
            num_heads=size.heads,
            downsample=LegacyPatchMerging if spec.merging == "legacy" else PatchMerging,
        )
        width = size.bottleneck_features
        self.rotation_head = nn.Linear(width, 4)
        self.contrastive_head = nn.Linear(width, 512)
        layers: list[nn.Module] = []
        for divisor in (2, 4, 8, 16, 16):
            layers.append(nn.Conv3d(width, size.bottleneck_features // divisor, 3, padding=1))
            width = size.bottleneck_features // divisor
            layers += [
                nn.InstanceNorm3d(width),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=2, mode="trilinear"),
            ]
        self.conv = nn.Sequential(*layers, nn.Conv3d(width, spec.in_channels, 1))

    def forward(self, x_NCDHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotation logits, contrast features and reconstruction of one view."""
        deep = self.swinViT(x_NCDHW.contiguous())[4]
        tokens = deep.flatten(2).transpose(1, 2)
        return self.rotation_head(tokens[:, 0]), self.contrastive_head(tokens[:, 1]), self.conv(deep)


def peer_loss(
    network: nn.Module,
    cut: tuple[torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor],
    turns: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum of the three losses and its parts, from two forward passes; each argument holds both views."""
    answers = [network(view) for view in cut]
    logits, features, rebuilt = zip(*answers, strict=True)
    parts = {
        "rotation": F.cross_entropy(torch.cat(logits), torch.cat(turns)),
        "contrast": ContrastiveLoss(temperature=0.5)(*features),
        "reconstruction": F.l1_loss(torch.cat(rebuilt), torch.cat(target)),
    }
    return parts["rotation"] + parts["contrast"] + parts["reconstruction"], parts
