"""Random numbers as pure functions of integers: the same on every machine, device and library version.

NumPy's and torch's generators may change their streams between versions and differ between CPU and
GPU. Order, crops and augmentation must not, so they draw from a counter-based generator: the
SplitMix64 finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")
applied to a chain of integers. `hash64(a, b, c)` is the draw number c of stream b of seed a.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # readers of crops need only hash64, and torch costs a process seconds and 250 MB
    import torch

_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_U64 = (1 << 64) - 1


def key_of(text: str) -> int:
    """A 64-bit key of a string (a subject id, a stream's name): the first 8 bytes of its BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _signed(value: int) -> int:
    value &= _U64
    return value - (1 << 64) if value >> 63 else value


def hash64_int(*parts: int) -> int:
    """`hash64` of Python integers, as an unsigned 64-bit integer."""
    state = 0
    for part in parts:
        z = (state + (part & _U64) + _GOLDEN) & _U64
        z = ((z ^ (z >> 30)) * _M1) & _U64
        z = ((z ^ (z >> 27)) * _M2) & _U64
        state = z ^ (z >> 31)
    return state


def hash64(*parts: Any) -> np.ndarray:
    """`hash64_int` over broadcast NumPy integer arrays: uint64, wrap-around arithmetic."""
    arrays = [
        np.asarray(p if not isinstance(p, int) else np.uint64(p & _U64)).astype(np.uint64, copy=False)
        for p in parts
    ]
    state: np.ndarray = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in arrays:
            z = state + part + np.uint64(_GOLDEN)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(_M1)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(_M2)
            state = z ^ (z >> np.uint64(31))
    return state


def uniform(*parts: Any) -> np.ndarray:
    """Uniform float64 in [0, 1) from `hash64`: its upper 53 bits."""
    return (hash64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    # torch has no unsigned 64-bit integers: an arithmetic shift with the sign bits masked is a logical one.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def hash64_torch(*parts: torch.Tensor | int) -> torch.Tensor:
    """`hash64` on torch int64 tensors (any device): the same 64 bits, seen as signed."""
    import torch

    state: torch.Tensor | int = 0
    for part in parts:
        part = _signed(part) if isinstance(part, int) else part
        z = (
            part + state + _signed(_GOLDEN)
            if isinstance(part, torch.Tensor)
            else state + part + _signed(_GOLDEN)
        )
        if not isinstance(z, torch.Tensor):
            z = torch.tensor(_signed(z), dtype=torch.int64)
        z = (z ^ _shift(z, 30)) * _signed(_M1)
        z = (z ^ _shift(z, 27)) * _signed(_M2)
        state = z ^ _shift(z, 31)
    assert isinstance(state, torch.Tensor)
    return state


def uniform_torch(*parts: torch.Tensor | int) -> torch.Tensor:
    """Uniform float32 in [0, 1) from `hash64_torch`: its upper 24 bits."""
    import torch

    return _shift(hash64_torch(*parts), 40).to(torch.float32) * 2.0**-24


def normal_torch(*parts: torch.Tensor | int) -> torch.Tensor:
    """Standard normal float32 from one `hash64_torch` draw: Box-Muller on its upper and lower 24 bits."""
    import torch

    bits = hash64_torch(*parts)
    u1 = (_shift(bits, 40).to(torch.float32) + 1.0) * 2.0**-24  # (0, 1]: the logarithm stays finite
    u2 = (bits & 0xFFFFFF).to(torch.float32) * 2.0**-24
    return torch.sqrt(-2.0 * torch.log(u1)) * torch.cos(2.0 * torch.pi * u2)
