"""The probe: a linear head whose sums are exact, of the right people, that leaves the training as it is."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.models import EncoderSpec, build_encoder
from brainfoundry.pretext.base import load_objective
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.resplit import resplit
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.tasks.overlap import dice
from brainfoundry.training.config import OptimConfig, PretrainConfig, ProbeConfig
from brainfoundry.training.engine import Engine
from brainfoundry.training.presets import DEMO
from brainfoundry.training.probe import Probe
from brainfoundry.training.probe_features import (
    CELL,
    FEATURES,
    LEVELS,
    RIDGE,
    LinearProbe,
    Moments,
    dice_by_level,
    features,
    tally,
    to_cells,
)
from brainfoundry.training.probe_spec import ProbeSpec, resolve_probe
from brainfoundry.training.report import announce
from brainfoundry.training.resolve import resolve_task
from brainfoundry.training.runs import default_name, find_place
from brainfoundry.training.tracking.figures import loss_figure
from tests.store.builders import brain, brats_intake, nifti, put_brats
from tests.training.batches import make_batch
from tests.training.labelled import tumour, with_shares

CPU = torch.device("cpu")
CROP = (64, 32, 32)
BRIGHT = ConvertSpec(min_slices=10, rows_per_shard=4, n_val=2)


# ---------------------------------------------------------------------------------------------------------
# Features, head, Dice


def test_features_are_the_hidden_states_on_one_grid() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSpec(size="nano", in_channels=2)).eval()
    x = torch.randn(2, 2, *CROP)
    with torch.no_grad():
        found, states = features(encoder, x), encoder(x)
    assert found.shape == (2, FEATURES * encoder.embed_dim, *(side // CELL for side in CROP))
    first, second, third = found.split([12, 24, 372 - 36], dim=1)
    torch.testing.assert_close(first, torch.nn.functional.avg_pool3d(states[0], 2))
    assert torch.equal(second, states[1])
    whole = torch.nn.functional.interpolate(states[4], size=found.shape[2:], mode="trilinear")
    torch.testing.assert_close(third[:, -192:], whole)


def test_the_head_is_the_ridge_regression_of_all_cells() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, [1.0, 5.0, 0.1], (640, 3)) @ rng.normal(size=(3, 3))
    y = np.stack([x @ [0.3, -1, 2] + rng.normal(size=640), rng.normal(size=640)], axis=1)
    moments = Moments(3, 2, CPU)
    cells = [torch.tensor(a, dtype=torch.float32).T.reshape(1, -1, 16, 8, 5) for a in (x, y)]
    for part in range(4):  # crop by crop
        moments.add(*(c[:, :, part * 4 : part * 4 + 4] for c in cells))
    assert moments.cells == 640
    weights, bias = moments.solve()
    scaled = (x - x.mean(0)) / x.std(0)
    penalty = RIDGE * 640 * np.eye(3)
    expected = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (y - y.mean(0))).T / x.std(0)
    np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, y.mean(0) - expected @ x.mean(0), rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_changes_gets_no_say() -> None:
    moments = Moments(2, 1, CPU)
    varied = torch.arange(512.0).view(1, 1, 8, 8, 8) / 512
    moments.add(torch.cat([varied, torch.full_like(varied, 3.0)], dim=1), varied)
    weights, bias = moments.solve()
    assert torch.isfinite(weights).all() and torch.isfinite(bias).all()
    assert abs(float(weights[0, 0]) - 1) < 0.02 and abs(float(weights[0, 1])) < 1e-3


def test_sums_of_workers_are_the_sum_of_all() -> None:
    torch.manual_seed(0)
    found, shares = torch.randn(4, 3, 4, 4, 4), torch.rand(4, 2, 4, 4, 4)
    whole, one, two = (Moments(3, 2, CPU) for _ in range(3))
    whole.add(found, shares)
    one.add(found[:1], shares[:1])
    two.add(found[1:], shares[1:])
    torch.testing.assert_close(one.sums + two.sums, whole.sums, rtol=1e-6, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.integers(0, LEVELS - 1))
def test_dice_at_a_level_is_the_dice_of_what_reaches_it(seed: int, level: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.uniform(-0.3, 1.3, (2, 6, 5, 4)), dtype=torch.float32)
    truth = torch.tensor(rng.integers(0, 2, (2, 6, 5, 4)), dtype=torch.float32)
    found = dice_by_level(tally(scores, truth))
    assert found.shape == (2, LEVELS)
    marked = (scores * LEVELS).clamp(0, LEVELS - 1).floor() >= level
    for region in range(2):
        expected = dice(truth[region].numpy(), marked[region].numpy())
        assert float(found[region, level]) == pytest.approx(expected)


def test_a_region_nobody_has_has_no_dice() -> None:
    truth = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 4, 4, 4)
    found = dice_by_level(tally(torch.rand(2, 4, 4, 4), truth))
    assert not found[0].isnan().any() and found[1].isnan().all()


def test_scores_are_float32_and_of_every_voxel_under_autocast() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSpec(size="nano")).eval()
    head = LinearProbe(encoder, torch.randn(3, 372) / 20, torch.tensor([0.0, 5.0, -5.0]))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(torch.randn(1, 1, *CROP))
    assert scores.shape == (1, 3, *CROP) and scores.dtype == torch.float32
    assert scores[:, 1].mean() > 3 and scores[:, 2].mean() < -3
    assert to_cells(torch.ones(1, 2, *CROP)).shape == (1, 2, 16, 8, 8)


# ---------------------------------------------------------------------------------------------------------
# Who is looked at


@pytest.fixture
def config(small_shards: str, labelled_shards: str, tmp_path: Path) -> PretrainConfig:
    """A run on healthy T1w and FLAIR, with a probe on the tumours."""
    return replace(
        DEMO,
        storage=str(tmp_path),
        data=replace(DEMO.data, shards=small_shards),
        probe=ProbeConfig(shards=labelled_shards, every=2, subjects=3, test_subjects=2),
        tracking=replace(DEMO.tracking, uri=f"sqlite:///{tmp_path}/mlflow.db"),
    )


def resolved(config: PretrainConfig, *shown: str) -> ProbeSpec:
    found = resolve_probe(config, shown or ("T1w", "FLAIR"), ShardSet.open(str(config.data.shards)))
    assert found is not None
    return found


def names(sessions: Any) -> list[str]:
    return sorted(session.subject[-1] for session in sessions)


def test_the_head_is_fitted_on_train_and_scored_on_val(config: PretrainConfig) -> None:
    spec = resolved(config)
    assert len(spec.fitted) == 3 and set(names(spec.fitted)) <= set("1234567")
    assert names(spec.scored) == ["8"] and spec.scored_split == "val"
    assert (spec.task, spec.scheme) == ("brats", "brats2021")
    assert (spec.intensity, spec.window) == ("zscore_nonzero", CROP)
    assert spec.channels == (1, 0)  # FLAIR, T1w there; T1w, FLAIR here
    more = resolved(replace(config, probe=replace(config.probe, subjects=5)))
    assert set(names(spec.fitted)) < set(names(more.fitted))  # a larger number only adds


def test_without_a_val_split_further_training_subjects_are_scored(
    config: PretrainConfig, labelled_shards: str, tmp_path: Path
) -> None:
    uri = with_shares(labelled_shards, tmp_path)
    parts = {f"BraTS2021_0000{i}": ("test" if i == 9 else "train", None) for i in range(1, 10)}
    resplit(uri, parts, {"method": "by hand"})
    spec = resolved(replace(config, probe=replace(config.probe, shards=uri, test_subjects=16)))
    assert spec.scored_split == "train" and len(spec.scored) == 5
    assert not set(names(spec.fitted)) & set(names(spec.scored))
    assert "9" not in names(spec.fitted + spec.scored)  # of the test split, never


def test_nobody_of_a_guarded_set_or_of_the_held_out_fold_is_looked_at(
    config: PretrainConfig, labelled_shards: str
) -> None:
    wide = replace(config, probe=replace(config.probe, subjects=9))
    guarded = replace(wide, data=replace(config.data, guard=(f"{labelled_shards}#fold=1",)))
    assert names(resolved(guarded).fitted) == ["2", "3", "5", "6"]  # 1, 4, 7 are fold 1
    own = replace(wide, data=replace(config.data, shards=labelled_shards, fold=0))
    assert names(resolved(own).fitted) == ["1", "2", "4", "5", "7"]
    other = replace(wide, data=replace(config.data, guard=(f"{config.data.shards}#split=val",)))
    assert len(resolved(other).fitted) == 7  # other people, whatever their ids
    everybody = tuple(f"{labelled_shards}#fold={i}" for i in range(3))
    with pytest.raises(ConfigError, match=r"0 labelled subjects to fit on.*7 barred as test subjects"):
        resolved(replace(wide, data=replace(config.data, guard=everybody)))


def test_channels_are_matched_by_name(config: PretrainConfig) -> None:
    spec = resolved(config, "T2w", "T1w")
    assert spec.channels == (None, 1) and "it has no T2w: 0 throughout" in spec.line()
    assert resolved(config, "T1w", "T1w").channels == (1, 1)  # one channel fed by another
    with pytest.raises(ConfigError, match=r"has FLAIR, T1w, the run shows its network T2w, PD .*Fix"):
        resolved(config, "T2w", "PD")


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        ({"task": "atlas"}, "--probe.task: task 'atlas' does not understand masks"),
        ({"task": "hearts"}, "task 'hearts' does not exist"),
        ({"shards": "nowhere"}, "no shard set here"),
        ({"subjects": 0}, "--probe.subjects is 0. Fix: give 1 or more"),
        ({"test_subjects": 0}, "--probe.test-subjects is 0"),
        ({"every": -1}, "--probe.every is -1"),
    ],
)
def test_impossible_probes_are_refused_before_anything_starts(
    config: PretrainConfig, probe: dict[str, Any], says: str
) -> None:
    config = replace(config, probe=replace(config.probe, **probe))
    with pytest.raises((ConfigError, DataError), match=says):
        config.check()
        resolved(config)


def test_a_set_without_masks_is_refused(config: PretrainConfig, small_shards: str) -> None:
    with pytest.raises(ConfigError, match="the probe's shard set has no masks"):
        resolved(replace(config, probe=replace(config.probe, shards=small_shards)))


def test_a_resolved_run_says_so_on_its_card_and_in_its_announcement(
    config: PretrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardSet.open(str(config.data.shards))
    place = find_place(config, str(config.storage), shards.meta.manifest_hash)
    task = resolve_task(config, shards, place)
    assert task.probe is not None
    card = task.card["probe"]
    assert (card["cohort"], card["fitted"], card["scored"], card["scored_split"]) == ("brats", 3, 1, "val")
    assert card["manifest_hash"] == ShardSet.open(str(config.probe.shards)).meta.manifest_hash
    announce(task, shards, place)
    said = capsys.readouterr().out
    assert "probe:       at the start, every 2 steps and at the end: linear head on 3 labelled" in said
    assert "to choose by it is to choose on them" in said
    plain = resolve_task(replace(config, probe=ProbeConfig()), shards, place)
    assert plain.probe is None and plain.card["probe"] == {}


def test_a_probe_does_not_make_it_another_run(config: PretrainConfig) -> None:
    assert default_name(config, "m") == default_name(replace(config, probe=ProbeConfig()), "m")


# ---------------------------------------------------------------------------------------------------------
# The look


def engine_of(**optim: Any) -> Engine:
    torch.manual_seed(0)
    objective = load_objective("masked_autoencoder")()
    network = objective.network(EncoderSpec(size="nano", in_channels=2)).train()
    settings: dict[str, Any] = {"steps": 100, "warmup": 0, "lr": 1e-3, "precision": "fp32", **optim}
    return Engine(network, objective, OptimConfig(**settings), "zscore_nonzero", CPU)


@pytest.fixture(scope="module")
def bright_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six cases whose tumours can be seen: far brighter than the brain, in both scans."""
    folder = tmp_path_factory.mktemp("bright")
    for case in range(1, 7):
        mask = tumour(case)
        subject = put_brats(folder / "brats", case, mask)
        for kind in ("flair", "t1"):
            data = brain(case) + np.where(mask > 0, 3_000, 0).astype(np.int16)
            packed = gzip.compress(nifti(data), 1, mtime=0)
            (folder / "brats" / subject / f"{subject}_{kind}.nii.gz").write_bytes(packed)
    convert(brats_intake(folder / "brats"), str(folder / "shards"), BRIGHT, executor=inline)
    return str(folder / "shards")


