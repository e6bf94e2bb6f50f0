"""The metrics once more, slowly and from their definitions alone: no SciPy, nothing of the package."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

Voxel = tuple[int, ...]
STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
NEIGHBOURS = {n: [s for s in STEPS if sum(map(abs, s)) <= far] for n, far in ((6, 1), (18, 2), (26, 3))}

shapes = st.tuples(*[st.integers(1, 6)] * 3)
spacings = st.tuples(*[st.sampled_from((0.5, 1.0, 1.2, 3.0))] * 3)


@st.composite
def mask_pairs(draw: st.DrawFn, *, count: int = 2) -> tuple[np.ndarray, ...]:
    """Masks of one small shape, from empty to full."""
    shape, rng = draw(shapes), np.random.default_rng(draw(st.integers(0, 2**32)))
    shares = [draw(st.sampled_from((0.0, 0.03, 0.1, 0.3, 0.7, 1.0))) for _ in range(count)]
    return tuple(rng.random(shape) < share for share in shares)


def voxels(mask: np.ndarray) -> set[Voxel]:
    return {tuple(map(int, at)) for at in np.argwhere(mask)}


def moved(voxel: Voxel, step: Voxel) -> Voxel:
    return tuple(v + s for v, s in zip(voxel, step, strict=True))


def flood(mask: np.ndarray | set[Voxel], connectivity: int) -> list[set[Voxel]]:
    """Connected components, by walking."""
    left = set(mask) if isinstance(mask, set) else voxels(mask)
    found = []
    while left:
        component, edge = set(), [left.pop()]
        while edge:
            here = edge.pop()
            component.add(here)
            for there in (moved(here, step) for step in NEIGHBOURS[connectivity]):
                if there in left:
                    left.remove(there)
                    edge.append(there)
        found.append(component)
    return found


def dice(a: set[Voxel], b: set[Voxel]) -> float:
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def hd95(a: set[Voxel], b: set[Voxel], spacing: tuple[float, ...]) -> float:
    if not a or not b:
        return 0.0 if not a and not b else 374.0
    return max(percentile(nearest(a, b, spacing)), percentile(nearest(b, a, spacing)))


def nearest(a: set[Voxel], b: set[Voxel], spacing: tuple[float, ...]) -> list[float]:
    def mm(voxel: Voxel) -> list[float]:
        return [v * s for v, s in zip(voxel, spacing, strict=True)]

    return [min(math.dist(mm(v), mm(w)) for w in surface(b)) for v in surface(a)]


def surface(a: set[Voxel]) -> set[Voxel]:
    return {v for v in a if any(moved(v, step) not in a for step in NEIGHBOURS[6])}


def percentile(values: list[float], share: float = 0.95) -> float:
    values = sorted(values)
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def lesion_f1(truth: np.ndarray, prediction: np.ndarray) -> float:
    t, p = voxels(truth), voxels(prediction)
    if not t and not p:
        return 1.0
    hits = [bool(lesion & p) for lesion in flood(truth, 6)]
    false = [lesion for lesion in flood(prediction, 6) if not lesion & t]
    return sum(hits) / (sum(hits) + (len(false) + hits.count(False)) / 2)


def dilated(a: set[Voxel], times: int, shape: tuple[int, ...]) -> set[Voxel]:
    for _ in range(times):
        a = a | {moved(v, step) for v in a for step in NEIGHBOURS[18]}
    return {v for v in a if all(0 <= x < n for x, n in zip(v, shape, strict=True))}


def lesionwise(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], dilations: int, smallest: float
) -> tuple[float, float, int, int]:
    """Dice, HD95, scored lesions, false lesions."""
    t, predicted = voxels(truth), flood(prediction, 26)
    lesions = [grown & t for grown in flood(dilated(t, dilations, truth.shape), 26)]
    scores, false = [], list(predicted)
    for lesion in lesions:
        own = [p for p in predicted if p & dilated(lesion, dilations, truth.shape)]
        false = [p for p in false if p not in own]
        if len(lesion) * math.prod(spacing) > smallest:
            match = set().union(*own)
            scores.append((dice(lesion, match), hd95(lesion, match, spacing)))
    every = scores + [(0.0, 374.0)] * len(false)
    if not every:
        return 1.0, 0.0, 0, 0
    dices, distances = zip(*every, strict=True)
    return sum(dices) / len(every), sum(distances) / len(every), len(scores), len(false)
