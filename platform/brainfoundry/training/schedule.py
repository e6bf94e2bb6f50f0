"""Learning rate as a pure function of the step, so that resume needs no state to be right."""

from __future__ import annotations

import math

from brainfoundry.training.config import OptimConfig


def lr_factor(step: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at a step (0-based).

    Linear warm-up from 0 over `warmup` steps (the very first step has rate 0, as in the released code),
    then half a cosine that reaches 0 at `steps` and stays there, or a constant 1.
    """
    if step < config.warmup:
        return step / max(1, config.warmup)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
