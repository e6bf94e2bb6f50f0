"""One optimiser step, for any objective: micro-batches, autocast, scaling, clipping, no waiting.

Randomness: the only generator state a step depends on (dropout, if any) is seeded at its start from the
plan's own seeds, so a resumed run needs no saved generator to repeat itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.pretext.base import Objective
from brainfoundry.pretext.intensity import normalise
from brainfoundry.stream.batch import CropBatch
from brainfoundry.training.config import OptimConfig
from brainfoundry.training.schedule import lr_factor

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Engine:
    """Network, objective and optimiser of one worker.

    Args:
        network: the bare network, or wrapped in DistributedDataParallel.
        objective: what is asked of it.
        config: optimiser section of the run.
        intensity: rule that turns codes into network input.
        device: where the network lives.
        groups: parameters that learn, for the optimiser, each group with its `lr_scale`; None: all, alike.

    Raises:
        ConfigError: fp16 without a GPU.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        config: OptimConfig,
        intensity: str,
        device: torch.device,
        groups: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        if config.precision == "fp16" and device.type != "cuda":
            raise ConfigError("fp16 needs a GPU", fix="use --optim.precision fp32 (or bf16)")
        self.network = network
        self.objective = objective
        self.config = config
        self.intensity = intensity
        self.device = device
        self.optimizer = torch.optim.AdamW(
            network.parameters() if groups is None else list(groups),
            lr=config.lr, betas=config.betas, weight_decay=config.weight_decay,
        )  # fmt: skip
        self.average: AveragedModel | None = None
        if config.ema is not None:
            # The only buffers are constant index tables, which an average leaves as they are.
            self.average = AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.record_names = ("total", *objective.loss_names, "saturated", "grad_norm")

    @property
    def bare(self) -> nn.Module:
        """The network without its distributed wrapper."""
        return self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

    @property
    def best(self) -> nn.Module:
        """The weights to judge and to keep: their moving average where there is one."""
        return self.bare if self.average is None else self.average.module

    def step(self, step: int, batch: CropBatch) -> torch.Tensor:
        """Train on one worker's groups of one step.

        Args:
            step: 0-based optimiser step; gives the learning rate.
            batch: CPU batch of whole groups (pinned, for a GPU: then the copy does not wait).

        Returns:
            Float32 vector on the device, as `record_names` (grad_norm before clipping); not waited for.
        """
        torch.manual_seed(int(batch.seeds_N[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_factor(step, self.config) * group.get("lr_scale", 1.0)
        parts = self.config.accumulate
        per_part = len(batch.seeds_N) // batch.crops_per_group // parts
        record = torch.zeros(len(self.record_names), device=self.device)
        for i in range(parts):
            part = batch if parts == 1 else batch.groups(i * per_part, (i + 1) * per_part)
            last = i == parts - 1
            with self._sync(last):
                losses, saturated = self.losses(part.to(self.device))
                self.scaler.scale(losses["total"] / parts).backward()
            names = ("total", *self.objective.loss_names)
            record[:-1] += (
                torch.stack([*(losses[n].detach().float() for n in names), saturated.float()]) / parts
            )
        self.scaler.unscale_(self.optimizer)
        limit = float("inf") if self.config.clip_norm is None else self.config.clip_norm
        record[-1] = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.bare)
        return record

    def rehearse(self, batch: CropBatch) -> None:
        """A forward and backward pass whose gradients are thrown away, before the first step of a process.

        DistributedDataParallel lays its gradient buckets out anew after the first backward pass, and the
        layout decides in which order a ring of three or more workers sums. A run that is stopped and resumed
        would sum one step in another order than the uninterrupted one; so no step that counts is the first.
        """
        if isinstance(self.network, DistributedDataParallel):
            torch.manual_seed(0)
            self.losses(batch.to(self.device))[0]["total"].backward()
            self.optimizer.zero_grad(set_to_none=True)

    def losses(self, batch: CropBatch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The objective's losses on a batch that is on the device, and the share of saturated voxels."""
        x_NCDHW, saturated = normalise(batch, self.intensity)
        labels = {} if batch.labels_NDHW is None else {"labels_NDHW": batch.labels_NDHW}
        with self.autocast():
            losses = self.objective.loss(
                self.network,
                x_NCDHW,
                batch.seeds_N,
                batch.crops_per_group,
                present_NC=batch.present_NC,
                **labels,
            )
        return losses, saturated

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the run as a context."""
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.config.precision])

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint beside `best`: optimiser, scaler, and with an average the weights that
        learn (the schedule is a function of the step, randomness of the plan)."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.average is not None:
            state |= {"weights": self.bare.state_dict(), "averaged": self.average.n_averaged}
        return state

    def load(self, model: dict[str, torch.Tensor], state: dict[str, Any], uri: str) -> None:
        """Continue from a checkpoint's weights and state.

        Raises:
            CheckpointError: tensors missing, unexpected or of another shape; the first is named.
        """
        if ("weights" in state) != (self.average is not None):
            raise CheckpointError(
                "the checkpoint was made " + ("with" if "weights" in state else "without") + " --optim.ema",
                file=uri,
                fix="give --optim.ema as before, or this run another --name",
            )
        own = self.best.state_dict()
        for name in sorted(set(own) | set(model)):
            if name not in model or name not in own or own[name].shape != model[name].shape:
                have = tuple(model[name].shape) if name in model else "nothing"
                want = tuple(own[name].shape) if name in own else "nothing"
                raise CheckpointError(
                    f"tensor {name}: checkpoint has {have}, network has {want}",
                    file=uri,
                    fix="continue with the --model and --data options the checkpoint was made with",
                )
        self.best.load_state_dict(model)
        if self.average is not None:
            self.bare.load_state_dict(state["weights"])
            self.average.n_averaged.copy_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()
