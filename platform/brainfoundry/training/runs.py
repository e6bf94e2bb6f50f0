"""Names and folders of runs: which one this is, and whether it goes on, starts, or was finished before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from brainfoundry.core import files
from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import ConfigError
from brainfoundry.store.meta import ShardSetMeta
from brainfoundry.training.checkpoint import latest_step
from brainfoundry.training.config import TrainConfig

# What does not change the numbers may differ between the attempts of one run.
_NOT_IDENTITY = ("name", "storage", "resume", "dry_run", "cluster", "keep", "tracking")
_NOT_IDENTITY_OF_DATA = ("guard", "allow_leak")


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
    digest = hashlib.sha256(json.dumps([identity, manifest_hash], sort_keys=True).encode()).hexdigest()
    return f"{config.job}-{config.preset or 'custom'}-{config.model.size}-{digest[:8]}"


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
