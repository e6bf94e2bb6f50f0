"""The Swin encoder, on MONAI's `SwinTransformer`, with either order of patch merging."""

from __future__ import annotations

import torch
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2, SwinTransformer
from torch.nn import functional as F

from brainfoundry.models.attention import install_attention
from brainfoundry.models.sizes import EncoderSpec

PATCH = 2
"""Side of the patch embedding, voxels (paper 1.2)."""


class LegacyPatchMerging(PatchMergingV2):
    """Patch merging as in MONAI 0.9 to 1.4: of the 8 neighbours, two are taken twice and two never.

    MONAI 1.5 mended it (Project-MONAI/MONAI pull request 8285), under the same parameter names and shapes, so
    that older weights load into the mended layer without an error and compute something else. All weights
    published for SwinUNETR and BrainSegFounder were trained with this order.
    """

    # Offsets along (D, H, W). The sixth and seventh repeat the third and fourth; (1,1,0) and (0,1,1) are
    # missing.
    OFFSETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def forward(self, x_NDHWC: torch.Tensor) -> torch.Tensor:
        """(N, D, H, W, C) to (N, ceil(D/2), ceil(H/2), ceil(W/2), 2C)."""
        _, d, h, w, _ = x_NDHWC.shape
        if d % 2 or h % 2 or w % 2:
            x_NDHWC = F.pad(x_NDHWC, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        neighbours = torch.cat([x_NDHWC[:, i::2, j::2, k::2] for i, j, k in self.OFFSETS], dim=-1)
        merged: torch.Tensor = self.reduction(self.norm(neighbours))
        return merged


def merging_class(spec: EncoderSpec) -> type[PatchMergingV2]:
    """The patch-merging layer that the specification names."""
    return LegacyPatchMerging if spec.merging == "legacy" else PatchMerging


def build_encoder(spec: EncoderSpec) -> SwinTransformer:
    """A freshly initialised encoder; its `forward` gives the five hidden states of a SwinUNETR."""
    size = spec.dimensions
    encoder = SwinTransformer(
        in_chans=spec.in_channels,
        embed_dim=size.feature_size,
        window_size=(size.window,) * 3,
        patch_size=(PATCH,) * 3,
        depths=size.depths,
        num_heads=size.heads,
        mlp_ratio=4.0,
        qkv_bias=True,
        drop_rate=spec.drop_rate,
        attn_drop_rate=spec.attention_drop_rate,
        drop_path_rate=spec.drop_path_rate,
        use_checkpoint=spec.activation_checkpointing,
        spatial_dims=3,
        downsample=merging_class(spec),
    )
    install_attention(encoder, spec.attention)
    return encoder


def bottleneck(encoder: SwinTransformer, x_NCDHW: torch.Tensor) -> torch.Tensor:
    """The last hidden state alone, (N, K, D/32, H/32, W/32): what `encoder(x)[4]` is, without normalising the
    four other states, which pretraining does not read."""
    x = encoder.pos_drop(encoder.patch_embed(x_NCDHW))
    for stage in (encoder.layers1, encoder.layers2, encoder.layers3, encoder.layers4):
        x = stage[0](x.contiguous())
    normalised: torch.Tensor = encoder.proj_out(x, normalize=True)
    return normalised
