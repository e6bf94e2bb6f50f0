"""Whole volumes: who is scored, what the network is shown, and scores that a perfect network would get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brainfoundry.core.errors import CheckpointError
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.pretext.intensity import normalise
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import read_batch
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.training.evaluation import shared_out
from brainfoundry.training.volumes import (
    VolumeReader,
    VolumeSpec,
    load_segmenter,
    score_sessions,
    sessions_of,
)
from tests.training.labelled import tumour
from tests.training.test_checkpoint import MODEL, STATE, card


def test_sessions_of_splits_and_folds(labelled_shards: str) -> None:
    shards = ShardSet.open(labelled_shards)

    def names(**options: object) -> list[str]:
        return [s.subject[-1] for s in sessions_of(shards, **options)]  # type: ignore[arg-type]

    assert names(split="train") == list("1234567") and names(split="val") == ["8"]
    assert names(split="held_out", fold=0) == ["3", "6"] and names(split="train", fold=0) == list("12457")
    few, more = names(split="train", limit=3), names(split="train", limit=5)
    assert len(few) == 3 and set(few) < set(more)


@pytest.mark.parametrize("rule", ["zscore_nonzero", "ct_window", "zscore_crop"])
def test_a_volume_is_read_as_a_crop_of_it_would_be(labelled_shards: str, rule: str) -> None:
    shards = ShardSet.open(labelled_shards)
    (session,) = sessions_of(shards, split="val")
    x_CDHW, box, labels = VolumeReader(shards, (1, 0), shards.label_channel, rule)(session)
    assert labels is not None and (labels == tumour(8)[::-1]).all()  # LAS file, RAS voxels
    spec = PlanSpec(
        seed=0,
        crop=(32, 32, 32),
        groups_per_step=1,
        frame="box",
        split="val",
        subjects_per_group=1,
        crops_per_subject=1,
    )
    rows = Plan.from_index(shards.index, spec).rows(0, 1)
    crop, _ = normalise(read_batch(shards, rows, (1, 0)), rule)
    corner = rows["corner"][0].as_py()
    part = tuple(slice(c, c + 32) for c in corner)
    if rule != "zscore_crop":  # there the statistics are the crop's own
        assert torch.equal(crop[0], x_CDHW[(slice(None), *part)])
    brain = (shards.read_volume(session.shard, session.row, "FLAIR") != 0).nonzero()
    assert box == (tuple(a.min() for a in brain), tuple(a.max() + 1 for a in brain))


class Oracle(nn.Module):
    """Marks what a table of volumes says, whatever it is shown: a network that knows the truth."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[None, :, : x.shape[2], : x.shape[3], : x.shape[4]]


def test_scores_of_a_network_that_knows(labelled_shards: str) -> None:
    shards = ShardSet.open(labelled_shards)
    sessions = sessions_of(shards, split="test")  # without enhancing tumour
    truth = tumour(9)[::-1]
    regions = np.stack([np.isin(truth, (1, 4)), truth > 0, truth == 4]).astype(np.float32)
    padded = np.zeros((3, 64, 64, 64), np.float32)  # the window, with the volume in its middle
    d, h, w = ((64 - n) // 2 for n in truth.shape)
    padded[:, d : d + truth.shape[0], h : h + truth.shape[1], w : w + truth.shape[2]] = regions
    spec = VolumeSpec(
        shards=shards.uri, sessions=sessions, channels=(0, 1), label=2, task="brats", scheme="brats2021",
        intensity="zscore_nonzero", window=WindowSpec(window=(64, 64, 64), mode="exact"),
    )  # fmt: skip
    network = Oracle(torch.from_numpy(padded) * 20 - 10)
    (scored,) = score_sessions([network], spec, sessions, device=torch.device("cpu"))
    assert (scored.prediction_DHW == truth).all()
    assert scored.scores["dice_wt"] == scored.scores["dice_tc"] == 1.0
    assert np.isnan(scored.scores["dice_et"]) and scored.scores["dice_et_challenge"] == 1.0
    assert scored.scores["hd95_wt"] == 0.0


def test_a_pretrained_checkpoint_cannot_segment(tmp_path: Path) -> None:
    from brainfoundry.training import checkpoint

    uri = checkpoint.save(str(tmp_path), card(), MODEL, STATE)
    with pytest.raises(CheckpointError, match=r"stage pretrain-1 cannot segment.*finetune_brats"):
        load_segmenter(uri)


@given(cores=st.integers(0, 512))
def test_scorers_never_have_more_threads_than_cores(cores: int) -> None:
    count, threads = shared_out(cores)
    assert count >= 1 and threads >= 1 and count * threads <= max(1, cores)
    assert count * threads > cores - 4  # and leave few idle
