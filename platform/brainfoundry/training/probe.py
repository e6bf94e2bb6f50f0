"""The probe: what the frozen encoder is worth for masks, looked at now and then while it is pretrained.

A linear head is fitted on a few labelled subjects (`probe_features`), then scored on others: mean Dice a
region. Both passes go over whole volumes, so that a region is as rare as it is; the level at which a score
becomes a mark is the best one of the subjects that were fitted on. The head is thrown away. Nothing of it
reaches the training: weights, optimiser, order and random numbers stay as they are.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from brainfoundry.core.errors import DataError
from brainfoundry.inference.volume import window_box
from brainfoundry.inference.windows import WindowSpec, sliding_window, window_starts
from brainfoundry.models.attention import install_attention
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.base import load_task
from brainfoundry.training.engine import Engine
from brainfoundry.training.probe_features import (
    FEATURES,
    LEVELS,
    LinearProbe,
    Moments,
    dice_by_level,
    features,
    tally,
    to_cells,
)
from brainfoundry.training.probe_spec import ProbeSpec
from brainfoundry.training.volumes import Session, VolumeReader

log = logging.getLogger("brainfoundry.training")


class Probe:
    """The probe on one worker. Every worker calls `at`: subjects are shared out, sums are added up.

    Raises:
        DataError: the probe's shard set has changed since the job was submitted.
    """

    def __init__(self, spec: ProbeSpec, *, rank: int, world: int) -> None:
        self.spec = spec
        shards = ShardSet.open(spec.shards)
        if shards.meta.manifest_hash != spec.manifest_hash:
            raise DataError(
                "the probe's shard set has changed since this job was submitted",
                file=spec.shards,
                fix="submit the job again: it goes on from its newest checkpoint",
            )
        self._task = load_task(spec.task)
        self._window = WindowSpec(window=spec.window, overlap=0.0)
        self._there = [i for i, channel in enumerate(spec.channels) if channel is not None]
        places = [channel for channel in spec.channels if channel is not None]
        self._read = VolumeReader(shards, places, spec.label, spec.intensity)
        self._fitted = spec.fitted[rank::world]
        self._scored = spec.scored[rank::world]

    @torch.inference_mode()
    def at(self, engine: Engine) -> tuple[dict[str, float], float]:
        """Mean Dice over the scored subjects, `probe/dice_<region>` and `probe/dice_mean`; and the seconds it
        took.

        As in validation, a region that a subject does not have is left out, and the mean is that of the
        subjects' means over regions. A figure nobody has a region for is not there.
        """
        began = time.perf_counter()
        network: Any = engine.best
        # A copy: nothing of the network in training is touched, and on a CPU its attention may be the fast
        # one, of the same numbers.
        encoder = copy.deepcopy(network.swinViT).eval()
        install_attention(encoder, "segments")
        found = self._look(encoder, engine)
        return found, time.perf_counter() - began

    def _look(self, encoder: Any, engine: Engine) -> dict[str, float]:
        regions, device = self._task.regions, engine.device
        moments = Moments(FEATURES * encoder.embed_dim, len(regions), device)
        for x_CDHW, truth_RDHW, _ in self._volumes(self._fitted, device):
            for place in self._places(x_CDHW):
                with engine.autocast():
                    found_1Kdhw = features(encoder, x_CDHW[place][None])
                moments.add(found_1Kdhw, to_cells(truth_RDHW[place][None]))
        _add_up(moments.sums)
        if not moments.cells:
            return {}
        head = LinearProbe(encoder, *moments.solve())

        counts_R2L = torch.zeros(len(regions), 2, LEVELS, dtype=torch.int64, device=device)
        for tallied in self._tallies(self._fitted, head, engine):
            counts_R2L += tallied
        _add_up(counts_R2L)
        level_R1 = dice_by_level(counts_R2L).nan_to_num(0.0).argmax(dim=1, keepdim=True)

        sums = torch.zeros(2, len(regions) + 1, dtype=torch.float64, device=device)
        for tallied in self._tallies(self._scored, head, engine):
            dice_R = dice_by_level(tallied).gather(1, level_R1)[:, 0]
            scores = torch.cat([dice_R, dice_R.nanmean(dim=0, keepdim=True)])
            sums += torch.stack([scores.nan_to_num(0.0), (~scores.isnan()).double()])
        _add_up(sums)
        means = (sums[0] / sums[1]).tolist()
        names = [*(region.name for region in regions), "mean"]
        return {f"probe/dice_{n}": m for n, m in zip(names, means, strict=True) if not math.isnan(m)}

    def _tallies(self, sessions: Sequence[Session], head: LinearProbe, engine: Engine) -> Iterator[Tensor]:
        """Counts of each subject's voxels by level of their score."""
        for x_CDHW, truth_RDHW, outside_R in self._volumes(sessions, engine.device):
            with engine.autocast():
                scores_RDHW = sliding_window(head, x_CDHW[None], self._window)[0]
            counts_R2L = tally(scores_RDHW, truth_RDHW)
            counts_R2L[:, 1, 0] += outside_R
            yield counts_R2L

    def _places(self, x_CDHW: Tensor) -> Iterator[tuple[slice, ...]]:
        """The windows of a volume."""
        for start in window_starts(x_CDHW.shape[1:], self._window):
            yield (slice(None), *(slice(a, a + n) for a, n in zip(start, self._window.window, strict=True)))

    def _volumes(
        self, sessions: Sequence[Session], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Network input (C, D, H, W) and regions (R, D, H, W) of whole windows around each subject's brain,
        and the voxels (R,) of each region that lie elsewhere."""
        for session in sessions:
            try:
                x_CDHW, box, labels_DHW = self._read(session)
            except (OSError, DataError) as error:  # a look at others' scans must not stop a training
                log.warning("the probe leaves a subject out for now: %s", error)
                continue
            assert labels_DHW is not None
            given = torch.from_numpy(labels_DHW)[None].to(device)
            regions_RDHW = self._task.to_regions(given, self.spec.scheme)[0]
            whole_CDHW = x_CDHW.new_zeros(len(self.spec.channels), *x_CDHW.shape[1:])
            whole_CDHW[self._there] = x_CDHW
            sides = reversed(list(zip(session.shape, self.spec.window, strict=True)))
            pad = [n for side, window in sides for n in (0, max(window - side, 0))]  # the last axis first
            whole_CDHW, padded_RDHW = F.pad(whole_CDHW.to(device), pad), F.pad(regions_RDHW, pad)
            lo, hi = window_box(box, whole_CDHW.shape[1:], self._window)
            cut = (slice(None), *(slice(a, b) for a, b in zip(lo, hi, strict=True)))
            inside_RDHW = padded_RDHW[cut]
            outside_R = (regions_RDHW.sum((1, 2, 3)) - inside_RDHW.sum((1, 2, 3))).long()
            yield whole_CDHW[cut], inside_RDHW, outside_R


def _add_up(values: Tensor) -> None:
    """The sum over all workers, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
