"""Batches one ahead, in pinned memory: the copy to the GPU overlaps with the step before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from brainfoundry.stream.batch import CropBatch

_AHEAD = 2


def feed(batches: Iterator[CropBatch], device: torch.device) -> Iterator[CropBatch]:
    """The same batches in the same order; for a GPU, fetched and pinned by a thread while it computes.

    An error of the stream is raised where the batch it belongs to would have come.
    """
    if device.type != "cuda":
        yield from batches
        return
    yield from ahead(batches, pin=True)


def ahead(batches: Iterator[CropBatch], *, pin: bool) -> Iterator[CropBatch]:
    """Batches taken by a thread, at most two ahead of the one in use."""
    ready: queue.Queue[CropBatch | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: CropBatch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for batch in batches:
                if not put(batch.pin() if pin else batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=run, name="feed", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
