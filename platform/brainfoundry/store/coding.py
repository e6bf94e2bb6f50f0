"""Voxels as codes: which 16-bit integers or floats stand for a file's numbers, and what that promises.

Raw numbers are those in the file before scl_slope and scl_inter. `raw = code * raw_step + raw_base` and
`value = raw * scl_slope + scl_inter`, so `value = code * slope + inter`. Five codings:

integer   raw numbers are integers in a range of 65,536: code = raw - constant, bit-exact.
affine    everything else in float mode "quantize": 65,536 levels over [min, max] with a level at value 0;
          every restored voxel is within (max - min) / 131,070 of the source.
float32   float mode "lossless": raw numbers as float32, restored bit for bit.
constant  one raw number throughout (its value not 0): code 1 times that number, bit-exact.
labels    lesion masks: code = label, whatever numbers the file writes it with; bit-exact through fixups.

Restored files must keep the promise in their own dtype. The few voxels for which rounding to it would not
(ties, float64 that is not float32, minus zero in the background) are kept aside as *fixups*: where, and what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from brainfoundry.store.meta import FloatMode

LEVELS = 65_535
"""Steps between the smallest and the largest int16."""
_LO, _HI = -32_768, 32_767

Kind = Literal["integer", "affine", "float32", "constant", "labels"]


@dataclass(frozen=True, kw_only=True)
class Coding:
    """The codes of a volume and how to undo them.

    Args:
        codes: int16 or float32, of the raw array's shape.
        zero_code: the code of value 0, or the nearest there is where 0 has none.
        error_bound: largest |restored - raw| promised (0: bit-exact).
        max_error: largest |restored - raw| found.
        fixup_index: flat C-order indices, ascending int64.
        fixup_raw: the raw numbers there, in the raw dtype.
    """

    kind: Kind
    codes: np.ndarray
    zero_code: float
    raw_step: float
    raw_base: float
    slope: float
    inter: float
    error_bound: float
    max_error: float
    fixup_index: np.ndarray
    fixup_raw: np.ndarray


def encode(raw: np.ndarray, scl_slope: float, scl_inter: float, float_mode: FloatMode) -> Coding:
    """Choose the coding of finite raw numbers (native byte order, any integer or float dtype) and apply it.

    Raises:
        ValueError: the numbers cannot be held as float32 (float mode "lossless").
    """
    lo, hi = raw.min(), raw.max()
    with np.errstate(all="ignore"):
        raw_zero = float(np.float64(-scl_inter) / np.float64(scl_slope)) + 0.0
    whole = raw.dtype.kind in "iu" or _is_whole(raw, lo, hi)
    if whole and int(hi) - int(lo) <= LEVELS:
        kind, codes, zero, step, base = _integer(raw, int(lo), int(hi), raw_zero)
    elif float_mode == "lossless":
        kind, codes, zero, step, base = _float32(raw, raw_zero)
    elif lo == hi:
        sign = math.copysign(1, float(lo))
        codes = np.full(raw.shape, sign, np.int16)
        kind, zero, step, base = "constant", 0.0, abs(float(lo)), 0.0
    else:
        kind, codes, zero, step, base = _affine(raw, float(lo), float(hi), raw_zero)
    bound = (float(hi) - float(lo)) / (2 * LEVELS) if kind == "affine" else 0.0
    index, worst = _find_fixups(codes, raw, kind, step, base, bound)
    slope = step * scl_slope
    aligned = kind == "affine" and float(lo) <= raw_zero <= float(hi)
    return Coding(
        kind=kind,
        codes=codes,
        zero_code=zero,
        raw_step=step,
        raw_base=base,
        slope=slope,
        inter=-(zero * slope)
        if aligned
        else base * scl_slope + scl_inter,  # the former is exactly 0 at zero_code
        error_bound=bound,
        max_error=worst,
        fixup_index=index,
        fixup_raw=raw.ravel()[index],
    )


def encode_labels(raw: np.ndarray, scl_slope: float, scl_inter: float, labels: np.ndarray) -> Coding:
    """The coding of a lesion mask: codes are its labels, and the file's numbers come back bit for bit.

    Args:
        raw: the file's numbers.
        labels: uint8 of `raw`'s shape: what `raw * scl_slope + scl_inter` means (0.99999997 is label 1).
    """
    codes = labels.astype(np.int16)
    step, base = 1.0 / scl_slope, -scl_inter / scl_slope
    if raw.dtype.kind in "iu" and (step, base) == (1.0, 0.0):
        index = np.empty(0, np.int64)  # cleaning whole numbers changes none of them
    else:
        index, _ = _find_fixups(codes, raw, "labels", step, base, 0.0)
    return Coding(
        kind="labels",
        codes=codes,
        zero_code=0.0,
        raw_step=step,
        raw_base=base,
        slope=1.0,
        inter=0.0,
        error_bound=0.0,
        max_error=0.0,
        fixup_index=index,
        fixup_raw=raw.ravel()[index],
    )


def decode(
    codes: np.ndarray,
    kind: str,
    raw_step: float,
    raw_base: float,
    dtype: np.dtype,
) -> np.ndarray:
    """Raw numbers of codes in `dtype`, before fixups."""
    if kind == "integer":
        # Modular arithmetic, so that 64-bit sources near the ends of their range come back whole.
        total = codes.astype(np.int64).view(np.uint64) + np.uint64(int(raw_base) & (2**64 - 1))
        return total.astype(dtype) if dtype.kind == "u" else total.view(np.int64).astype(dtype)
    if kind == "float32":
        numbers = codes.astype(np.float64 if dtype.kind in "iu" else dtype)
    else:
        numbers = codes.astype(np.float64) * raw_step + raw_base
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        # float64 has no 2^63 - 1 and no 2^64 - 1: stay below, the fixups hold what that changes.
        top = np.nextafter(float(info.max), 0.0) if dtype.itemsize == 8 else float(info.max)
        return np.clip(np.rint(numbers), float(info.min), top).astype(dtype)
    with np.errstate(over="ignore"):
        return numbers.astype(dtype)


def _is_whole(raw: np.ndarray, lo: np.generic, hi: np.generic) -> bool:
    if not (float(hi) - float(lo) <= LEVELS and abs(float(lo)) < 2**52 and abs(float(hi)) < 2**52):
        return False
    sample = raw.ravel(order="K")[:: max(1, raw.size // 4096)]
    return bool((np.rint(sample) == sample).all()) and bool((np.rint(raw) == raw).all())


def _integer(
    raw: np.ndarray, lo: int, hi: int, raw_zero: float
) -> tuple[Kind, np.ndarray, float, float, float]:
    zero = round(raw_zero) if math.isfinite(raw_zero) else 0
    base = 0
    if lo < _LO or hi > _HI:
        wide_lo, wide_hi = min(lo, zero), max(hi, zero)
        base = (wide_lo if wide_hi - wide_lo <= LEVELS else lo) - _LO
    if raw.dtype == np.int16 and base == 0:
        codes = raw
    elif raw.dtype.kind in "iu" and raw.dtype.itemsize == 8:
        codes = ((raw - raw.dtype.type(lo)).astype(np.int64) + (lo - base)).astype(np.int16)
    else:
        codes = (raw.astype(np.int64) - base).astype(np.int16)
    return "integer", codes, float(min(max(zero - base, _LO), _HI)), 1.0, float(base)


def _float32(raw: np.ndarray, raw_zero: float) -> tuple[Kind, np.ndarray, float, float, float]:
    with np.errstate(over="ignore"):
        codes = raw.astype(np.float32, copy=False)
        zero = float(np.float32(raw_zero))
    if not np.isfinite(codes).all():
        raise ValueError("numbers are too large for float32")
    return "float32", codes, zero if math.isfinite(zero) else 0.0, 1.0, 0.0


def _affine(
    raw: np.ndarray, lo: float, hi: float, raw_zero: float
) -> tuple[Kind, np.ndarray, float, float, float]:
    span = hi - lo
    if not math.isfinite(span):
        raise ValueError("numbers span more than float64 can hold")
    step = max(span / LEVELS, float(np.finfo(np.float64).tiny))
    if lo <= raw_zero <= hi:
        # Steps of span/65,535 leave half a step to spare at each end: room to put a level exactly at 0.
        anchor, zero = raw_zero, min(float(_LO + round((raw_zero - lo) / step)), float(_HI))
        anchor_code = zero
    else:
        anchor, anchor_code, zero = lo, float(_LO), float(_HI if raw_zero > hi else _LO)
    codes = np.empty(raw.shape, np.int16)
    for slab, part in zip(codes, raw, strict=True):
        numbers = part.astype(np.float64)
        numbers -= anchor
        numbers /= step
        np.rint(numbers, out=numbers)
        numbers += anchor_code
        slab[...] = np.clip(numbers, _LO, _HI, out=numbers)
    return "affine", codes, zero, step, anchor - anchor_code * step


def _find_fixups(
    codes: np.ndarray, raw: np.ndarray, kind: Kind, step: float, base: float, bound: float
) -> tuple[np.ndarray, float]:
    """Flat indices of voxels that `decode` does not restore as promised, and the largest error elsewhere."""
    if kind == "integer" and raw.dtype.kind in "iu" and abs(base) < 2**53:
        return np.empty(0, np.int64), 0.0
    found: list[np.ndarray] = []
    worst = 0.0
    area = raw[0].size
    for i, (slab, part) in enumerate(zip(codes, raw, strict=True)):
        restored = decode(slab, kind, step, base, raw.dtype)
        if kind == "affine":
            error = _distance(restored, part)
            bad = error > bound
            worst = max(worst, float(np.max(error, where=~bad, initial=0.0)))
        else:
            bits = np.dtype(f"u{raw.itemsize}")
            bad = np.ascontiguousarray(restored).view(bits) != np.ascontiguousarray(part).view(bits)
        if bad.any():
            found.append(np.flatnonzero(bad) + i * area)
    return (np.concatenate(found) if found else np.empty(0, np.int64)), worst


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| as float64, without overflow."""
    if a.dtype.kind in "iu":
        unsigned = np.dtype(f"u{a.itemsize}")
        return (np.maximum(a, b).view(unsigned) - np.minimum(a, b).view(unsigned)).astype(np.float64)
    return np.abs(a.astype(np.float64) - b.astype(np.float64))
