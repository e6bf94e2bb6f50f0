"""Self-supervised objectives and what they are made of: intensity rules, rotation, cutout, contrast.

One file an objective: `load_objective("inpaint_rotate_contrast")` is the paper's. Every random draw here is a
pure function of the crops' seeds (`core.rng`), so a crop is augmented alike on any device, in any batch, on
any number of workers, and after any resume.

Shape legend: N crops, C channels, D H W spatial axes, K cutout blocks, G groups of n crops each, d features.
"""

from brainfoundry.pretext.base import Objective, load_objective

__all__ = ["Objective", "load_objective"]
