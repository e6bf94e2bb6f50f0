"""Validation on held-out subjects: the same crops and views every time, shared out over the workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from brainfoundry.pretext.intensity import normalise
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import BatchReader, CropBatch
from brainfoundry.stream.plan import Plan
from brainfoundry.training.engine import Engine


class Validator:
    """Losses and pictures on fixed crops.

    Reads the store directly, one batch ahead in a thread: a Ray Data execution costs seconds before its first
    batch, and a validation share is a few dozen crops a worker.

    Args:
        shards: the shard set.
        plan: plan of the held-out subjects, one group a step.
        channels: the shard set's channels, in order.
        groups: groups validated in all, over all workers.
    """

    def __init__(
        self, shards: ShardSet, plan: Plan, channels: tuple[int, ...], *, groups: int, rank: int, world: int
    ):
        self.plan = plan
        self.read = BatchReader(shards, channels)
        self.steps = range(rank, groups, world)

    def _batches(self) -> Iterator[CropBatch]:
        def read(step: int) -> CropBatch:
            return self.read(self.plan.rows(step, step + 1))

        with ThreadPoolExecutor(1, thread_name_prefix="validation") as pool:
            waiting = None
            for step in self.steps:
                ready, waiting = waiting, pool.submit(read, step)
                if ready is not None:
                    yield ready.result()
            if waiting is not None:
                yield waiting.result()

    @torch.no_grad()
    def losses(self, engine: Engine) -> dict[str, float]:
        """Mean of each loss over all held-out groups: `val/total` and so on. Every worker must call it."""
        names = ("total", *engine.objective.loss_names)
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=engine.device)
        engine.bare.eval()
        wrapped, engine.network = (
            engine.network,
            engine.bare,
        )  # no collectives inside: workers may hold unequal shares
        try:
            for batch in self._batches():
                losses, _ = engine.losses(batch.to(engine.device))
                sums[:-1] += torch.stack([losses[n].double() for n in names])
                sums[-1] += 1
        finally:
            engine.network = wrapped
            engine.bare.train()
        if dist.is_initialized():
            dist.all_reduce(sums)
        *totals, count = sums.tolist()
        return {f"val/{n}": t / max(count, 1.0) for n, t in zip(names, totals, strict=True)}

    @torch.no_grad()
    def pictures(self, engine: Engine, limit: int) -> dict[str, torch.Tensor] | None:
        """Input, cut and rebuilt crops (n, C, D, H, W) of this worker's first held-out group, None if it has
        none."""
        batch = next(self._batches(), None)
        if batch is None or limit <= 0:
            return None
        engine.bare.eval()
        try:
            batch = batch.to(engine.device)
            x_NCDHW, _ = normalise(batch, engine.intensity)
            with engine.autocast():
                shown = engine.objective.pictures(engine.bare, x_NCDHW, batch.seeds_N, batch.crops_per_group)
        finally:
            engine.bare.train()
        return {name: value[:limit].float().cpu() for name, value in shown.items()}
