"""Crop sizes: what is taken, what is refused, and that the sizes a refusal proposes are taken."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core.errors import ConfigError
from brainfoundry.models import SIZES, check_crop


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_pretrained_with_its_own_crop(size: str) -> None:
    assert check_crop(SIZES[size].crop, min_tokens=2, square=True) == SIZES[size].crop


@pytest.mark.parametrize(
    ("crop", "says"),
    [
        (
            (32, 32, 32),
            "leaves 1 bottleneck token where the network needs 2. Fix: the nearest valid sizes are 64x32x32",
        ),
        ((90, 96, 96), "multiple of 32 voxels. Fix: the nearest valid sizes are 96x96x96"),
        ((96, 64, 96), "last two sides must be equal"),
        ((0, 96, 96), "multiple of 32"),
        ((96, 96), "is not three whole numbers"),
        ((96, 96, 96.0), "is not three whole numbers"),
    ],
)
def test_bad_crops_are_refused(crop: tuple[int, ...], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_crop(crop, min_tokens=2, square=True)
    assert says in str(caught.value)


def test_without_heads_or_rotation_more_is_allowed() -> None:
    assert check_crop((32, 32, 32)) == (32, 32, 32)
    assert check_crop([64, 32, 96], min_tokens=2) == (64, 32, 96)


@given(st.tuples(*[st.integers(-5, 300)] * 3), st.sampled_from([1, 2, 3]), st.booleans())
def test_proposed_sizes_are_valid(crop: tuple[int, int, int], tokens: int, square: bool) -> None:
    try:
        assert check_crop(crop, min_tokens=tokens, square=square) == crop
    except ConfigError as error:
        proposed = re.findall(r"(\d+)x(\d+)x(\d+)", str(error.fix))
        assert proposed
        for sides in proposed:
            check_crop([int(side) for side in sides], min_tokens=tokens, square=square)
