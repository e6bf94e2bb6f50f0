"""Starting from a checkpoint: the right one is found, what does not fit is refused, what is frozen stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError
from brainfoundry.models import EncoderSpec, SSLNetwork, build_segmenter
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.config import InitConfig
from brainfoundry.training.initialise import check_parent, find_checkpoint, initialise, parameter_groups
from tests.training.test_checkpoint import MODEL, STATE, card

UKB = ("T1w", "FLAIR")
STEM = "swinViT.patch_embed.proj.weight"


def network(channels: int = 2, seed: int = 0) -> SSLNetwork:
    torch.manual_seed(seed)
    return SSLNetwork(EncoderSpec(size="nano", in_channels=channels))


# ---------------------------------------------------------------------------------------------------------
# Which checkpoint


def make_run(folder: Path, best_by: str | None, losses: dict[int, float | None], **changes: Any) -> str:
    for step, loss in losses.items():
        metrics = {} if loss is None else {f"val/{best_by}": loss, "val/other": -loss}
        checkpoint.save(str(folder / "checkpoints"), card(step, metrics=metrics, **changes), MODEL, STATE)
    if best_by is not None:
        files.write_bytes(
            str(folder / "config.yaml"), yaml.safe_dump({"keep": {"best_by": best_by}}).encode()
        )
    return str(folder)


def test_a_checkpoints_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "total", {10: 0.5, 20: 0.7})
    uri = f"{run}/checkpoints/step-00000020"
    assert find_checkpoint(uri) == uri
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("run/checkpoints/step-00000020") == uri  # Ray's workers run in other folders


@pytest.mark.parametrize(
    ("best_by", "losses", "changes", "step"),
    [
        ("total", {10: 0.5, 20: 0.3, 30: 0.7}, {}, 20),
        ("total", {10: 0.5, 20: None, 30: 0.5}, {}, 10),
        ("total", {10: None, 20: None}, {}, 20),
        (None, {10: None, 20: None}, {}, 20),
        ("dice_mean", {10: 0.5, 20: 0.3, 30: 0.4}, {"stage": "finetune"}, 10),
    ],
    ids=["lowest loss", "first of equals", "none validated", "no configuration", "highest score"],
)
def test_a_runs_folder_gives_its_best(
    tmp_path: Path, best_by: str | None, losses: dict[int, float | None], changes: dict[str, Any], step: int
) -> None:
    run = make_run(tmp_path / "run", best_by, losses, **changes)
    assert find_checkpoint(run) == f"{run}/checkpoints/step-{step:08d}"


def test_where_there_is_none_it_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no whole checkpoint here: nothing.*name a step-\.\.\. folder"
    ):
        find_checkpoint(str(tmp_path / "nowhere"))
    run = make_run(tmp_path / "run", "total", {10: 0.5})
    files.delete_file(f"{run}/checkpoints/step-00000010/card.json")
    with pytest.raises(CheckpointError, match="no whole checkpoint here: only step-00000010"):
        find_checkpoint(run)
    with pytest.raises(CheckpointError, match=r"only model\.safetensors, state"):
        find_checkpoint(f"{run}/checkpoints/step-00000010")


# ---------------------------------------------------------------------------------------------------------
# Whether it fits


def check(parent: Card, **changes: Any) -> list[str]:
    same = {
        "size": "nano",
        "merging": "current",
        "modalities": UKB,
        "intensity": "zscore_nonzero",
        "spacing_mm": 2.0,
        "space": "MNI152",
        "skull_stripped": True,
        "parts": ("encoder",),
    }
    return check_parent(parent, **{**same, **changes})


def test_the_same_again_needs_no_remark() -> None:
    assert check(card()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": "tiny"}, "has size nano, this run asks for tiny.*use --model.size nano"),
        ({"merging": "legacy"}, "has merging current, this run asks for legacy.*use --model.merging current"),
        ({"parts": ("encoder", "decoder")}, "is of stage pretrain-1, which has no decoder.*--init.parts"),
    ],
)
def test_weights_that_would_mean_something_else_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"the checkpoint \(run r, step 10\) {says}"):
        check(card(), **changes)


def test_a_fine_tuned_network_has_a_decoder_and_no_heads() -> None:
    parent = card(stage="finetune", task={"name": "brats"})
    assert check(parent, parts=("encoder", "decoder")) == []
    assert check(card(), parts=("encoder", "heads")) == []
    with pytest.raises(CheckpointError, match="is of stage finetune, which has no heads"):
        check(parent, parts=("heads",))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"intensity": "ct_window"},
            "intensity rule: zscore_nonzero before, ct_window now (the released code",
        ),
        ({"spacing_mm": None}, "voxel size: 2 mm before, as scanned now"),
        ({"space": "SRI24"}, "template space: MNI152 before, SRI24 now"),
        ({"skull_stripped": False}, "skull: removed before, left now"),
        ({"modalities": ("T2w",)}, "no shared modality (T1w, FLAIR before, T2w now)"),
    ],
)
def test_what_changes_between_the_stages_is_said(changes: dict[str, Any], says: str) -> None:
    (note,) = check(card(), **changes)
    assert note.startswith(says)


def test_modes_that_need_no_shared_modality_are_not_warned_about() -> None:
    assert check(card(), modalities=("T2w",), mode="mean") == []


# ---------------------------------------------------------------------------------------------------------
# What is taken


def test_weights_come_from_the_runs_best_checkpoint(tmp_path: Path) -> None:
    folder = str(tmp_path / "run" / "checkpoints")
    states = {step: network(seed=step).state_dict() for step in (10, 20)}
    for step, state in states.items():
        checkpoint.save(folder, card(step, metrics={"val/total": float(step)}), state, STATE)
    files.write_bytes(str(tmp_path / "run" / "config.yaml"), b"keep: {best_by: total}")
    target = build_segmenter(EncoderSpec(size="nano", in_channels=1), 1)
    table = initialise(target, InitConfig(checkpoint=str(tmp_path / "run")), ["FLAIR"])
    assert table is not None
    assert table.source.endswith("run/checkpoints/step-00000010")
    assert torch.equal(target.state_dict()[STEM][:, 0], states[10][STEM][:, 1])
    assert table.counts()["copied"] == 125


def test_no_checkpoint_leaves_the_network_as_it_is() -> None:
    fresh = network()
    assert initialise(fresh, InitConfig(), UKB) is None
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), network().parameters(), strict=True))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), card(), network().state_dict(), STATE)
    data = bytearray(files.read_bytes(f"{uri}/model.safetensors"))
    data[-1] ^= 1
    files.write_bytes(f"{uri}/model.safetensors", bytes(data))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        initialise(network(), InitConfig(checkpoint=uri), UKB)


# ---------------------------------------------------------------------------------------------------------
# What learns


def groups_of(net: nn.Module, **options: Any) -> list[dict[str, Any]]:
    return parameter_groups(net, InitConfig(**options), lr=0.01, weight_decay=0.1)


def names_in(net: nn.Module, group: dict[str, Any]) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in net.named_parameters() if id(p) in ids}


def test_plain_settings_are_one_group_in_order_and_the_same_steps_to_the_bit() -> None:
    plain, grouped = network(), network()
    groups = groups_of(grouped)
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in grouped.parameters()] and len(groups) == 1
    optimisers = [
        torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1),
        torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
    ]
    x = torch.randn(1, 2, 64, 32, 32)
    for net, optimiser in zip((plain, grouped), optimisers, strict=True):
        net(x).rebuilt.square().mean().backward()
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), grouped.parameters(), strict=True))
    # State written before there were groups loads, and the other way round.
    optimisers[1].load_state_dict(optimisers[0].state_dict())
    optimisers[0].load_state_dict(optimisers[1].state_dict())


def test_the_learning_rate_falls_stage_by_stage_towards_the_input() -> None:
    net = network()
    groups = {g["name"]: g for g in groups_of(net, layer_decay=0.5)}
    assert {name: g["lr_scale"] for name, g in groups.items()} == {
        "patch_embed": 0.5**5,
        "layers1": 0.5**4,
        "layers2": 0.5**3,
        "layers3": 0.5**2,
        "layers4": 0.5,
        "top": 1.0,
    }
    assert all(g["lr"] == 0.01 * g["lr_scale"] and g["weight_decay"] == 0.1 for g in groups.values())
    assert all(name.startswith("swinViT.layers3.") for name in names_in(net, groups["layers3"]))
    assert {name.split(".")[0] for name in names_in(net, groups["top"])} == {
        "rotation_head",
        "contrastive_head",
        "conv",
    }
    assert sum(len(g["params"]) for g in groups.values()) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("stem", lambda n: n.startswith("swinViT.patch_embed.")),
        ("encoder", lambda n: n.startswith("swinViT.")),
        ("encoder_but_stem", lambda n: n.startswith("swinViT.layers")),
    ],
)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_frozen_weights_are_in_no_group_and_get_no_gradient(freeze: str, frozen: Any, decay: float) -> None:
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    groups = groups_of(net, freeze=freeze, layer_decay=decay)
    learning = {name for group in groups for name in names_in(net, group)}
    assert learning == {name for name in before if not frozen(name)}
    answers = net(torch.randn(1, 2, 64, 32, 32))
    (answers.rebuilt.square().mean() + answers.rotation_logits.sum() + answers.contrast.sum()).backward()
    torch.optim.AdamW(groups, lr=0.01).step()
    for name, p in net.named_parameters():
        assert (p.grad is None) == frozen(name), name
        assert torch.equal(p, before[name]) == frozen(name), name


def test_a_frozen_encoder_goes_through_distributed_training() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = network()
        groups = groups_of(net, freeze="encoder")
        wrapped = DistributedDataParallel(net, broadcast_buffers=False)
        for _ in range(2):  # a second pass would find gradients that the first one waited for in vain
            answers = wrapped(torch.randn(1, 2, 64, 32, 32))
            total = answers.rebuilt.square().mean() + answers.rotation_logits.sum() + answers.contrast.sum()
            total.backward()
        assert all(p.grad is not None for p in groups[0]["params"])
    finally:
        dist.destroy_process_group()


def test_layer_decay_knows_every_parameter_of_a_segmenter() -> None:
    net = build_segmenter(EncoderSpec(size="nano", in_channels=4), 3)
    groups = groups_of(net, layer_decay=0.75)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    assert [g["name"] for g in groups] == ["patch_embed", "layers1", "layers2", "layers3", "layers4", "top"]
    top = names_in(net, next(g for g in groups if g["name"] == "top"))
    assert not any(name.startswith("swinViT.") for name in top)
