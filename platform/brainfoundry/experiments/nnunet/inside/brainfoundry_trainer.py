"""nnU-Net's own trainer with a limit of steps; nnU-Net finds it by name in the folder `nnUNet_extTrainer`.

Network, plan, loss, optimiser, schedule, augmentation and sampling are nnU-Net's. What differs: how long it
trains (BRAINFOUNDRY_NNUNET, JSON: steps, epoch_steps); a checkpoint after every epoch, written whole or not
at all; and the validation cases are not predicted at the end: the test cases are, elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PROGRESS_S = 1.0
"""Seconds between two lines of progress."""
_LOSSES = {"train/total": "train_losses", "val/total": "val_losses", "val/pseudo_dice": "mean_fg_dice"}
"""Our names of what nnU-Net logs once an epoch."""


class BrainFoundryTrainer(nnUNetTrainer):
    """`nnUNetTrainer` for so many steps. Leaves `summary.json` beside its checkpoints."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        limit = json.loads(os.environ["BRAINFOUNDRY_NNUNET"])
        self._steps, self._epoch_steps = int(limit["steps"]), int(limit["epoch_steps"])
        self._done, self._shown = 0, 0.0
        self.num_epochs = math.ceil(self._steps / self._epoch_steps)
        self.num_val_iterations_per_epoch = max(1, self._epoch_steps // 5)  # nnU-Net: 50 to 250
        self.save_every = 1

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._done = self.current_epoch * self._epoch_steps
        self.num_iterations_per_epoch = min(self._epoch_steps, self._steps - self._done)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = super().train_step(batch)
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= PROGRESS_S or self._done == self._steps:
            self._shown = now
            print(f"brainfoundry step {self._done} loss {float(found['loss']):.4f}", flush=True)
        return found

    def save_checkpoint(self, filename: str) -> None:
        super().save_checkpoint(f"{filename}.part")
        Path(f"{filename}.part").replace(filename)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        self.print_to_log_file("validation cases are not predicted: BrainFoundry scores the test cases")

    def on_train_end(self) -> None:
        super().on_train_end()
        began, ended = (
            self.logger.get_value(f"epoch_{name}_timestamps", step=None) for name in ("start", "end")
        )
        summary = {
            "steps": self._steps,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "seconds": float(sum(e - b for b, e in zip(began, ended, strict=True))),
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None,
            "losses": [
                {
                    "step": min(self._steps, (epoch + 1) * self._epoch_steps),
                    "name": name,
                    "value": float(value),
                }
                for name, key in _LOSSES.items()
                for epoch, value in enumerate(self.logger.get_value(key, step=None))
            ],
        }
        part = Path(self.output_folder, "summary.json.part")
        part.write_text(json.dumps(summary))
        part.replace(part.with_suffix(""))
