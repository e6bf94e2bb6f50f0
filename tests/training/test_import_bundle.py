"""A Model-Zoo bundle as a checkpoint of ours: evaluated with channels by name, refused by the leak gate."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import SegResNet
from monai.transforms import NormalizeIntensity

from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.models.bundle import Bundle, read_bundle
from brainfoundry.prediction.models import load_check, space_of
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks import load_task
from brainfoundry.training.checkpoint import read_card
from brainfoundry.training.ensemble import find_models, window_of
from brainfoundry.training.evaluation import evaluate
from brainfoundry.training.evaluation_spec import volumes_of
from brainfoundry.training.import_bundle import import_bundle
from brainfoundry.training.volumes import VolumeSpec, load_segmenter
from tests.conftest import ROOT
from tests.models.bundles import put_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two channels, in the other order than the shard set's FLAIR, T1w."""
    made = tmp_path_factory.mktemp("zoo") / "brats_mri_segmentation"
    put_bundle(made, ("T1", "FLAIR"))
    return made


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return read_bundle(str(folder))


@pytest.fixture(scope="module")
def run(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundle as a run for scans of their own voxel size, as the tiny cohort's are."""
    run = str(tmp_path_factory.mktemp("runs") / "zoo")
    import_bundle(bundle, run, scheme="brats2021", spacing_mm=None)
    return run


def spec_of(run: str, shards: str, *, allow_leak: bool) -> tuple[VolumeSpec, list[str]]:
    """As `jobs/evaluate.py` asks."""
    models = find_models([run])
    return volumes_of(
        models, shards, split="test", fold=None, limit=None, allow_leak=allow_leak,
        window=WindowSpec(window=window_of(models, None), mode="exact"),
    )[:2]  # fmt: skip


def test_the_card_says_what_it_must_be_shown(bundle: Bundle, tmp_path: Path) -> None:
    uri = import_bundle(bundle, str(tmp_path / "run"), scheme="brats2023")
    card = read_card(uri)
    assert (card.stage, card.family, card.label) == ("finetune", "bundle", "bundle")
    assert card.family_options == {"network": bundle.network}
    assert card.modalities == ("T1w", "FLAIR") and card.intensity == "zscore_nonzero"
    assert card.task == {"name": "brats", "scheme": "brats2023", "regions": ["tc", "wt", "et"]}
    assert card.spacing_mm == 1.0 and card.crop == (64, 32, 32)  # its window of 60x32x32, rounded up
    assert (card.space, card.skull_stripped, card.orientation) == ("SRI24", True, "RAS")
    assert card.init["weights_sha256"] == bundle.weights_sha256 and "brats2018" in card.init["trained_on"]
    wider = import_bundle(bundle, str(tmp_path / "b"), scheme="brats2021", window=(96, 96, 64))
    assert read_card(wider).crop == (96, 96, 64)


def test_the_network_answers_as_the_bundles_does(bundle: Bundle, run: str) -> None:
    (model,) = find_models([run])
    network, _ = load_segmenter(model.uri)
    assert isinstance(network, SegResNet) and not network.training
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), bundle.build().eval()(x))


def test_nobody_can_prove_whom_it_has_seen(run: str, labelled_shards: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"cannot prove whom.*no table.*--allow-leak goes on and says so"
    ):
        spec_of(run, labelled_shards, allow_leak=False)
    _, (note,) = spec_of(run, labelled_shards, allow_leak=True)
    assert note.startswith("LEAK NOT EXCLUDED: nobody can tell which of the 1 subjects (split test)")


