"""How a run begins from a checkpoint: which one, whether it fits, what it brings, and what then learns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml
from torch import nn

from brainfoundry.core import files
from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import CheckpointError
from brainfoundry.models import ct_weights
from brainfoundry.models.transfer import TransferTable, transfer
from brainfoundry.tasks.scores import higher_is_better
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.config import InitConfig

CT = ("CT",)
"""The one channel of CT weights."""
_ENCODER = "swinViT."
_STEM = "swinViT.patch_embed."
_DEPTH = {"patch_embed": 5, "layers1": 4, "layers2": 3, "layers3": 2, "layers4": 1}
"""Stages of the encoder, counted down from the heads or the decoder, which are 0."""


def find_checkpoint(uri: str) -> str:
    """The checkpoint that a step-... folder is, or that is the best of a run's folder, else its newest.

    Best as the run itself names it: by validation, `--keep.best-by`; highest for a score, lowest for a loss.

    Raises:
        CheckpointError: neither of the two; says what is there.
    """
    uri = files.absolute(uri)
    if files.exists(files.join(uri, "card.json")):
        return uri
    folder = files.join(uri, "checkpoints")
    steps = checkpoint.list_steps(folder)
    if not steps:
        there = files.list_names(folder) or files.list_names(uri)
        raise CheckpointError(
            "no whole checkpoint here: "
            + (f"only {', '.join(there[:8])}" + (", ..." if len(there) > 8 else "") if there else "nothing"),
            file=uri,
            fix="name a step-... folder with a card.json, or a run's folder that holds checkpoints/",
        )
    return checkpoint.checkpoint_uri(folder, _best(uri, steps) or steps[-1])


def _best(run: str, steps: Sequence[int]) -> int | None:
    """Step of the best of a run's checkpoints; None where none was validated."""
    config = files.join(run, "config.yaml")
    if not files.exists(config):
        return None
    best_by = (yaml.safe_load(files.read_bytes(config)) or {}).get("keep", {}).get("best_by")
    scores = {}
    for step in steps:
        card = checkpoint.read_card(checkpoint.checkpoint_uri(files.join(run, "checkpoints"), step))
        if f"val/{best_by}" in card.metrics:
            score = card.metrics[f"val/{best_by}"]
            scores[step] = -score if card.stage == "finetune" and higher_is_better(best_by) else score
    return min(scores, key=lambda step: (scores[step], step)) if scores else None


def settled(init: InitConfig) -> InitConfig:
    """The same, with CT weights as every worker needs them: absolute, the encoder alone, and in a mode that
    has something to give to channels of MRI."""
    if init.ct_weights is None:
        return init
    mode = "repeat" if init.mode == "paper" else init.mode  # by name there is nothing to share with CT
    return replace(init, ct_weights=files.absolute(init.ct_weights), mode=mode, parts=("encoder",))


def ct_notes(init: InitConfig, *, merging: str) -> list[str]:
    """Lines about CT weights: what nobody has checked, and what they were trained with."""
    if init.ct_weights is None:
        return []
    return [
        f"CT weights: provenance by the user's word; that {init.ct_weights} has seen no MRI is not checked",
        *([f"CT weights: {ct_weights.NOTE}"] if merging != ct_weights.MERGING else []),
    ]