@pytest.fixture
def bright(config: PretrainConfig, bright_shards: str) -> ProbeSpec:
    return resolved(replace(config, probe=replace(config.probe, shards=bright_shards)))


def test_what_can_be_seen_is_found_and_what_cannot_is_not(bright: ProbeSpec, config: PretrainConfig) -> None:
    engine = engine_of()
    found, seconds = Probe(bright, rank=0, world=1).at(engine)
    assert set(found) == {f"probe/dice_{name}" for name in ("tc", "wt", "et", "mean")} and seconds > 0
    assert found["probe/dice_wt"] > 0.7
    invisible, _ = Probe(resolved(config), rank=0, world=1).at(engine)
    assert invisible["probe/dice_wt"] < 0.3
    again, _ = Probe(bright, rank=0, world=1).at(engine)
    assert again == found


def test_it_leaves_the_training_as_it_is(bright: ProbeSpec) -> None:
    ends = []
    for probed in (False, True):
        engine, probe = engine_of(ema=0.5), Probe(bright, rank=0, world=1)
        records = []
        for step in range(2):
            records.append(engine.step(step, make_batch(step, 1)))
            if probed:
                random = torch.get_rng_state()
                probe.at(engine)
                assert torch.equal(torch.get_rng_state(), random) and engine.bare.training
                assert all(p.grad is None for p in engine.bare.parameters())
        state = {**engine.bare.state_dict(), **{f"ema.{k}": v for k, v in engine.best.state_dict().items()}}
        ends.append((torch.stack(records), state))
    (records, state), (probed_records, probed_state) = ends
    assert torch.equal(records, probed_records)
    assert all(torch.equal(value, probed_state[name]) for name, value in state.items())


