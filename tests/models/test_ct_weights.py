"""A CT-pretrained encoder in MONAI's key scheme: the same features as by MONAI's own loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor

from brainfoundry.models import EncoderSpec, build_encoder, build_segmenter
from brainfoundry.models.ct_weights import MERGING, NOTE, from_ct, load_ct
from brainfoundry.models.keys import KeysError
from brainfoundry.models.transfer import transfer

State = dict[str, Tensor]


def ct_file(size: str = "tiny", channels: int = 1) -> State:
    """An encoder at random, its keys as in `model_swinvit.pt`, heads and all."""
    torch.manual_seed(7)
    encoder = build_encoder(EncoderSpec(size=size, in_channels=channels)).state_dict()
    state = {
        f"module.{name.replace('mlp.linear1', 'mlp.fc1').replace('mlp.linear2', 'mlp.fc2')}": tensor
        for name, tensor in encoder.items()
    }
    heads = ("rotation_head.weight", "contrastive_head.bias", "convTrans3d.weight", "norm.weight")
    return {**state, **{f"module.{head}": torch.zeros(3) for head in heads}}


def test_features_equal_those_of_monais_loader(tmp_path: Path) -> None:
    torch.save({"epoch": 9, "state_dict": ct_file()}, tmp_path / "ct.pt")
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=48)
    theirs.load_from(torch.load(tmp_path / "ct.pt"))
    ours = build_segmenter(EncoderSpec(size="tiny", in_channels=1), 3)
    loaded = load_ct(str(tmp_path / "ct.pt"))
    assert ours.load_state_dict(loaded, strict=False).unexpected_keys == []
    x = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        for mine, other in zip(ours.swinViT(x), theirs.swinViT(x), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {name.removeprefix("module."): tensor for name, tensor in state.items()},
        lambda state: {name.replace("module.", "module.swinViT."): tensor for name, tensor in state.items()},
        lambda state: {name.replace("fc", "linear"): tensor for name, tensor in state.items()},
    ],
)
def test_the_scheme_in_its_variants(wrap: Callable[[State], object]) -> None:
    expected = build_encoder(EncoderSpec(size="nano"))
    loaded = from_ct(wrap(ct_file("nano")))  # type: ignore[arg-type]
    assert list(loaded) == [f"swinViT.{name}" for name in expected.state_dict()]


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "big"])
def test_every_size_is_known_by_its_weights(size: str) -> None:
    expected = build_encoder(EncoderSpec(size=size, in_channels=2)).state_dict()
    assert len(from_ct(ct_file(size, channels=2))) == len(expected)


def test_it_is_what_transfer_takes() -> None:
    network = build_segmenter(EncoderSpec(size="nano", in_channels=2, merging=MERGING), 3)
    table = transfer(
        network, from_ct(ct_file("nano")), source_modalities=["CT"], target_modalities=["FLAIR", "T1w"],
        mode="repeat", source=f"ct.pt ({NOTE})",
    )  # fmt: skip
    counts = table.counts()
    encoder = len(build_encoder(EncoderSpec(size="nano")).state_dict())
    assert counts["copied"] + counts["adapted"] == encoder and counts["dropped"] == 0
    assert "--model.merging legacy" in table.text()


def without(part: str) -> State:
    return {name: tensor for name, tensor in ct_file("nano").items() if part not in name}


@pytest.mark.parametrize(
    ("state", "rows"),
    [
        (without("layers2.0.blocks.1"), ["missing layers2.0.blocks.1.norm1.weight", "14 missing"]),
        ({"encoder.stem.weight": torch.zeros(4, 3)}, ["extra encoder.stem.weight", "4x3 -", "1 found"]),
        (
            ct_file("nano") | {"module.layers1.0.blocks.0.norm1.weight": torch.zeros(5)},
            ["shape layers1.0.blocks.0.norm1.weight", "1 of another shape"],
        ),
        (
            ct_file("nano") | {"module.layers1.0.blocks.7.norm1.weight": torch.zeros(12)},
            ["extra layers1.0.blocks.7.norm1.weight 12 -", "0 missing, 1 extra"],
        ),
        ({}, ["0 found", "missing"]),
    ],
)
def test_keys_that_do_not_fit_are_shown_in_a_table(state: State, rows: list[str]) -> None:
    with pytest.raises(KeysError, match="not those of a Swin encoder") as error:
        from_ct(state, source="other.pt")
    told = error.value.line()
    assert "other.pt" in told.splitlines()[0] and "model_swinvit.pt" in told.splitlines()[0]
    for row in rows:
        assert row in " ".join(told.split()), told
