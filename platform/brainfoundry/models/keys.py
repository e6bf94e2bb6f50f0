"""Weights files of others: read without running what is in them, and held against the keys of a network."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError

SHOWN = 8
"""Keys of a kind that a table shows."""
_WRAPPERS = ("state_dict", "model")
"""Under which a file may keep its weights, beside an optimiser or an epoch."""
_DATA_PARALLEL = "module."
"""What torch's data parallelism puts before every name."""


@dataclass(frozen=True, kw_only=True)
class KeyTable:
    """How the keys of a file and those of a network fit."""

    found: int
    expected: int
    missing: Mapping[str, tuple[int, ...]]
    """Keys of the network that the file does not have, with their shapes."""
    extra: Mapping[str, tuple[int, ...]]
    """Keys of the file that the network does not have."""
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Keys of both with two shapes: the file's, the network's."""

    @classmethod
    def of(cls, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> KeyTable:
        """The table of two state dicts."""
        both = {k: (tuple(found[k].shape), tuple(expected[k].shape)) for k in found if k in expected}
        return cls(
            found=len(found),
            expected=len(expected),
            missing={key: tuple(tensor.shape) for key, tensor in expected.items() if key not in found},
            extra={key: tuple(tensor.shape) for key, tensor in found.items() if key not in expected},
            misshapen={key: shapes for key, shapes in both.items() if shapes[0] != shapes[1]},
        )

    @property
    def fits(self) -> bool:
        """Whether every key has its counterpart of the same shape."""
        return not (self.missing or self.extra or self.misshapen)

    def counts(self) -> str:
        """In a sentence."""
        return (
            f"{self.expected} expected, {self.found} found; {len(self.missing)} missing, {len(self.extra)} "
            f"extra, {len(self.misshapen)} of another shape"
        )

    def text(self) -> str:
        """The table for a terminal: the first few keys of each kind."""
        kinds = {
            "missing": [(key, "-", _shape(shape)) for key, shape in self.missing.items()],
            "extra": [(key, _shape(shape), "-") for key, shape in self.extra.items()],
            "shape": [
                (key, _shape(file), _shape(network)) for key, (file, network) in self.misshapen.items()
            ],
        }
        rows = [("", "key", "in the file", "expected")]
        for kind, found in kinds.items():
            rows += [(kind, *row) for row in found[:SHOWN]]
            if len(found) > SHOWN:
                rows.append(("", f"... and {len(found) - SHOWN} more", "", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, f"keys: {self.counts()}"])


class KeysError(CheckpointError):
    """Keys that do not fit: its line is followed by the table, on lines of its own."""

    def __init__(self, problem: str, *, table: KeyTable, file: object | None = None, fix: str) -> None:
        self.table = table
        super().__init__(f"{problem}: {table.counts()}", file=file, fix=fix)
        self._given = (problem, table, file, fix)

    def line(self) -> str:
        return f"{super().line()}\n{self.table.text()}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, self._given)


def _rebuild(problem: str, table: KeyTable, file: object | None, fix: str) -> KeysError:
    return KeysError(problem, table=table, file=file, fix=fix)


def read_weights(uri: str) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, by name.

    Raises:
        DataError: no such file.
        CheckpointError: it cannot be read as weights alone, or holds none.
    """
    data = files.read_bytes(uri)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot be read as weights: {str(error).splitlines()[0] if str(error) else 'damaged'}",
            file=uri,
            fix="give a file of weights alone (torch.save(network.state_dict(), FILE)); pickled objects, "
            "which could run anything, are not loaded",
        ) from error
    weights = unwrap(content)
    if not weights:
        raise CheckpointError("no weights in this file", file=uri, fix="give a file of a state dict")
    return weights


def unwrap(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of one inside a training checkpoint, without `module.` before them."""
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        return {}
    return {
        str(key).removeprefix(_DATA_PARALLEL): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
