"""Which modalities a crop's session has, from the scans to the loss, over Ray Data and read directly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from brainfoundry.models import EncoderSpec
from brainfoundry.pretext import load_objective
from brainfoundry.pretext.intensity import RULES, normalise
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.stream.batch import CropBatch, read_batch
from brainfoundry.stream.pipeline import FetchOptions, Share, pipeline
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.steps import iter_steps
from tests.store.builders import brain, intake, nifti, put

SPEC = PlanSpec(seed=3, crop=(64, 32, 32), groups_per_step=1, frame="box")
STEPS = 4
LACKS = {"9900002": 1, "9900004": 0}
"""Subject -> the channel it has no scan of."""


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four participants: the second without a FLAIR, the fourth without a T1w."""
    folder = tmp_path_factory.mktemp("gappy")
    for eid in range(9_900_001, 9_900_005):
        scans = {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500, top=700))}
        lacks = LACKS.get(str(eid))
        put(folder / "ukb", eid, {name: s for i, (name, s) in enumerate(scans.items()) if i != lacks})
    manifest = intake(folder / "ukb", optional=("T1w", "FLAIR"))
    convert(manifest, str(folder / "set"), ConvertSpec(min_slices=30, rows_per_shard=3), executor=inline)
    return str(folder / "set")


def direct(uri: str, channels: tuple[int, ...] = (0, 1)) -> list[CropBatch]:
    shards = ShardSet.open(uri)
    plan = Plan.open(uri, SPEC)
    return [read_batch(shards, plan.rows(step, step + 1), channels) for step in range(STEPS)]


def streamed(uri: str, start: int) -> Iterator[CropBatch]:
    share = Share(shards=uri, spec=SPEC, channels=(0, 1), start_step=start, stop_step=STEPS)
    return iter_steps(
        pipeline(share, FetchOptions(rows_per_chunk=8)),
        rows_per_step=SPEC.crops_per_group,
        first_step=start,
        crops_per_group=SPEC.crops_per_group,
        prefetch=1,
        stop_step=STEPS,
    )


def test_the_mask_says_what_each_crop_has(gappy: str) -> None:
    seen = set()
    for batch in direct(gappy):
        assert batch.present_NC.dtype == torch.bool and batch.present_NC.shape == (4, 2)
        for subject, present, codes in zip(batch.subjects, batch.present_NC, batch.codes_NCDHW, strict=True):
            seen.add(subject)
            lacks = LACKS.get(subject)
            assert present.tolist() == [channel != lacks for channel in (0, 1)]
            assert lacks is None or not codes[lacks].any()
    assert seen == {f"990000{i}" for i in range(1, 5)}
    (swapped, *_), (whole, *_) = direct(gappy, (1, 0)), direct(gappy)
    assert torch.equal(swapped.present_NC, whole.present_NC.flip(1))
    assert torch.equal(direct(gappy, (1,))[0].present_NC, whole.present_NC[:, 1:])


def test_the_mask_moves_and_is_cut_with_the_batch(gappy: str) -> None:
    shards = ShardSet.open(gappy)
    spec = PlanSpec(seed=3, crop=(64, 32, 32), groups_per_step=2, frame="box")
    batch = read_batch(shards, Plan.open(gappy, spec).rows(0, 1), (0, 1))
    part = batch.groups(1, 2)
    assert torch.equal(part.present_NC, batch.present_NC[4:]) and len(part) == 4
    assert batch.to("meta").present_NC.device.type == "meta"


def test_ray_delivers_the_same_mask_also_after_a_resume(gappy: str, ray_local: int) -> None:
    expected = direct(gappy)
    for start in (0, 2):
        found = list(streamed(gappy, start))
        assert [batch.step for batch in found] == list(range(start, STEPS))
        for a, b in zip(found, expected[start:], strict=True):
            assert a.subjects == b.subjects and torch.equal(a.present_NC, b.present_NC)
            assert torch.equal(a.codes_NCDHW, b.codes_NCDHW)
    masks = torch.cat([batch.present_NC for batch in expected])
    assert masks.any(dim=1).all() and not masks.all(dim=0).any()  # both gaps met


@pytest.mark.parametrize("rule", RULES)
def test_from_ray_to_a_loss_that_leaves_absent_modalities_out(gappy: str, ray_local: int, rule: str) -> None:
    found = load_objective("inpaint_rotate_contrast")
    pretext = found(found.Config())
    torch.manual_seed(0)
    network = pretext.network(EncoderSpec(size="nano", in_channels=2))
    batch = next(b for b in streamed(gappy, 0) if not b.present_NC.all())
    x_NCDHW, saturated = normalise(batch, rule)
    assert torch.isfinite(x_NCDHW).all() and torch.isfinite(saturated)
    assert not x_NCDHW[~batch.present_NC].any() and x_NCDHW[batch.present_NC].any()
    args = network, x_NCDHW, batch.seeds_N, batch.crops_per_group
    masked = pretext.loss(*args, present_NC=batch.present_NC)
    masked["total"].backward()
    assert all(torch.isfinite(loss) for loss in masked.values())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert masked["reconstruction"] != pretext.loss(*args)["reconstruction"]
