"""SwinUNETR in the paper's sizes: encoder, self-supervised heads, segmentation network.

    spec = EncoderSpec(size="tiny", in_channels=2)
    network = SSLNetwork(spec)              # pretraining: rotation, contrast, reconstruction
    network = build_segmenter(spec, 3)      # fine-tuning: SwinUNETR

Shape legend: N crops, C channels, D H W the spatial axes in storage order (of a RAS volume: right-left,
posterior-anterior, inferior-superior), T bottleneck tokens, K bottleneck features.
"""

from brainfoundry.models.crops import check_crop
from brainfoundry.models.segmenter import build_segmenter
from brainfoundry.models.sizes import SIZES, EncoderSpec, Size
from brainfoundry.models.ssl import SSLNetwork
from brainfoundry.models.swin import build_encoder

__all__ = ["SIZES", "EncoderSpec", "SSLNetwork", "Size", "build_encoder", "build_segmenter", "check_crop"]