def init_record(init: InitConfig, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How the weights begin and which of them learn, for the card, where `parents` names the checkpoint.

    Args:
        init: settled.
        before: the record of the run's newest checkpoint, which answers for CT weights that are gone by now.

    Raises:
        DataError: no such file of CT weights.
    """
    values: dict[str, Any] = to_dict(init)
    del values["checkpoint"]
    uri = values.pop("ct_weights")
    if uri is None:
        return values
    name = uri.rpartition("/")[2]
    known = (before or {}).get("ct_weights", {})
    if known.get("file") == name and not files.exists(uri):
        return {**values, "ct_weights": known}
    digest = hashlib.sha256(files.read_bytes(uri)).hexdigest()
    return {**values, "ct_weights": {"file": name, "sha256": digest}}


def check_parent(
    parent: Card,
    *,
    size: str,
    merging: str,
    modalities: Sequence[str],
    intensity: str,
    spacing_mm: float | None,
    space: str,
    skull_stripped: bool,
    parts: Sequence[str],
    mode: str = "paper",
) -> list[str]:
    """Hold a checkpoint against the run that wants to start from it.

    Args:
        parent: the checkpoint's card; the rest describes the run.

    Returns:
        A line for each thing that changes between the stages and may cost some of what was learned.

    Raises:
        CheckpointError: the weights would mean something else, or a part is not there.
    """
    whose = f"the checkpoint (run {parent.run}, step {parent.step})"
    if parent.family != SWINUNETR:
        raise CheckpointError(
            f"{whose} is of family {parent.family}: only swinunetr hands weights over",
            fix="use a checkpoint of swinunetr",
        )
    for name, theirs, mine in (("size", parent.size, size), ("merging", parent.merging, merging)):
        if theirs != mine:
            raise CheckpointError(
                f"{whose} has {name} {theirs}, this run asks for {mine}",
                fix=f"use --model.{name} {theirs}, or another checkpoint",
            )
    for part, has in (("heads", not parent.task), ("decoder", bool(parent.task))):
        if part in parts and not has:
            raise CheckpointError(
                f"{whose} is of stage {parent.stage}, which has no {part}",
                fix=f"leave {part} out of --init.parts, or use another checkpoint",
            )
    notes = []
    if parent.intensity != intensity:
        notes.append(
            f"intensity rule: {parent.intensity} before, {intensity} now (the released code changes it "
            "between stages without saying so)"
        )
    if parent.spacing_mm != spacing_mm:
        notes.append(f"voxel size: {_millimetres(parent.spacing_mm)} before, {_millimetres(spacing_mm)} now")
    if parent.space != space:
        notes.append(f"template space: {parent.space or 'none'} before, {space or 'none'} now")
    if parent.skull_stripped != skull_stripped:
        notes.append(f"skull: {_skull(parent.skull_stripped)} before, {_skull(skull_stripped)} now")
    if mode == "paper" and not set(parent.modalities) & set(modalities):
        notes.append(
            f"no shared modality ({', '.join(parent.modalities)} before, {', '.join(modalities)} now): the "
            "first convolution's weights are all drawn anew (--init.mode mean or repeat would use them)"
        )
    return notes


def _millimetres(spacing_mm: float | None) -> str:
    return "as scanned" if spacing_mm is None else f"{spacing_mm:g} mm"


def _skull(stripped: bool) -> str:
    return "removed" if stripped else "left"


def initialise(network: nn.Module, init: InitConfig, modalities: Sequence[str]) -> TransferTable | None:
    """Weights of the run's checkpoint, or of CT, into its freshly made network; None: it starts at random.

    New channels come from torch's global generator: seed it alike on every worker.

    Args:
        network: not yet wrapped in DistributedDataParallel.
        modalities: its input channels by name, in order.

    Raises:
        CheckpointError: missing, damaged, or nothing in it fits.
    """
    if init.ct_weights is not None:
        init = settled(init)
        uri = str(init.ct_weights)
        return transfer(
            network, ct_weights.load_ct(uri), source_modalities=CT, target_modalities=modalities,
            mode=init.mode, parts=init.parts, source=uri,
        )  # fmt: skip
    if init.checkpoint is None:
        return None
    found = checkpoint.load(find_checkpoint(init.checkpoint), with_state=False)
    return transfer(
        network,
        found.model,
        source_modalities=found.card.modalities,
        target_modalities=modalities,
        mode=init.mode,
        parts=init.parts,
        source=found.uri,
    )


def parameter_groups(
    network: nn.Module, init: InitConfig, *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of parameters for torch's optimisers; those that are frozen are in none and get no gradient.

    Call it before DistributedDataParallel wraps the network, which looks at who needs gradients once. Each
    group has an `lr_scale`, by which a schedule multiplies its rate. Without freezing and decay there is one
    group, of all parameters in the network's order.

    Args:
        network: not yet wrapped.
        lr: learning rate of the heads or the decoder; an encoder stage has `layer_decay` times that of the
            stage above it.
        weight_decay: of all groups.
    """
    groups: dict[int, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if _frozen(name, init.freeze):
            parameter.requires_grad_(False)
            continue
        depth, label = _depth(name) if init.layer_decay != 1 else (0, "all")
        scale = init.layer_decay**depth
        group = groups.setdefault(
            depth,
            {"params": [], "lr": lr * scale, "lr_scale": scale, "weight_decay": weight_decay, "name": label},
        )
        group["params"].append(parameter)
    return list(groups.values())


def _frozen(name: str, freeze: str) -> bool:
    if freeze == "stem":
        return name.startswith(_STEM)
    if freeze == "encoder_but_stem":
        return name.startswith(_ENCODER) and not name.startswith(_STEM)
    return freeze == "encoder" and name.startswith(_ENCODER)


def _depth(name: str) -> tuple[int, str]:
    """Stages between a parameter and the output, and what to call those of its kind."""
    if not name.startswith(_ENCODER):
        return 0, "top"
    stage = name.split(".")[1]
    return _DEPTH[stage], stage
