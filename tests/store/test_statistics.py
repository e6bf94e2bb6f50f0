"""Statistics against NumPy on the plain list of values."""

from __future__ import annotations

import numpy as np
import pytest

from brainfoundry.store.statistics import statistics


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize(("slope", "inter", "zero"), [(1.0, 0.0, 0), (0.25, -3.0, 12), (-2.0, 8.0, 4)])
def test_they_are_numpys(dtype: str, slope: float, inter: float, zero: int) -> None:
    codes = np.random.default_rng(1).integers(-50, 60, (7, 8, 9)).astype(dtype)
    values = codes[codes != zero].astype(float) * slope + inter
    found = statistics(codes, zero, slope, inter)
    expected = (
        values.mean(),
        values.std(),
        values.min(),
        values.max(),
        *np.percentile(values, [0.5, 1, 99, 99.5]),
    )
    got = (found.mean, found.sd, found.min, found.max, found.p0_5, found.p1, found.p99, found.p99_5)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert found.nonzero == values.size


def test_nothing_but_background_has_none() -> None:
    with pytest.raises(ValueError, match="background"):
        statistics(np.full((2, 2, 2), 5, np.int16), 5, 1.0, 0.0)
