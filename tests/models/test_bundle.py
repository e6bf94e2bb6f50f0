"""Bundles of MONAI's Model Zoo: read by name, nothing in them run, and what does not fit refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.core.errors import CheckpointError, DataError
from brainfoundry.models.bundle import read_bundle
from brainfoundry.models.keys import KeysError
from tests.models.bundles import arguments, inference, put_bundle


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_bundle_is_read_by_name(suffix: str, tmp_path: Path) -> None:
    network = put_bundle(tmp_path / "brats_mri_segmentation", suffix=suffix)
    bundle = read_bundle(str(tmp_path / "brats_mri_segmentation"))
    assert bundle.modalities == ("T1ce", "T1w", "T2w", "FLAIR")
    assert bundle.regions == ("tc", "wt", "et")
    assert bundle.network == {"_target_": "SegResNet", **arguments(4)}
    assert bundle.window == (60, 32, 32)
    assert (bundle.name, bundle.version, bundle.monai_version) == ("brats_mri_segmentation", "0.5.2", "1.4.0")
    assert "brats2018" in bundle.trained_on and len(bundle.weights_sha256) == 64
    x = torch.randn(1, 4, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(bundle.build().eval()(x), network(x))


def test_weights_of_a_training_checkpoint(tmp_path: Path) -> None:
    network = put_bundle(tmp_path / "b")
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "b" / "models" / "model.pt")
    assert list(read_bundle(str(tmp_path / "b")).weights) == list(network.state_dict())


def changed(**arguments_changed: Any) -> dict[str, Any]:
    return {"network_def": inference(4)["network_def"] | arguments_changed}


def test_references_to_plain_values_are_followed(tmp_path: Path) -> None:
    put_bundle(
        tmp_path / "b", number=4, down=[1, 1, 1], **changed(in_channels="@number", blocks_down="@down")
    )
    network = read_bundle(str(tmp_path / "b")).network
    assert network["in_channels"] == 4 and network["blocks_down"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            changed(_target_="os.system"),
            "the bundle's network is 'os.system'.*only these of monai.networks.nets",
        ),
        (changed(_target_="SegResNetVAE"), "network is 'SegResNetVAE'"),
        (changed(in_channels="$__import__('pathlib').Path('sprung').touch() or 4"), "holds the expression"),
        (changed(act="%other.json::act"), "holds the expression '%other.json::act'"),
        (changed(in_channels="@device"), "refers to what is no plain value.*@device"),
        (changed(in_channels="@nowhere"), "refers to what is no plain value"),
        (changed(act={"_target_": "ReLU"}), "expressions and components are not evaluated"),
        (changed(colour=3), "MONAI cannot make the bundle's SegResNet: .*colour"),
        ({"network_def": "$SegResNet()"}, r"defines no network \(network_def\)"),
        (
            {"preprocessing": {"_target_": "Compose", "transforms": []}},
            "does not z-score the non-zero voxels",
        ),
        ({"preprocessing": "@nothing"}, "does not z-score the non-zero voxels"),
    ],
)
def test_what_is_not_understood_is_refused_and_nothing_runs(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put_bundle(tmp_path / "b", **changes)
    with pytest.raises(CheckpointError, match=says) as error:
        read_bundle("b")
    assert "inference.json" in error.value.line() and "Fix:" in error.value.line()
    assert not Path("sprung").exists() and "a_package_that_nobody_has" not in sys.modules


@pytest.mark.parametrize(
    ("channels", "maps", "says"),
    [
        (("T1c", "T1", "T2", "CT"), ("TC", "WT", "ET"), "channels of inputs.image are T1c, T1, T2, CT"),
        (("T1", "T1w", "T2", "FLAIR"), ("TC", "WT", "ET"), "channels of inputs.image are T1, T1w"),
        (("T1c", "T1", "T2", "FLAIR"), ("Tumor", "WT", "ET"), "channels of outputs.pred are Tumor, WT, ET"),
    ],
)
def test_channels_go_by_name_or_not_at_all(
    channels: tuple[str, ...], maps: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    put_bundle(tmp_path / "b", channels, maps)
    with pytest.raises(CheckpointError, match=f"{says}.*metadata.json"):
        read_bundle(str(tmp_path / "b"))


@pytest.mark.parametrize(
    "holes", [{}, {"network_data_format": {"inputs": {"image": {"channel_def": {"1": "T1"}}}}}]
)
def test_channels_without_names_are_refused(holes: dict[str, Any], tmp_path: Path) -> None:
    put_bundle(tmp_path / "b")
    (tmp_path / "b" / "configs" / "metadata.json").write_text(json.dumps(holes))
    with pytest.raises(CheckpointError, match=r"channels of inputs.image are not named"):
        read_bundle(str(tmp_path / "b"))


def test_keys_that_do_not_fit_are_shown_in_a_table(tmp_path: Path) -> None:
    network = put_bundle(tmp_path / "b")
    state = network.state_dict()
    state["convInit.conv.weight"] = torch.zeros(8, 3, 3, 3, 3)
    state["convStart.conv.weight"] = state.pop("conv_final.2.conv.weight")
    torch.save(state, tmp_path / "b" / "models" / "model.pt")
    with pytest.raises(KeysError, match=r"are not those of its network \(SegResNet\)") as error:
        read_bundle(str(tmp_path / "b"))
    told = " ".join(error.value.line().split())
    for row in (
        "missing conv_final.2.conv.weight - 3x8x1x1x1",
        "extra convStart.conv.weight 3x8x1x1x1 -",
        "shape convInit.conv.weight 8x3x3x3x3 8x4x3x3x3",
        "1 missing, 1 extra, 1 of another shape",
    ):
        assert row in told, told


@pytest.mark.parametrize("name", ["configs/inference.json", "configs/metadata.json", "models/model.pt"])
def test_a_folder_that_is_no_bundle(name: str, tmp_path: Path) -> None:
    put_bundle(tmp_path / "b")
    file = tmp_path / "b" / name
    file.write_text("[1, 2" if name.endswith("json") else "")
    with pytest.raises((DataError, CheckpointError), match=file.name):
        read_bundle(str(tmp_path / "b"))
    file.unlink()
    with pytest.raises(DataError, match="Fix:"):
        read_bundle(str(tmp_path / "b"))
