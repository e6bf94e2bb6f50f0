"""Cutout: the released code's statistics, its order of writing, and its dependence on seeds alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64
from brainfoundry.pretext import cutout
from brainfoundry.pretext.cutout import (
    Blocks,
    CutoutSpec,
    blocks_to_draw,
    covered,
    cut_out,
    draw_blocks,
    draw_lenders,
    last_block,
    noise_pass,
)
from tests.pretext import released_cutout

SPEC = CutoutSpec()
NOISE, PASTE = cutout._NOISE_PASS, cutout._PASTE_PASS
SIDE = 40
CROP = (SIDE, SIDE, SIDE)


def seeds(count: int, of: int = 0) -> torch.Tensor:
    return torch.from_numpy(hash64(of, np.arange(count)).view(np.int64))


def corners(blocks: Blocks, crop: int) -> list[tuple[slice, ...]]:
    """The kept blocks of one crop, in order."""
    return [
        tuple(slice(int(a), int(b)) for a, b in zip(lo, hi, strict=True))
        for lo, hi, keep in zip(blocks.lo_NK3[crop], blocks.hi_NK3[crop], blocks.keep_NK[crop], strict=True)
        if keep
    ]


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two samples."""
    at = np.concatenate([first, second])
    ranks = [np.searchsorted(np.sort(s), at, side="right") / len(s) for s in (first, second)]
    return float(np.abs(ranks[0] - ranks[1]).max())


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(20, 24, 28), (64, 32, 32)])
def test_masks_equal_writing_the_blocks_one_by_one(crop: tuple[int, int, int]) -> None:
    blocks = draw_blocks(seeds(4), NOISE, crop, SPEC)
    assert blocks.keep_NK.shape[1] > 2 * cutout._BITS  # several words are joined
    expected = torch.full((4, *crop), -1)
    for i in range(4):
        for number, block in enumerate(corners(blocks, i)):
            expected[i][block] = number
    assert expected.max() > cutout._BITS
    assert torch.equal(last_block(blocks, crop), expected)
    assert torch.equal(covered(blocks, crop), expected >= 0)


def test_parts_of_a_batch_are_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(6, 1, 20, 20, 20)
    whole = cut_out(x, seeds(6), 3, SPEC)
    monkeypatch.setattr(cutout, "_VOXELS_AT_ONCE", 2 * 20**3)
    assert torch.equal(cut_out(x, seeds(6), 3, SPEC), whole)


def test_blocks_stop_with_the_one_that_reaches_the_budget() -> None:
    blocks = draw_blocks(seeds(300), NOISE, CROP, SPEC)
    budget = 0.3 * SIDE**3
    volume = (blocks.hi_NK3 - blocks.lo_NK3).prod(dim=2)
    assert torch.equal(volume, blocks.volume_NK)
    kept = (volume * blocks.keep_NK).sum(dim=1)
    count = blocks.keep_NK.sum(dim=1)
    # Kept blocks come first, and without the last of them the largest budget is not yet reached.
    assert torch.equal(blocks.keep_NK, torch.arange(volume.shape[1]) < count[:, None])
    last = volume.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    assert (kept - last < budget).all()
    # Every draw had enough blocks for the largest budget.
    assert (volume.sum(dim=1) > budget).all()


@pytest.mark.parametrize("crop", [(20, 20, 20), (64, 32, 32), (96, 96, 96)])
def test_enough_blocks_are_drawn_and_not_many_more(crop: tuple[int, int, int]) -> None:
    blocks = draw_blocks(seeds(2000, of=1), PASTE, crop, SPEC)
    volume = blocks.volume_NK.sum(dim=1)
    assert (volume >= SPEC.max_drop * math.prod(crop)).all()
    assert blocks_to_draw(crop, SPEC) < 300


def test_block_corners_follow_the_released_distribution() -> None:
    blocks = draw_blocks(seeds(400), NOISE, (96, 96, 96), SPEC)
    size = blocks.hi_NK3 - blocks.lo_NK3
    assert int(blocks.lo_NK3.min()) == 0 and int(blocks.lo_NK3.max()) == 91
    assert int(blocks.hi_NK3.max()) == 96
    assert int(size.min()) == 4 and int(size.max()) == 23
    # Sizes are uniform on 4..23 where the border does not clip them, starts on 0..91.
    free = blocks.lo_NK3 <= 96 - 23
    for axis in range(3):
        counts = torch.bincount(size[..., axis][free[..., axis]], minlength=24)[4:].double()
        assert float((counts / counts.mean() - 1).abs().max()) < 0.12
        starts = torch.bincount(blocks.lo_NK3[..., axis].flatten(), minlength=92).double()
        assert float((starts / starts.mean() - 1).abs().max()) < 0.2
    # Axes, and blocks, are drawn independently.
    sample = blocks.lo_NK3[:, :2].reshape(400, 6).T.double()
    off_diagonal = torch.corrcoef(sample) - torch.eye(6)
    assert float(off_diagonal.abs().max()) < 0.2


