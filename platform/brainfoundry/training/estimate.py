"""What a run will cost, before it starts: arithmetic from stated constants, labelled as such."""

from __future__ import annotations

import math
from collections.abc import Mapping

from brainfoundry.pretext.base import load_objective
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig

# Forward + backward of the SSL network per view of 96^3, in TFLOP, counted on MONAI's network (FMA = 2).
_TFLOP_PER_VIEW = {"nano": 0.016, "tiny": 0.211, "small": 0.242, "big": 0.333}
# Seconds an A100-80 needs per TFLOP of this network: its attention is bound by memory traffic, so the
# best case is about 25 TFLOP/s and a plain implementation about 6-16.
_A100_S_PER_TFLOP = (0.06, 0.24)
# Peak memory of one view of 96^3 in fp32 with all activations kept, in GB: 12.4 GB for four views of tiny.
_GB_PER_VIEW = {"nano": 0.5, "tiny": 2.9, "small": 3.5, "big": 5.2}
_PARAMETERS_M = {"nano": 1.3, "tiny": 19.1, "small": 21.0, "big": 26.6}
# The same of one crop of the segmentation network with four channels in and three regions out.
_TFLOP_PER_LABELLED_CROP = {"nano": 0.132, "tiny": 1.921, "small": 1.952, "big": 2.044}
_GB_PER_LABELLED_CROP = {"nano": 1.6, "tiny": 6.2, "small": 6.8, "big": 8.5}
_SEGMENTER_PARAMETERS_M = {"nano": 4.1, "tiny": 62.2, "small": 64.1, "big": 69.7}
_REFERENCE_VOXELS = 96**3


def estimate(config: TrainConfig, n_subjects: int) -> Mapping[str, float]:
    """Figures of a run: crops and views a step, epochs, memory a worker in GB, GPU-hours and days on
    A100s; of another family than swinunetr, whose cost nobody has counted, the first two and the epochs."""
    data, model = config.data, config.model
    labelled = isinstance(config, FinetuneConfig)
    crops = data.groups_per_step * config.crops_per_group
    views = crops if labelled else load_objective(model.objective).views_per_crop * crops
    gigabytes = _GB_PER_LABELLED_CROP if labelled else _GB_PER_VIEW
    millions = _SEGMENTER_PARAMETERS_M if labelled else _PARAMETERS_M
    work = _TFLOP_PER_LABELLED_CROP if labelled else _TFLOP_PER_VIEW
    counts = {
        "crops_per_step": crops,
        "views_per_step": views,
        "subjects_per_step": data.groups_per_step * data.subjects_per_group,
        "epochs": config.optim.steps * data.groups_per_step * data.subjects_per_group / n_subjects,
    }
    if isinstance(config, FinetuneConfig) and config.model.family != SWINUNETR:
        return counts
    voxels = math.prod(data.crop) / _REFERENCE_VOXELS
    views_at_once = views / config.cluster.workers / config.optim.accumulate
    half = 0.6 if config.optim.precision != "fp32" else 1.0  # autocast keeps norms and losses in fp32
    recompute = 0.79 if model.activation_checkpointing else 1.0
    activations = gigabytes[model.size] * voxels * views_at_once * half * recompute
    states = millions[model.size] * 1e6 * 4 * 4 / 1e9  # weights, gradients, two moments
    tflop = work[model.size] * voxels * views / config.cluster.workers
    low, high = (tflop * s * (1.47 if model.activation_checkpointing else 1.0) for s in _A100_S_PER_TFLOP)
    hours = config.optim.steps * config.cluster.workers / 3600
    days = config.optim.steps / 86400
    return {
        **counts,
        "memory_gb_per_worker": activations + states,
        "tflop_per_worker_step": tflop,
        "step_s_low": low,
        "step_s_high": high,
        "gpu_hours_low": low * hours,
        "gpu_hours_high": high * hours,
        "days_low": low * days,
        "days_high": high * days,
    }