def test_it_looks_at_the_averaged_weights(bright: ProbeSpec) -> None:
    averaged, plain = engine_of(ema=0.999), engine_of()
    for engine in (averaged, plain):
        for step in range(2):
            engine.step(step, make_batch(step, 1))
    probe = Probe(bright, rank=0, world=1)
    assert all(torch.equal(v, plain.bare.state_dict()[k]) for k, v in averaged.bare.state_dict().items())
    assert probe.at(averaged)[0] != probe.at(plain)[0]


def test_a_channel_the_set_does_not_have_is_0(bright: ProbeSpec) -> None:
    probe = Probe(replace(bright, channels=(None, 0)), rank=0, world=1)
    shown, truth, outside = next(probe._volumes(bright.fitted, CPU))
    assert not shown[0].any() and shown[1].any()
    assert all(side >= window for side, window in zip(shown.shape[1:], CROP, strict=True))
    assert truth.shape == (3, *shown.shape[1:]) and truth.sum() > 0 and not outside.any()
    assert "probe/dice_wt" in probe.at(engine_of())[0]


def test_a_region_outside_the_windows_counts_as_missed(
    bright: ProbeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe(bright, rank=0, world=1)
    plain, _ = probe.at(engine_of())
    volumes = probe._volumes

    def with_rest(*args: Any) -> Iterator[Any]:
        for shown, truth, outside in volumes(*args):
            yield shown, truth, outside + 5_000

    monkeypatch.setattr(probe, "_volumes", with_rest)
    assert probe.at(engine_of())[0]["probe/dice_wt"] < 0.6 * plain["probe/dice_wt"]


def test_a_subject_that_cannot_be_read_is_left_out_with_a_warning(
    bright: ProbeSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probe = Probe(bright, rank=0, world=1)
    read = probe._read
    gone = bright.fitted[0].subject

    def reader(session: Any) -> Any:
        if session.subject == gone:
            raise DataError("shard is damaged", file="here", fix="restore it")
        return read(session)

    monkeypatch.setattr(probe, "_read", reader)
    assert probe.at(engine_of())[0]["probe/dice_wt"] > 0.5
    assert "the probe leaves a subject out for now" in caplog.text
    monkeypatch.setattr(probe, "_read", lambda session: (_ for _ in ()).throw(OSError("no route")))
    assert probe.at(engine_of())[0] == {}


def test_a_set_changed_since_submission_is_refused(bright: ProbeSpec) -> None:
    with pytest.raises(DataError, match="probe's shard set has changed since this job was submitted"):
        Probe(replace(bright, manifest_hash="0"), rank=0, world=1)


def test_the_figure_of_the_losses_shows_it() -> None:
    steps = [{"step": float(i), "train/total": 1 / i, "train/lr": 1e-3} for i in range(1, 5)]
    looks = [{"step": 0.0, "probe/dice_wt": 0.1, "probe/dice_mean": 0.1}, {"step": 4.0, "probe/dice_wt": 0.4}]
    plain, probed = (loss_figure(rows, title="run") for rows in (steps, [*steps, *looks]))
    heights = [int.from_bytes(png[20:24], "big") for png in (plain, probed)]
    assert heights[1] > heights[0] and not math.isclose(len(plain), len(probed))
