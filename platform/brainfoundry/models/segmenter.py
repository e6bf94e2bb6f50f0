"""The segmentation network: MONAI's SwinUNETR around the same encoder."""

from __future__ import annotations

from monai.networks.nets import SwinUNETR

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.attention import install_attention
from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.models.swin import PATCH, merging_class


def build_segmenter(spec: EncoderSpec, out_channels: int) -> SwinUNETR:
    """A freshly initialised SwinUNETR; its `swinViT` has the names and shapes of `build_encoder(spec)`.

    Args:
        spec: the encoder, merging included.
        out_channels: segmentation maps (3 for BraTS, 1 for ATLAS).

    Raises:
        ConfigError: fewer than one output channel.
    """
    if out_channels < 1:
        raise ConfigError(
            f"out_channels is {out_channels}", fix="give the number of segmentation maps, 1 or more"
        )
    size = spec.dimensions
    network = SwinUNETR(
        in_channels=spec.in_channels,
        out_channels=out_channels,
        patch_size=PATCH,
        depths=size.depths,
        num_heads=size.heads,
        window_size=size.window,
        feature_size=size.feature_size,
        drop_rate=spec.drop_rate,
        attn_drop_rate=spec.attention_drop_rate,
        dropout_path_rate=spec.drop_path_rate,
        use_checkpoint=spec.activation_checkpointing,
        spatial_dims=3,
        downsample=merging_class(spec),  # type: ignore[arg-type]  # a class is what MONAI wants here
    )
    install_attention(network.swinViT, spec.attention)
    return network
