"""The feeding thread: same order, errors in their place, no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from brainfoundry.stream.batch import CropBatch
from brainfoundry.training.feed import ahead, feed
from tests.training.batches import make_batch


def source(n: int, taken: list[int], fail_at: int | None = None) -> Iterator[CropBatch]:
    for step in range(n):
        if step == fail_at:
            raise ValueError("the store broke")
        taken.append(step)
        yield make_batch(step, 1, channels=1)


def feeding() -> int:
    return sum(t.name == "feed" for t in threading.enumerate())


def test_order_is_kept_and_reading_stays_just_ahead() -> None:
    taken: list[int] = []
    seen = []
    for batch in ahead(source(8, taken), pin=False):
        seen.append(batch.step)
        assert len(taken) <= len(seen) + 3  # two waiting, one in the thread's hand
    assert seen == list(range(8))


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    stream = ahead(source(8, [], fail_at=3), pin=False)
    assert [next(stream).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the store broke"):
        next(stream)


def test_closing_early_ends_the_thread() -> None:
    stream = ahead(source(1000, []), pin=False)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 10
    while feeding() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not feeding()


def test_on_a_cpu_nothing_is_added() -> None:
    taken: list[int] = []
    stream = feed(source(3, taken), torch.device("cpu"))
    next(stream)
    assert taken == [0]
