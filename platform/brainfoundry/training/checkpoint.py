"""Checkpoints on any storage: asynchronous, whole or invisible, checked when read, no pickles run.

Layout: `step-00000120/{model.safetensors, state/train.pt, seen.parquet, card.json}`. The card is written
last; what has no card does not exist. Ray Train never keeps them: its own retention knows the best N or the
last N, not the last N and the best, and its list would outlive files that were deleted on purpose.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError
from brainfoundry.training.card import SEEN_FILE, Card

_NAME = re.compile(r"step-(\d{8})$")
MODEL = "model.safetensors"
STATE = "state/train.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back."""

    uri: str
    card: Card
    model: dict[str, torch.Tensor]
    state: dict[str, Any]
    """optimizer, scaler; empty where only the weights were asked for."""


def checkpoint_uri(folder: str, step: int) -> str:
    """Where the checkpoint of a step lies."""
    return files.join(folder, f"step-{step:08d}")


def step_of(uri: str) -> int:
    """The step in a checkpoint's URI.

    Raises:
        CheckpointError: it names none.
    """
    match = _NAME.search(uri.rstrip("/"))
    if match is None:
        raise CheckpointError("no checkpoint's folder", file=uri, fix="name a step-... folder")
    return int(match.group(1))


def list_steps(folder: str) -> list[int]:
    """Steps of the whole checkpoints in a folder, ascending; half-written ones are not there."""
    found = (_NAME.match(name) for name in files.list_names(folder))
    steps = sorted(int(m.group(1)) for m in found if m)
    return [s for s in steps if files.exists(files.join(checkpoint_uri(folder, s), "card.json"))]


def latest_step(folder: str) -> int:
    """Step of the newest whole checkpoint, 0 where there is none: the cursor a run continues from."""
    steps = list_steps(folder)
    return steps[-1] if steps else 0


def read_card(uri: str) -> Card:
    """The card of a checkpoint.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    path = files.join(uri, "card.json")
    if not files.exists(path):
        raise CheckpointError(
            "no whole checkpoint here (card.json is missing)", file=uri, fix="name a step-... folder"
        )
    return Card.from_json(files.read_bytes(path), path)


def load(uri: str, *, with_state: bool = True) -> Checkpoint:
    """Read a checkpoint, checking every file against the card.

    Raises:
        CheckpointError: missing, damaged or foreign.
    """
    card = read_card(uri)
    try:
        model = load_safetensors(_checked(uri, MODEL, card))
        state: dict[str, Any] = {}
        if with_state:
            state = torch.load(io.BytesIO(_checked(uri, STATE, card)), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot be read: {error}", file=uri, fix="use an older checkpoint") from error
    return Checkpoint(uri=uri, card=card, model=model, state=state)


def _checked(uri: str, name: str, card: Card) -> bytes:
    data = files.read_bytes(files.join(uri, *name.split("/")))
    want = card.files.get(name, {}).get("sha256")
    if want is None or hashlib.sha256(data).hexdigest() != want:
        raise CheckpointError(
            "the file does not match its checksum on the card",
            file=files.join(uri, name),
            fix="restore it from a copy, or delete this step's folder to continue from an older checkpoint",
        )
    return data


def save(
    folder: str,
    card: Card,
    model: dict[str, torch.Tensor],
    state: dict[str, Any],
    seen: bytes | None = None,
) -> str:
    """Write a checkpoint, card last; returns its URI. Tensors must be on the CPU and no longer change.

    Args:
        seen: the table of everybody the weights have seen, as `seen.encode_seen` makes it.
    """
    uri = checkpoint_uri(folder, card.step)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    blobs = {MODEL: save_safetensors(model), STATE: buffer.getvalue()}
    if seen is not None:
        blobs[SEEN_FILE] = seen
    files.delete_file(files.join(uri, "card.json"))  # a rewrite is invisible until it is whole again
    for name, blob in blobs.items():
        files.make_folder(files.join(uri, *name.split("/")[:-1]))
        files.write_bytes(files.join(uri, *name.split("/")), blob)
    listing = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in blobs.items()}
    files.write_bytes(files.join(uri, "card.json"), replace(card, files=listing).to_json())
    return uri


def to_cpu(value: Any) -> Any:
    """A deep copy with every tensor on the CPU: the snapshot the writer may take its time with."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {k: to_cpu(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(v) for v in value)
    return value


class CheckpointWriter:
    """Writes snapshots from a thread of its own and keeps the last N and the best.

    At most one snapshot waits: a second `save` waits for the first, which bounds memory. An error of the
    thread is raised by the next call. `seen` goes into every checkpoint; it is made once a run.

    Args:
        best_by: the validation figure that names the best.
        higher: the highest is the best, not the lowest.
    """

    def __init__(
        self, folder: str, *, keep_last: int, best_by: str, seen: bytes | None = None, higher: bool = False
    ) -> None:
        self.folder = folder
        self.seen = seen
        self.keep_last = keep_last
        self.best_by = best_by
        self.higher = higher
        self._held: set[int] = set()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        files.make_folder(folder)
        self._drop_halves()
        self._scores = {s: self._score(read_card(checkpoint_uri(folder, s))) for s in list_steps(folder)}

    def save(self, card: Card, model: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Queue a snapshot (already on the CPU)."""
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(card, model, state), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the snapshot in flight is on storage.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(
                f"checkpoint could not be written: {error}",
                file=self.folder,
                fix="free space or change --storage",
            ) from error

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint that validation likes best (of equals the earliest), None without any."""
        scored = {s: -v if self.higher else v for s, v in self._scores.items() if v is not None}
        return min(scored, key=lambda s: (scored[s], s)) if scored else None

    def hold(self, steps: Sequence[int]) -> None:
        """Keep these, also those that are yet to be written, until they are judged."""
        self._held |= set(steps)

    def judge(self, step: int, metrics: dict[str, float]) -> None:
        """Put what validation found later onto a checkpoint's card, and let it go if it is neither new nor
        best."""
        self.wait()
        self._held.discard(step)
        uri = checkpoint_uri(self.folder, step)
        if step not in self._scores:
            return
        card = replace(read_card(uri), metrics=metrics)
        files.write_bytes(files.join(uri, "card.json"), card.to_json())
        self._scores[step] = self._score(card)
        self._retire()

    def _write(self, card: Card, model: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        try:
            save(self.folder, card, model, state, self.seen)
            self._scores[card.step] = self._score(card)
            self._retire()
        except BaseException as error:
            self._error = error

    def _score(self, card: Card) -> float | None:
        found = card.metrics.get(f"val/{self.best_by}")
        return found if found is not None and math.isfinite(found) else None

    def _retire(self) -> None:
        keep = {*sorted(self._scores)[-self.keep_last :], self.best_step, *self._held}
        for step in sorted(set(self._scores) - keep):
            uri = checkpoint_uri(self.folder, step)
            files.delete_file(
                files.join(uri, "card.json")
            )  # first: a half-deleted checkpoint must not be seen
            files.delete_folder(uri)
            del self._scores[step]

    def _drop_halves(self) -> None:
        whole = set(list_steps(self.folder))
        for name in files.list_names(self.folder):
            match = _NAME.match(name)
            if match and int(match.group(1)) not in whole:
                files.delete_folder(files.join(self.folder, name))
