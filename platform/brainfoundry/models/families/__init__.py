"""Segmentation networks by family: the baselines of the field beside the SwinUNETR that we pretrain.

    family = load_family("segresnet")
    network = family.build(4, 3, (128, 128, 128), {"filters": 16})

One file a family. Every network maps crops (N, C, D, H, W) to logits (N, R, D, H, W), in training and in eval
mode alike, and learns with all its parameters: deep supervision, where there is one, stays inside.

Shape legend: N crops, C input channels, R regions, D H W spatial axes, T tokens, E features of a token.
"""

from brainfoundry.models.families.base import Family, family_names, load_family

__all__ = ["Family", "family_names", "load_family"]
