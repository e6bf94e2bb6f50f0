"""What every Ray Train worker runs, in every stage: build, continue from the newest checkpoint, step through
the plan."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brainfoundry.core.errors import ConfigError, DataError, DivergedError
from brainfoundry.core.memory import keep_freed_memory
from brainfoundry.core.rng import hash64_int
from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.models.transfer import TransferTable
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import CropBatch
from brainfoundry.stream.plan import Plan
from brainfoundry.stream.ray_train_data import iter_steps
from brainfoundry.tasks.scores import higher_is_better
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.engine import Engine
from brainfoundry.training.feed import feed
from brainfoundry.training.initialise import initialise, parameter_groups
from brainfoundry.training.meter import Meter
from brainfoundry.training.objectives import objective_of
from brainfoundry.training.probe import Probe
from brainfoundry.training.receipt_log import ReceiptWriter, attempt_name, attempts
from brainfoundry.training.reporter import Reporter
from brainfoundry.training.resources import memory_gb, peak_flops, set_threads
from brainfoundry.training.seen import encode_seen, load_seen, own_scans, seen_table
from brainfoundry.training.task import TrainTask
from brainfoundry.training.usage import Usage
from brainfoundry.training.validation import Validation


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train function of every stage; rank 0's return value becomes the result of the run."""
    task: TrainTask = settings["task"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    set_threads(task.config.cluster.threads, context.get_local_world_size())
    device = ray.train.torch.get_device()
    usage = Usage(device, rank=rank, world=world)
    if device.type == "cpu" and task.config.cluster.keep_freed_memory:
        keep_freed_memory()

    start = checkpoint.latest_step(task.checkpoints)
    engine, transfer = build_engine(task, device, distributed=world > 1, fresh=not start)
    if start:
        found = checkpoint.load(checkpoint.checkpoint_uri(task.checkpoints, start))
        make_card(task, start, {}).refuse_mismatch(found.card, found.uri, task.history)
        engine.load(found.model, found.state, found.uri)

    shards = ShardSet.open(task.shards)
    plan = Plan.open(shards, task.plan)
    if (plan.hash, shards.meta.manifest_hash) != (task.card["plan_hash"], task.card["manifest_hash"]):
        raise DataError(
            "the shard set has changed since this job was submitted",
            file=task.shards,
            fix="submit the job again: it goes on from its newest checkpoint if only participants withdrew",
        )
    stream = iter_steps(
        ray.train.get_dataset_shard("train"),
        rows_per_step=plan.crops_per_step // world,
        first_step=start,
        stop_step=task.config.optim.steps,
        crops_per_group=plan.crops_per_group,
        prefetch=1,
    )
    attempt = _attempt(task, device, rank)
    receipt = ReceiptWriter(
        task.run_dir,
        attempt=attempt,
        rank=rank,
        world=world,
        first_step=start,
        stop_step=task.config.optim.steps,
        plan=plan.hash,
        flush_every=task.config.keep.log_every,
    )
    reporter = Reporter(task, world=world, first_step=start) if rank == 0 else None
    if reporter and transfer is not None:
        reporter.transfer(transfer)
    writer = _checkpoint_writer(task, shards, start) if rank == 0 else None
    validation = Validation(
        task, shards, engine, rank=rank, world=world, receipt=receipt, reporter=reporter, writer=writer
    )
    meter = Meter(
        crops_per_step=plan.crops_per_step, workers=world, gpus=world if device.type == "cuda" else 0
    )
    probe = Probe(task.probe, rank=rank, world=world) if task.probe else None
    loop = _Loop(task, engine, validation, meter, receipt, reporter, writer, probe)
    try:
        result = loop.run(feed(stream, device), start)
        result |= usage.totals(task.run_dir, attempt)
        result["parameters"] = sum(weights.numel() for weights in engine.bare.parameters())
    except BaseException as error:
        receipt.close("failed")
        if reporter:
            reporter.interrupted()
        if isinstance(error, torch.OutOfMemoryError):
            raise _too_large(task, world) from error
        raise
    receipt.close("finished")
    if reporter:
        reporter.finished(result)
    return result


def build_network(task: TrainTask, *, fresh: bool = True) -> tuple[nn.Module, TransferTable | None]:
    """The network of the run, on the CPU, with its seeded start.

    Args:
        fresh: take weights over from the run's parent, or from CT; not where a checkpoint of its own follows.

    Returns:
        The network, and what became of every tensor taken over (None without).
    """
    config = task.config
    torch.manual_seed(hash64_int(config.data.seed, 0) >> 1)  # every worker starts from the same weights
    network = objective_of(config, task.scheme).network(EncoderSpec.from_dict(task.card["encoder"]))
    if not fresh:
        return network, None
    return network, initialise(network, replace(config.init, checkpoint=task.parent), task.modalities)


def build_engine(
    task: TrainTask, device: torch.device, *, distributed: bool, fresh: bool = True
) -> tuple[Engine, TransferTable | None]:
    """`build_network`'s network with its objective and optimiser, and the transfer's table."""
    config = task.config
    network, table = build_network(task, fresh=fresh)
    network.to(device).train()
    groups = parameter_groups(
        network, config.init, lr=config.optim.lr, weight_decay=config.optim.weight_decay
    )
    if distributed:
        # The only buffers are constant index tables: broadcasting them every step would be waste.
        network = DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    objective = objective_of(config, task.scheme)
    return Engine(network, objective, config.optim, config.data.intensity, device, groups), table


def _attempt(task: TrainTask, device: torch.device, rank: int) -> str:
    """Name of this start of the worker group, the same on all workers, and later than all before it."""
    started = torch.zeros(1, dtype=torch.int64, device=device)
    if rank == 0:
        before = [int(n.split("-")[1]) for n in attempts(task.run_dir)]
        started += max(int(time.time() * 1000), max(before, default=0) + 1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(started, 0)
    return attempt_name(int(started.item()))


def _checkpoint_writer(task: TrainTask, shards: ShardSet, start: int) -> checkpoint.CheckpointWriter:
    """The writer, with the table of everybody the run and its ancestors see, made once."""
    own = own_scans(
        shards, sorted(set(task.fed_by)), run=task.name, stage=str(task.card["stage"]),
        held_out_fold=task.plan.fold, share=task.plan.share, draw=task.plan.draw,
    )  # fmt: skip
    parents = tuple(task.card.get("parents", ()))
    earlier = load_seen(checkpoint.checkpoint_uri(task.checkpoints, start)) if start else None
    table = seen_table(own, parents, earlier=earlier, run=task.name, index=shards.index)
    keep = task.config.keep
    return checkpoint.CheckpointWriter(
        task.checkpoints, keep_last=keep.keep_last, best_by=keep.best_by, seen=encode_seen(table, parents),
        higher=task.volumes is not None and higher_is_better(keep.best_by),
    )  # fmt: skip


def make_card(task: TrainTask, step: int, metrics: dict[str, float]) -> Card:
    """Card of the run at a step."""
    return Card(**task.card, step=step, metrics=metrics)


@dataclass
class _Loop:
    """The steps of one worker, and what happens between them."""

    task: TrainTask
    engine: Engine
    validation: Validation
    meter: Meter
    receipt: ReceiptWriter
    reporter: Reporter | None
    writer: checkpoint.CheckpointWriter | None
    probe: Probe | None = None

    def run(self, batches: Iterator[CropBatch], start: int) -> dict[str, Any]:
        """Steps `start` to the last; the summary."""
        keep, steps = self.task.config.keep, self.task.config.optim.steps
        pending: list[torch.Tensor] = []
        self.validation.resume()
        if start == 0 and self.probe is not None:
            self._look(0)
            self.meter.reset()
        for step in range(start, steps):
            with self.meter.waiting():
                batch = next(batches)
            if step == start:
                pending.append(_first_step(self.engine, step, batch, self.meter))
            else:
                pending.append(self.engine.step(step, batch))
            self.receipt.consumed(batch)
            self.meter.step()
            done = step + 1
            final = done == steps
            validate = self.validation.possible and (final or _due(done, keep.validate_every))
            save = final or _due(done, keep.checkpoint_every) or (validate and self.validation.of_checkpoints)
            look = self.probe is not None and (final or _due(done, self.probe.spec.every))
            if not (validate or save or look or _due(done, keep.log_every)):
                continue
            records = _mean_over_workers(torch.stack(pending))
            self.receipt.flush(force=save)  # before the checkpoint: what is in the weights is in the receipt
            speed = {**self.meter.read(), **memory_gb(self.engine.device)}
            if self.reporter:
                self.reporter.steps(done - len(pending), self.engine.record_names, records, speed)
            _refuse_nonfinite(records, done - len(pending))
            pending.clear()
            self.meter.reset()
            self.validation.between()
            metrics = self.validation.at(done) if validate else {}
            if look:
                metrics = metrics | self._look(done)
            if save:
                self._save(done, metrics)
            if validate or save or look:
                self.meter.reset()
        self.validation.end()
        best = self.writer.best_step if self.writer else None
        return {
            "steps": steps,
            "first_step": start,
            "metrics": self.validation.metrics,
            "checkpoint": checkpoint.checkpoint_uri(self.task.checkpoints, steps),
            "best_checkpoint": checkpoint.checkpoint_uri(self.task.checkpoints, best) if best else None,
        }

    def _look(self, done: int) -> dict[str, float]:
        """The probe's figures after `done` steps; none where there is no probe."""
        if self.probe is None:
            return {}
        found, seconds = self.probe.at(self.engine)
        if self.reporter:
            self.reporter.validation(done, {**found, "probe/seconds": seconds}, None)
        return found

    def _save(self, done: int, metrics: dict[str, float]) -> None:
        if self.writer is None:
            return
        state = {"model": self.engine.best.state_dict(), **self.engine.state()}
        frozen = checkpoint.to_cpu(state)
        model = frozen.pop("model")
        self.writer.save(make_card(self.task, done, metrics), model, frozen)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _first_step(engine: Engine, step: int, batch: CropBatch, meter: Meter) -> torch.Tensor:
    """The first step of this process; on a GPU it is also counted, for the MFU."""
    engine.rehearse(batch)
    meter.peak = peak_flops(engine.device, engine.config.precision)
    if meter.peak is None:
        return engine.step(step, batch)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        record = engine.step(step, batch)
    meter.flops_per_step = float(counter.get_total_flops())
    return record


def _mean_over_workers(records: torch.Tensor) -> list[list[float]]:
    """Mean of (steps, names) over the workers, on the host: the one place that waits for the device."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(records)
        records /= dist.get_world_size()
    return records.tolist()


def _too_large(task: TrainTask, world: int) -> ConfigError:
    config = task.config
    crops = task.plan.groups_per_step * task.plan.crops_per_group // world // config.optim.accumulate
    return ConfigError(
        f"out of GPU memory with {crops} crops of {'x'.join(map(str, task.plan.crop))} at a time on a worker",
        fix=f"raise --optim.accumulate (now {config.optim.accumulate}) or --cluster.workers, lower "
        "--data.crop, use --optim.precision bf16 or --model.activation-checkpointing",
    )


def _refuse_nonfinite(records: list[list[float]], first: int) -> None:
    for i, record in enumerate(records):
        if not math.isfinite(record[0]):
            raise DivergedError(
                f"the loss of step {first + i} is {record[0]}",
                fix="lower --optim.lr, use --optim.precision bf16 or fp32, or look for broken scans",
            )
