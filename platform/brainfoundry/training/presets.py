"""The named configurations of stage 1: what the paper says, what its code did, and one for a laptop."""

from __future__ import annotations

from brainfoundry.training.config import (
    ClusterConfig,
    DataConfig,
    KeepConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
)

PAPER = PretrainConfig(preset="paper")
"""The text's values; Table 3 where the text is silent or cannot be meant (steps). Sources: the fields."""

REFERENCE = PretrainConfig(
    preset="reference",
    data=DataConfig(frame="reference", intensity="ct_window"),
    model=ModelConfig(merging="legacy"),
    optim=OptimConfig(steps=100_000, lr=4e-4, precision="fp16"),
    keep=KeepConfig(best_by="reconstruction"),
)
"""The released code's values, bugs mended: clipping under fp16, a new order each epoch, exact resume."""

DEMO = PretrainConfig(
    preset="demo",
    data=DataConfig(crop=(64, 32, 32), groups_per_step=2),
    model=ModelConfig(size="nano"),
    optim=OptimConfig(steps=80, lr=1e-3, warmup=10, precision="fp32"),
    cluster=ClusterConfig(workers=1, fetch_cpus=0.25),
    keep=KeepConfig(validate_every=20, checkpoint_every=20, validate_subjects=2, log_every=5),
)
"""A CPU, two cores, a few minutes: the same code path on the nano network and the demo cohort at 2 mm."""

PRESETS = {"demo": DEMO, "paper": PAPER, "reference": REFERENCE}
