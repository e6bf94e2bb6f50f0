"""The promises of each coding, over all dtypes, ranges and scalings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brainfoundry.store import coding

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def restore(c: coding.Coding, dtype: np.dtype) -> np.ndarray:
    raw = coding.decode(c.codes, c.kind, c.raw_step, c.raw_base, dtype)
    raw.reshape(-1)[c.fixup_index] = c.fixup_raw
    return raw


def numbers(dtype: str) -> st.SearchStrategy[np.ndarray]:
    kind = np.dtype(dtype)
    wide: st.SearchStrategy = (
        st.floats(-(2.0**100), 2.0**100, width=kind.itemsize * 8)
        if kind.kind == "f"
        else st.integers(np.iinfo(kind).min, np.iinfo(kind).max)
    )
    small = (
        st.integers(0, 100).map(kind.type)
        if kind.kind != "f"
        else st.floats(-3, 900, width=kind.itemsize * 8)
    )
    return hnp.arrays(kind, (3, 4, 2), elements=st.one_of(wide, small, st.just(0)))


def assert_promise(raw: np.ndarray, c: coding.Coding) -> None:
    back = restore(c, raw.dtype)
    if c.kind == "affine":
        exact = [abs(int(a) - int(b)) if raw.dtype.kind in "iu" else abs(float(a) - float(b))
                 for a, b in zip(back.ravel(), raw.ravel(), strict=True)]  # fmt: skip
        span = (
            int(raw.max()) - int(raw.min()) if raw.dtype.kind in "iu" else float(raw.max()) - float(raw.min())
        )
        assert max(exact) <= span / 131_070
        assert c.max_error <= c.error_bound == pytest.approx(span / 131_070, rel=1e-12)
    else:
        bits = f"u{raw.itemsize}"
        assert (back.view(bits) == raw.view(bits)).all()
        assert c.max_error == c.error_bound == 0


@settings(max_examples=250, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), mode=st.sampled_from(["quantize", "lossless"]))
def test_every_volume_keeps_its_promise(data: st.DataObject, dtype: str, mode: coding.FloatMode) -> None:
    raw = data.draw(numbers(dtype))
    slope = data.draw(st.sampled_from([1.0, 0.3630, -2.0, 13.8952]))
    inter = data.draw(st.sampled_from([0.0, -1024.0, 0.5]))
    c = coding.encode(raw, slope, inter, mode)
    assert c.codes.dtype == (np.float32 if c.kind == "float32" else np.int16)
    assert mode == "quantize" or c.kind in ("integer", "float32")
    assert_promise(raw, c)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int8"])
def test_sixteen_bit_integers_are_exact_over_their_whole_range(dtype: str) -> None:
    info = np.iinfo(dtype)
    raw = np.arange(info.min, info.max + 1).astype(dtype).reshape(2, 4, -1)
    c = coding.encode(raw, 1.0, 0.0, "quantize")
    assert c.kind == "integer" and c.fixup_index.size == 0
    assert (restore(c, raw.dtype) == raw).all()
    assert (c.codes * c.slope + c.inter == raw).all()


def test_integers_are_shifted_to_keep_zero_among_the_codes() -> None:
    raw = np.array([[[0, 40_000, 65_000]]], np.int32)
    c = coding.encode(raw, 1.0, 0.0, "quantize")
    assert c.kind == "integer" and c.codes[0, 0, 0] == c.zero_code == -32_768 and c.inter == 32_768
    high = coding.encode(raw + 1_000_000, 1.0, 0.0, "quantize")  # zero out of reach: the nearest code
    assert high.zero_code == -32_768 and (restore(high, raw.dtype) == raw + 1_000_000).all()


def test_value_zero_is_exactly_zero_after_quantisation() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(100, 80, (8, 8, 8)).astype(np.float32)
    raw[2:5] = 0
    c = coding.encode(raw, 1.0, 0.0, "quantize")
    assert c.kind == "affine" and raw.min() < 0
    assert (c.codes[2:5] == c.zero_code).all() and c.zero_code * c.slope + c.inter == 0.0
    assert np.abs(c.codes * c.slope + c.inter - raw).max() <= (float(raw.max()) - float(raw.min())) / 131_070
    assert c.fixup_index.size < raw.size // 50


def test_floats_that_are_whole_numbers_are_kept_as_integers() -> None:
    raw = np.arange(-20, 20, dtype=np.float64).reshape(2, 4, 5)
    c = coding.encode(raw, 1.0, 0.0, "lossless")
    assert c.kind == "integer" and c.codes.dtype == np.int16
    assert_promise(raw, c)


def test_minus_zero_and_float64_come_back_bit_for_bit() -> None:
    raw = np.array([[[0.1, -0.0, 0.0, 1 / 3, 2.5]]])
    c = coding.encode(raw, 1.0, 0.0, "lossless")
    assert c.kind == "float32" and c.fixup_index.tolist() == [0, 3]  # 2.5 and both zeros are float32
    assert_promise(raw, c)


def test_a_float_volume_of_one_value_is_exact() -> None:
    raw = np.full((2, 2, 2), -0.1, np.float32)
    c = coding.encode(raw, 1.0, 0.0, "quantize")
    assert c.kind == "constant" and (c.codes == -1).all() and c.zero_code == 0
    assert_promise(raw, c)


def test_numbers_that_float32_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="too large for float32"):
        coding.encode(np.array([[[1e300, 0.5]]]), 1.0, 0.0, "lossless")