def test_it_is_evaluated_with_its_channels_by_name(
    bundle: Bundle, run: str, labelled_shards: str, tmp_path: Path
) -> None:
    shards = ShardSet.open(labelled_shards)
    assert tuple(shards.meta.modalities) == ("FLAIR", "T1w")
    spec, notes = spec_of(run, labelled_shards, allow_leak=True)
    assert spec.channels == (1, 0)
    (model,) = find_models([run])
    found = evaluate([model.uri], spec, str(tmp_path), title="zoo", lead="", pictures=1, notes=notes)
    assert "LEAK NOT EXCLUDED" in Path(found.page).read_text()

    # As the bundle would: its channels in its order, MONAI's inferer, a half as threshold.
    (session,) = spec.sessions
    scans = [shards.read_volume(session.shard, session.row, name) for name in ("T1w", "FLAIR")]
    x_CDHW = NormalizeIntensity(nonzero=True, channel_wise=True)(np.stack(scans).astype(np.float32))
    with torch.no_grad():
        logits = sliding_window_inference(
            torch.as_tensor(x_CDHW)[None], spec.window.window, 1, bundle.build().eval(), mode="gaussian"
        )
    assert shards.label_channel is not None
    truth = shards.read_crop(
        session.shard, session.row, (0, 0, 0), session.shape, channels=[shards.label_channel]
    )[0]
    task = load_task("brats")
    labels = task.to_labels((logits[0].sigmoid() > 0.5).numpy(), "brats2021")
    scores = task.score(truth, labels, session.spacing, "brats2021")
    for metric in ("dice_tc", "dice_wt", "dice_mean_challenge"):
        assert found.table.column(metric)[0] == pytest.approx(scores[metric], abs=1e-4), metric
    assert scores["dice_wt"] > 0


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_another_voxel_size_is_refused(
    bundle: Bundle, labelled_shards: str, spacing: float, tmp_path: Path
) -> None:
    import_bundle(bundle, str(tmp_path / "run"), scheme="brats2021", spacing_mm=spacing)
    with pytest.raises(ConfigError, match=f"trained at voxels of {spacing:g} mm"):
        spec_of(str(tmp_path / "run"), labelled_shards, allow_leak=True)


def test_prediction_demands_its_modalities(run: str) -> None:
    models = find_models([run])
    load_check(models)
    space = space_of(models[0].card)
    assert space.modalities == ("T1w", "FLAIR") and space.skull_stripped and space.template == "SRI24"


def test_what_cannot_be_imported(bundle: Bundle, run: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is a run already"):
        import_bundle(bundle, run, scheme="brats2021")
    with pytest.raises(ConfigError, match="does not understand masks of the label scheme 'binary'"):
        import_bundle(bundle, str(tmp_path / "a"), scheme="binary")
    put_bundle(tmp_path / "turned", ("T1", "FLAIR"), ("Whole tumor", "Tumor core", "Enhancing tumor"))
    with pytest.raises(CheckpointError, match="maps are wt, tc, et, the task's tc, wt, et"):
        import_bundle(read_bundle(str(tmp_path / "turned")), str(tmp_path / "b"), scheme="brats2021")
    assert not (tmp_path / "b").exists()


def job(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Exit status of the job, run in this process: starting one costs seconds."""
    script = str(ROOT / "jobs" / "import_bundle.py")
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    return int(end.value.code or 0)


def test_the_job(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert job(monkeypatch, "--bundle", str(folder), "--out", out, "--spacing-mm", "None") == 0
    told = capsys.readouterr().out
    assert "channels:   T1w, FLAIR" in told and "evaluate it with --allow-leak" in told
    assert find_models([out])[0].card.spacing_mm is None
    assert job(monkeypatch) == 2


def test_the_job_prints_the_table_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_bundle(tmp_path / "b", ("T1", "FLAIR"))
    torch.save({"convOther.weight": torch.zeros(2)}, tmp_path / "b" / "models" / "model.pt")
    assert job(monkeypatch, "--bundle", str(tmp_path / "b"), "--out", str(tmp_path / "run")) == 1
    first, *table = capsys.readouterr().err.splitlines()
    assert first.startswith("error: the bundle's weights are not those of its network (SegResNet): ")
    assert any("convOther.weight" in line for line in table) and table[-1].startswith("keys: ")
