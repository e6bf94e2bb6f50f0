"""Names and folders of runs: which one this is, and whether it goes on, starts, or was finished before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from brainfoundry.core import files
from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import ConfigError
from brainfoundry.store.meta import ShardSetMeta
from brainfoundry.training.checkpoint import latest_step
from brainfoundry.training.config import TrainConfig

# What does not change the numbers may differ between the attempts of one run.
_NOT_IDENTITY = ("name", "storage", "resume", "dry_run", "cluster", "keep", "tracking", "probe")
_NOT_IDENTITY_OF_DATA = ("guard", "allow_leak")
# What may be given in epochs: section, field, and the field in steps that it decides.
_IN_EPOCHS = (
    ("optim", "epochs", "steps"),
    ("optim", "warmup_epochs", "warmup"),
    ("keep", "validate_epochs", "validate_every"),
)


# Fields that came after the first runs were named: left out at these values, so that those keep their names.
_LATER: dict[str, dict[str, Any]] = {
    "data": {"share": 100.0, "draw": 0},
    "model": {"family": "swinunetr", "family_options": []},
    "init": {"ct_weights": None},
}


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """Where a run lives and what happens to it."""

    name: str
    folder: str
    state: Literal["new", "unfinished", "finished"]
    step: int
    """Steps done, by its newest checkpoint."""


def identity_hash(meta: ShardSetMeta) -> str:
    """The manifest hash that names runs on a shard set: the one it had before its latest withdrawals.

    A job that is submitted again after a participant withdrew finds its run; a new split makes a new one.
    """
    found = meta.manifest_hash
    for entry in reversed(meta.history):
        if entry["what"] != "withdrawal":
            break
        found = str(entry["manifest_hash"])
    return found


def default_name(config: TrainConfig, manifest_hash: str) -> str:
    """A name that the same configuration on the same scans always gets, so that a resubmitted job
    continues."""
    identity = {k: v for k, v in to_dict(config).items() if k not in _NOT_IDENTITY}
    identity["data"] = {k: v for k, v in identity["data"].items() if k not in _NOT_IDENTITY_OF_DATA}
    if config.data.share == 100:
        identity["data"]["draw"] = 0  # which of the subsets, where there is none
    for section, default in _LATER.items():
        fields = identity[section].items()
        identity[section] = {k: v for k, v in fields if k not in default or v != default[k]}
    digest = hashlib.sha256(json.dumps([identity, manifest_hash], sort_keys=True).encode()).hexdigest()
    return f"{config.job}-{config.preset or 'custom'}-{config.model.label}-{digest[:8]}"


def in_steps(config: TrainConfig, storage: str, manifest_hash: str, n_subjects: int) -> TrainConfig:
    """The configuration under the name of its run, with epochs turned into steps.

    Once: a run that goes on keeps what epochs came to when it began, also where people have withdrawn since.

    Args:
        manifest_hash: `identity_hash` of the shard set.
        n_subjects: subjects of an epoch.
    """
    name = config.name or default_name(config, manifest_hash)
    fresh = replace(config.in_steps(n_subjects), name=name)
    where = files.join(storage, name, "config.yaml")
    if fresh == replace(config, name=name) or config.resume == "never" or not files.exists(where):
        return fresh
    began = yaml.safe_load(files.read_bytes(where))
    for section, counted, name_in_steps in _IN_EPOCHS:
        epochs = getattr(getattr(config, section), counted, None)
        if epochs is not None and began[section].get(counted) == epochs:
            kept = {name_in_steps: began[section][name_in_steps]}
            fresh = replace(fresh, **{section: replace(getattr(fresh, section), **kept)})
    return fresh


def find_place(config: TrainConfig, storage: str, manifest_hash: str) -> RunPlace:
    """The run this configuration means.

    Args:
        storage: folder of all runs.
        manifest_hash: `identity_hash` of the shard set.

    Raises:
        ConfigError: `resume="must"` and there is nothing to continue.
    """
    base = config.name or default_name(config, manifest_hash)
    name, number = base, 1
    place = _look(storage, name, config.optim.steps)
    while config.resume == "never" and place.state != "new":
        number += 1
        name = f"{base}-{number}"
        place = _look(storage, name, config.optim.steps)
    if config.resume == "must" and place.step == 0:
        raise ConfigError(
            f"no checkpoint of run {name} to continue", fix="check --name and --storage, or use --resume auto"
        )
    return place


def _look(storage: str, name: str, steps: int) -> RunPlace:
    folder = files.join(storage, name)
    if not files.exists(files.join(folder, "config.yaml")):
        return RunPlace(name=name, folder=folder, state="new", step=0)
    step = latest_step(files.join(folder, "checkpoints"))
    done = step >= steps and files.exists(files.join(folder, "summary.json"))
    return RunPlace(name=name, folder=folder, state="finished" if done else "unfinished", step=step)
