"""Made-up gliomas: labels, contrast per modality, graded borders, mass effect, and how hard they are."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from brainfoundry.cohorts.phantom import HEALTHY, Anatomy, Lesions, Swelling, make_anatomy, render
from brainfoundry.cohorts.tumours import BRATS, ENHANCING, NECROSIS, OEDEMA, Tumour, make_case

STEP = 2  # an eighth of the voxels
SEED = 2024


@functools.cache
def case(index: int, enhancing: bool = True) -> tuple[Anatomy, Lesions]:
    return make_case(SEED, index, 50.0 + index, enhancing=enhancing, step=STEP)


@functools.cache
def image(index: int, modality: str, enhancing: bool = True) -> np.ndarray:
    anatomy, lesions = case(index, enhancing)
    return render(anatomy, BRATS, modality, SEED, index, lesions=lesions)


def test_labels_and_volumes() -> None:
    for index in range(3):
        anatomy, lesions = case(index)
        values = set(np.unique(lesions.label.numpy()))
        assert values == {0, NECROSIS, OEDEMA, ENHANCING} and lesions.label.dtype == torch.uint8
        assert not lesions.label[~anatomy.brain].any()
        tumour = Tumour.of(SEED, index, enhancing=True)
        voxel_ml = STEP**3 / 1000
        whole = int((lesions.label > 0).sum()) * voxel_ml
        core = int(((lesions.label > 0) & (lesions.label != OEDEMA)).sum()) * voxel_ml
        assert whole == pytest.approx(tumour.whole_ml, abs=0.02)
        assert core == pytest.approx(tumour.core_ml, abs=0.02)
        assert 2.0 <= tumour.core_ml <= 80.0 and tumour.core_ml < tumour.whole_ml <= 200.0


def test_without_enhancing_part() -> None:
    anatomy, lesions = case(3, False)
    assert set(np.unique(lesions.label.numpy())) == {0, NECROSIS, OEDEMA}
    white = (anatomy.white > 0.95) & (lesions.label == 0)
    core = lesions.label == NECROSIS
    t1ce = image(3, "T1ce", False)
    assert np.median(t1ce[core]) < np.median(t1ce[white])
    # The same subject with one: the same brain and place, other labels.
    other = case(3, True)[1].label
    assert ENHANCING in other and torch.equal(other > 0, lesions.label > 0)


def test_pure_function_of_seed_and_index() -> None:
    anatomy, lesions = make_case(SEED, 0, 50.0, step=STEP)
    assert torch.equal(lesions.label, case(0)[1].label) and torch.equal(anatomy.white, case(0)[0].white)
    other = make_case(SEED + 1, 0, 50.0, step=STEP)[1]
    assert not torch.equal(lesions.label, other.label)
    places = {Tumour.of(SEED, i, enhancing=True).centre for i in range(50)}
    assert len(places) == 50


def relative(index: int, modality: str, label: int) -> float:
    """Median of a class, relative to healthy white matter of the same image."""
    anatomy, lesions = case(index)
    values = image(index, modality)
    white = (anatomy.white > 0.95) & (lesions.label == 0)
    return float(np.median(values[lesions.label.numpy() == label]) / np.median(values[white.numpy()]))


@pytest.mark.parametrize("index", range(3))
def test_contrast_of_each_modality(index) -> None:
    # Gadolinium: the shell is bright on T1ce alone; dead tissue stays dark there.
    assert relative(index, "T1ce", ENHANCING) > 1.2 > 1.0 > relative(index, "T1w", ENHANCING)
    assert relative(index, "T1ce", NECROSIS) < 0.85
    # Water: bright on T2w and FLAIR, darker on T1w. Cortex in it keeps its own signal, hence the margins.
    assert relative(index, "FLAIR", OEDEMA) > 1.3 and relative(index, "T2w", OEDEMA) > 1.3
    assert relative(index, "T1w", OEDEMA) < 0.95 and relative(index, "T2w", NECROSIS) > 1.5


def test_oedema_fades_past_its_label() -> None:
    anatomy, lesions = case(2)
    oedema = next(p for p in lesions.parts if p.intensity["FLAIR"] > 1.0 and p.weight.shape != anatomy.shape)
    marked = lesions.label[oedema.box] > 0
    white = anatomy.white[oedema.box] > 0.9
    grown = torch.nn.functional.max_pool3d(marked[None, None].float(), 5, stride=1, padding=2)[0, 0] > 0
    shrunk = torch.nn.functional.max_pool3d((~marked)[None, None].float(), 5, stride=1, padding=2)[0, 0] == 0
    inner, outer = white & shrunk, white & grown & ~marked
    border = white & marked & ~shrunk
    means = [float(oedema.weight[mask].mean()) for mask in (inner, border, outer)]
    assert means[0] > means[1] > means[2] > 0.05
    far = white & ~grown
    assert float(oedema.weight[far].mean()) < means[2] / 2


def test_the_border_is_ragged() -> None:
    # Six-neighbour surface of the whole tumour, against a ball's of the same volume.
    for index in range(3):
        mask = case(index)[1].label.numpy() > 0
        surface = sum(np.count_nonzero(np.diff(mask, axis=axis)) for axis in range(3))
        ball = 1.5 * (36 * np.pi) ** (1 / 3) * np.count_nonzero(mask) ** (2 / 3)
        assert surface > 1.3 * ball


def test_mass_effect_moves_what_is_near_and_nothing_else() -> None:
    centre = (60.0, 110.0, 100.0)
    free = make_anatomy(BRATS, SEED, 0, 50.0, step=STEP)
    pushed = make_anatomy(
        BRATS, SEED, 0, 50.0, step=STEP, swellings=(Swelling(centre=centre, sigma_mm=15.0, growth=0.35),)
    )
    axes = torch.meshgrid(*[torch.arange(n) * STEP for n in free.shape], indexing="ij")
    away = torch.stack([(a - c) ** 2 for a, c in zip(axes, centre, strict=True)]).sum(0).sqrt()
    change = (free.white - pushed.white).abs()
    assert float(change[(away < 25) & (away > 5)].mean()) > 0.05
    assert float(change[away > 70].max()) < 0.01


def test_ranges_are_not_the_healthy_cohorts() -> None:
    for modality, healthy in HEALTHY.contrasts.items():
        ours = BRATS.contrasts[modality]
        for tissue in ("grey", "fluid"):
            (a, b), (c, d) = getattr(ours, tissue), getattr(healthy, tissue)
            assert b <= c or d <= a, f"{modality} {tissue} overlaps"
        assert ours.bias != healthy.bias and ours.noise != healthy.noise and ours.white != healthy.white


def whole_tumour_dice(index: int, thresholds: np.ndarray) -> list[float]:
    values, mask = image(index, "FLAIR"), case(index)[1].label.numpy() > 0
    values = values / np.median(values[values > 0])
    return [2 * np.count_nonzero((values > t) & mask) / ((values > t).sum() + mask.sum()) for t in thresholds]


def test_a_flair_threshold_neither_solves_nor_misses_it() -> None:
    thresholds = np.arange(0.8, 2.6, 0.05)
    dice = np.array([whole_tumour_dice(index, thresholds) for index in range(7)])
    best = int(dice[:4].mean(0).argmax())
    assert 0 < best < len(thresholds) - 1
    assert 0.3 < dice[4:, best].mean() < 0.75
