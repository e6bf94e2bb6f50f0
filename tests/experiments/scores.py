"""Scores such as those of real models, at random: skewed, with failures, and differences of two such arms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dice:
    """Dice of a model: Beta(a, b), and a share of subjects who fail, Beta(c, d)."""

    a: float
    b: float
    failed: float = 0.0
    c: float = 1.0
    d: float = 60.0  # with c: nearly all of the lesion is missed

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        fails = rng.random(size) < self.failed
        return np.where(fails, rng.beta(self.c, self.d, size), rng.beta(self.a, self.b, size))

    @property
    def mean(self) -> float:
        good = self.a / (self.a + self.b)
        return self.failed * self.c / (self.c + self.d) + (1 - self.failed) * good


@dataclass(frozen=True)
class Difference:
    """Dice of one arm minus another: heavy tails, and a share of subjects whom only one of them fails."""

    failed: float = 0.0
    gain: float = 0.01

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        usual = self.gain + 0.028 * rng.standard_t(4, size)
        sign = np.where(rng.random(size) < 0.65, 1, -1)
        return np.where(rng.random(size) < self.failed, sign * rng.beta(4, 2, size), usual)

    @property
    def mean(self) -> float:
        return self.failed * (2 * 0.65 - 1) * 4 / 6 + (1 - self.failed) * self.gain


def coverage(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    """Per cent of the intervals that hold the truth."""
    return 100 * float(((low <= truth) & (truth <= high)).mean())