# --- statistics, against the released algorithm ----------------------------------------------------------


@pytest.fixture(scope="module")
def altered() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Share of altered voxels of 240 crops, released and ours: after the noise pass, and after both."""
    draw = np.random.default_rng(0)
    groups, n = 60, 4
    # Crops lie outside [0, 1], and no two voxels of a group are alike, so that every write shows.
    released_noise, released_both = [], []
    crops = np.arange(2, 2 + n * SIDE**3, dtype=np.float32).reshape(n, 1, *CROP)
    for _ in range(groups):
        noised = crops[0].copy()
        released_cutout.cut(noised, draw, None)
        released_noise.append((noised != crops[0]).mean())
        both = released_cutout.augment(crops, draw)
        released_both += list((both != crops).reshape(n, -1).mean(axis=1))
    for _ in range(groups * (n - 1)):
        noised = crops[0].copy()
        released_cutout.cut(noised, draw, None)
        released_noise.append((noised != crops[0]).mean())
    x = torch.from_numpy(crops)
    ours_noise, ours_both = [], []
    for batch in seeds(groups * n).split(n):
        ours_noise += [float(v) for v in (noise_pass(x, batch, SPEC) != x).flatten(1).double().mean(1)]
        ours_both += [float(v) for v in (cut_out(x, batch, n, SPEC) != x).flatten(1).double().mean(1)]
    return {
        "noise": (np.array(released_noise), np.array(ours_noise)),
        "both": (np.array(released_both), np.array(ours_both)),
    }


@pytest.mark.parametrize("which", ["noise", "both"])
def test_share_of_altered_voxels_is_distributed_as_released(
    altered: dict[str, tuple[np.ndarray, np.ndarray]], which: str
) -> None:
    released, ours = altered[which]
    assert len(released) == len(ours) == 240
    # At 240 a side, equal distributions keep below 0.15 in 99 of 100 cases; a budget up to 0.25 gives 0.17.
    assert largest_gap(released, ours) < 0.15
    assert abs(released.mean() - ours.mean()) < 0.017
    assert abs(released.std() - ours.std()) < 0.012


def test_golden_shares_at_the_papers_crop() -> None:
    # Measured on the released code at 96^3, groups of 4: the noise pass alters 14.1 % of voxels on average
    # (0.4 to 25.5), both passes 22.5 % (43.6 at most).
    crop = (96, 96, 96)
    noise_share, both_share, pasted = [], [], []
    for batch in seeds(120, of=2).split(4):
        noise = covered(draw_blocks(batch, NOISE, crop, SPEC), crop).flatten(1)
        paste = covered(draw_blocks(batch, PASTE, crop, SPEC), crop).flatten(1)
        others = draw_lenders(batch, 4) != torch.arange(4)
        noise_share.append(noise.double().mean(1))
        both_share.append((noise | (paste & others[:, None])).double().mean(1))
        pasted.append(others)
    first, both = torch.cat(noise_share), torch.cat(both_share)
    assert float(first.mean()) == pytest.approx(0.141, abs=0.02)
    assert float(first.min()) < 0.02 and 0.2 < float(first.max()) < 0.29
    assert float(both.mean()) == pytest.approx(0.225, abs=0.03)
    assert 0.35 < float(both.max()) < 0.5
    assert 0.65 < float(torch.cat(pasted).double().mean()) < 0.85


def test_noise_within_a_block_is_distributed_as_released() -> None:
    draw = np.random.default_rng(1)
    bins = [(0, 100), (100, 300), (300, 10**6)]
    released: list[list[np.ndarray]] = [[] for _ in bins]
    ours: list[list[np.ndarray]] = [[] for _ in bins]

    def summary(block: np.ndarray) -> np.ndarray:
        return np.array([block.mean(), block.std(), block.min(), block.max(), np.quantile(block, 0.9)])

    def put(into: list[list[np.ndarray]], block: np.ndarray) -> None:
        for (low, high), found in zip(bins, into, strict=True):
            if low <= block[0].size < high:
                found.append(summary(block))

    channels = 2
    for _ in range(60):
        crop = np.full((channels, *CROP), 2.0)
        blocks = released_cutout.cut(crop, draw, None)
        for block in blocks[-8:]:  # mostly not overwritten
            put(released, crop[(slice(None), *block)])
    x = torch.full((4, channels, *CROP), 2.0)
    for batch in seeds(60, of=3).split(4):
        noised = noise_pass(x, batch, SPEC).numpy()
        drawn = draw_blocks(batch, NOISE, CROP, SPEC)
        for i in range(4):
            for block in corners(drawn, i)[-8:]:
                put(ours, noised[i][(slice(None), *block)])
    for theirs, mine in zip(released, ours, strict=True):
        a, b = np.array(theirs), np.array(mine)
        assert min(len(a), len(b)) > 60
        # Mean, standard deviation (the reciprocal of the range), extremes, upper decile, over the blocks.
        np.testing.assert_allclose(b.mean(axis=0), a.mean(axis=0), atol=0.012)
        # And their spread from block to block, which a range shared by all blocks would not have.
        np.testing.assert_allclose(b.std(axis=0)[:2], a.std(axis=0)[:2], rtol=0.35)
        assert b[:, 2].min() >= 0 and b[:, 3].max() <= 1


def test_noise_fills_whole_blocks_in_all_channels_and_nothing_else() -> None:
    x = torch.full((2, 3, *CROP), 5.0)
    noised = noise_pass(x, seeds(2, of=4), SPEC)
    mask = covered(draw_blocks(seeds(2, of=4), NOISE, CROP, SPEC), CROP)[:, None].expand_as(x)
    assert torch.equal(noised != x, mask)
    # Channels get their own noise.
    a, b = noised[0, 0][mask[0, 0]], noised[0, 1][mask[0, 0]]
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.5
    assert not torch.equal(a, b)


# --- pasting ----------------------------------------------------------------------------------------------


def test_pasting_takes_earlier_crops_augmented_and_later_ones_untouched() -> None:
    n = 4
    x = torch.rand(2 * n, 2, *CROP) + 2
    batch = seeds(2 * n, of=5)
    noised = noise_pass(x, batch, SPEC)
    drawn = draw_blocks(batch, PASTE, CROP, SPEC)
    lenders = draw_lenders(batch, n).tolist()
    # The released loop, crop by crop and block by block, with our draws.
    expected = x.clone()
    for group in range(2):
        for slot in range(n):
            i, lender = group * n + slot, group * n + lenders[group * n + slot]
            expected[i] = noised[i]
            if lender != i:
                for block in corners(drawn, i):
                    expected[(i, slice(None), *block)] = expected[(lender, slice(None), *block)]
    assert {lender < i % n for i, lender in enumerate(lenders) if lender != i % n} == {True, False}
    assert torch.equal(cut_out(x, batch, n, SPEC), expected)


def test_lenders_are_uniform() -> None:
    lenders = draw_lenders(seeds(4000), 4)
    assert ((torch.bincount(lenders, minlength=4) - 1000).abs() < 110).all()
    assert int(draw_lenders(seeds(1000), 3).max()) == 2


def test_a_crop_alone_in_its_group_gets_noise_only() -> None:
    x = torch.rand(2, 1, *CROP) + 2
    batch = seeds(2)
    assert torch.equal(cut_out(x, batch, 1, SPEC), noise_pass(x, batch, SPEC))


def test_groups_come_out_the_same_whatever_else_is_in_the_batch() -> None:
    x, batch = torch.rand(8, 1, 20, 24, 24), seeds(8)
    whole = cut_out(x, batch, 4, SPEC)
    parts = [cut_out(x[i : i + 4], batch[i : i + 4], 4, SPEC) for i in (0, 4)]
    assert torch.equal(whole, torch.cat(parts))
    swapped = cut_out(x.roll(4, 0), batch.roll(4), 4, SPEC)
    assert torch.equal(swapped.roll(4, 0), whole)


def test_the_input_is_left_as_it_was_and_other_seeds_cut_elsewhere() -> None:
    x = torch.rand(4, 1, 20, 20, 20)
    before = x.clone()
    first, second = cut_out(x, seeds(4), 4, SPEC), cut_out(x, seeds(4, of=9), 4, SPEC)
    assert torch.equal(x, before)
    assert not torch.equal(first, second)


# --- bad input --------------------------------------------------------------------------------------------


def test_a_budget_of_nothing_cuts_nothing() -> None:
    x = torch.rand(4, 1, 20, 20, 20)
    assert torch.equal(cut_out(x, seeds(4), 4, CutoutSpec(max_drop=0.0)), x)


def test_small_crops_are_refused_with_the_least_side() -> None:
    with pytest.raises(ConfigError, match=r"crop side 19 is too small.*Fix: use sides of at least 20 voxels"):
        SPEC.check_crop((32, 19, 32))
    SPEC.check_crop((20, 20, 20))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_drop": 1.5}, "max_drop is 1.5"),
        ({"tolerance": 0.3}, "tolerance is 0.3 and max_block is 0.25"),
        ({"tolerance": 0.0}, "0 < tolerance < max_block"),
    ],
)
def test_impossible_parameters_are_refused(fields: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CutoutSpec(**fields)


def test_broken_groups_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="6 crops are not whole groups of 4"):
        cut_out(torch.zeros(6, 1, 20, 20, 20), seeds(6), 4, SPEC)
