"""`STUDY/study.yaml`: the study as it was first submitted, so that two studies never write to one name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import yaml

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.axes import nearest
from brainfoundry.experiments.records import StudyFolder
from brainfoundry.experiments.spec import read_study
from brainfoundry.experiments.study import StudySpec
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.runs import identity_hash
from brainfoundry.training.tracking.tags import git_tags

_FREE = ".options.cluster."
"""In the name of an option that changes no result."""


def freeze(
    study: StudyFolder,
    spec: StudySpec,
    cohorts: Mapping[str, str],
    weights: Mapping[str, str] | None = None,
    submitted: Sequence[str] = (),
) -> None:
    """Write the study down at its first submission; at a later one hold it against what was written.

    A cohort counts as the same wherever it lies, and also after participants withdrew; weights count by their
    content. What runs take of the cluster may change. A grid may grow: what is finished stays, and `history`
    keeps the earlier grids.

    Args:
        cohorts: name -> shard set.
        weights: name -> file of the user's that trials start from (of a run, the card of its checkpoint).
        submitted: words of the command line that name the study, for commands that go on with it.

    Raises:
        ConfigError: another study of this name is there; names the first difference.
    """
    needed = dict.fromkeys(run.cohort for run in spec.runs)
    for name in cohorts:
        if name not in needed:
            raise ConfigError(
                f"study {study.name} has no cohort {name}",
                fix=nearest(name, needed, what="leave it out; its cohorts are"),
            )
    hashes = {name: identity_hash(ShardSet.open(uri).meta) for name, uri in sorted(cohorts.items())}
    places = {name: files.absolute(uri) for name, uri in sorted(cohorts.items())}
    given = sorted((weights or {}).items())
    digests = {name: hashlib.sha256(files.read_bytes(uri)).hexdigest() for name, uri in given}
    now: dict[str, Any] = {"study": spec.to_dict(), "manifests": hashes, "weights": digests}
    history: list[Any] = []
    if files.exists(study.frozen):
        then = yaml.safe_load(files.read_bytes(study.frozen))
        before = read_study(then["study"])
        same = then["study"]
        if all(point in spec.points() for point in before.points()):
            same = {**same, "grid": now["study"]["grid"]}
        # A part of the study (--only) names no more cohorts than it needs: those of both are compared.
        held = {"manifests": then["manifests"], "weights": then.get("weights", {})}
        _same_stages_given(held["weights"], digests, spec, study)
        now |= {part: {**held[part], **now[part]} for part in held}
        places = {**then["cohorts"], **places}
        _refuse({"study": same, **{part: {**now[part], **held[part]} for part in held}}, now, study)
        history, more = then["history"], len(spec.points()) - len(before.points())
        same_words = list(submitted) == then.get("submitted", [])
        if not more and same_words and places == then["cohorts"] and all(now[p] == held[p] for p in held):
            return
        if more:
            history = [*history, then["study"]["grid"]]
            print(f"study {study.name}: {more} further trials", flush=True)
    content = {
        **now,
        "cohorts": places,
        "submitted": list(submitted),
        "git_commit": git_tags().get("git_commit"),
        "history": history,
    }
    files.make_folder(study.uri)
    files.write_bytes(study.frozen, yaml.safe_dump(content, sort_keys=False).encode())


def read_frozen(folder: str) -> tuple[StudyFolder, StudySpec, dict[str, Any]]:
    """A study that was submitted, by its folder (STORAGE/NAME); the last is all of its file.

    Raises:
        DataError: there is no study.
        ConfigError: a study of another version.
    """
    uri = files.absolute(folder)
    study = StudyFolder(name=uri.rpartition("/")[2], uri=uri)
    if not files.exists(study.frozen):
        fix = "name a study's folder, STORAGE/NAME, as jobs/study.py printed it"
        raise DataError("there is no study here", file=study.frozen, fix=fix)
    frozen = yaml.safe_load(files.read_bytes(study.frozen))
    return study, read_study(frozen["study"], file=study.frozen), frozen


def _same_stages_given(
    then: Collection[str], now: Collection[str], spec: StudySpec, study: StudyFolder
) -> None:
    """Refuse to train a stage for which a run was given before, or the other way round."""
    before, after = (
        sorted({name.partition(".")[0] for name in names} & spec.stages.keys()) for names in (then, now)
    )
    if before != after:
        raise ConfigError(
            f"study {study.name} was submitted with --weights for {' and '.join(before) or 'no stage'}, now "
            f"for {' and '.join(after) or 'none'}: what is trained would change",
            file=study.frozen,
            fix="name the same --weights, or give the study another name (in its file) or another --storage",
        )


def _refuse(then: Mapping[str, Any], now: Mapping[str, Any], study: StudyFolder) -> None:
    before, after = dict(_leaves({name: then[name] for name in now})), dict(_leaves(now))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and _FREE not in key:
            raise ConfigError(
                f"two studies writing to one name: {study.name} was submitted with {key} "
                f"{before.get(key)!r}, now it is {after.get(key)!r}",
                file=study.frozen,
                fix="give this study another name (in its file) or another --storage, or submit the first "
                "one again",
            )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
