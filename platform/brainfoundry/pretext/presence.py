"""What is learnt from crops whose session came without some of the modalities."""

from __future__ import annotations

import torch


def group_weights(present_NC: torch.Tensor, crops_per_group: int) -> torch.Tensor:
    """Weights (N, C), float32, that make the mean over all (crop, modality) pairs a mean over groups of each
    group's mean over the pairs it has.

    A group's mean depends on nothing outside it, so losses are the same on any number of workers; a group
    that has nothing adds 0. With everything present each weight is exactly 1.
    """
    there_GK = present_NC.float().view(-1, crops_per_group * present_NC.shape[1])
    weights_GK = there_GK * (there_GK.shape[1] / there_GK.sum(dim=1, keepdim=True).clamp(min=1))
    return weights_GK.view_as(present_NC)
