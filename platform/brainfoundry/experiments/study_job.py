"""What every job that runs a study does once it has its options: plan, cost, run, what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.ray_session import connect
from brainfoundry.experiments.axes import nearest
from brainfoundry.experiments.board import outcome
from brainfoundry.experiments.cohort import cohort_info
from brainfoundry.experiments.cost import calibration_of, estimate_study, read_calibration
from brainfoundry.experiments.demo import demo_cohorts, is_demo
from brainfoundry.experiments.driver import Outcome, StudyOptions, run_study
from brainfoundry.experiments.given import Given, check_leaks, open_given
from brainfoundry.experiments.mlflow_view import view_url
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.records import read_records
from brainfoundry.experiments.spec import load_study
from brainfoundry.experiments.study import CT, StudySpec
from brainfoundry.experiments.study_file import study_names
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.tracking.uri import resolve_uri


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Which study, on which cohorts, and where."""

    study: Annotated[str, tyro.conf.Positional] = "demo"
    """One of ours by its name (table4, table5, table6, table8, table9, fig4, ...), or the path of a YAML file
    of your own."""
    cohorts: tuple[str, ...] = ()
    """Shard sets of the study's cohorts, as NAME=URI: `ukb=/data/ukb-shards brats=s3://bucket/brats`. A study
    of demo presets makes its own when none is named."""
    preset: str = ""
    """One of the study file's presets, which replaces some of its keys; "" = the file as it is."""
    storage: str | None = None
    """Folder or URI of studies that all nodes see; this one lies in STORAGE/NAME. Default: studies/ below
    $BRAINFOUNDRY_HOME, which is runs/ of the checkout where it is not set."""
    only: tuple[str, ...] = ()
    """Run these trials alone, with what they start from: axis=value texts such as `init=scratch share=5,10`.
    A trial must have one of the values of every axis that is named."""
    weights: tuple[str, ...] = ()
    """What trials start from and the study does not train. `ct=model_swinvit.pt`: a file of CT weights.
    `STAGE=RUN`: a pretraining run of yours (its folder, or one of its checkpoints) takes that stage's place
    and that of all before it; name a stage several times for several sizes."""
    devices: tuple[int, ...] = ()
    """How many devices there may be, for the time it takes: one or several numbers. Of the kind on which the
    study's finished runs (or --calibration) were measured; A100s before."""
    calibration: str = ""
    """Measured steps to estimate the cost by: the calibration.json that another study of yours left in its
    folder; "" = this study's own finished runs, else arithmetic."""
    retries: int = 2
    """How often a trial that died is begun again, from its newest checkpoint."""
    tracking_uri: str | None = None
    """MLflow tracking server or store; default $MLFLOW_TRACKING_URI, else a local sqlite file below the home
    folder."""
    dry_run: bool = False
    """Print trials, cost, time and disk beside the paper's times, and what is done; start nothing."""


def study_job(config: StudyConfig) -> int:
    """Plan a study, run what is not done of it, and say what came of it; the exit status.

    Raises:
        BrainFoundryError: whatever keeps the study from starting, or stopped it.
    """
    spec = load_study(config.study, config.preset)
    if config.retries < 0:
        raise ConfigError(f"--retries {config.retries}", fix="give 0 or more")
    shards = cohorts_of(config, spec)
    infos = {name: cohort_info(ShardSet.open(uri)) for name, uri in shards.items()}
    storage = files.absolute(config.storage or str(paths.home() / "studies"))
    weights, given = weights_of(config, spec), given_of(config, spec)
    nodes = plan_study(spec, infos, storage, weights=weights, given=given, only=_whole(config.only))
    check_leaks(nodes)
    folder = files.join(storage, spec.name)
    announce(spec, nodes, folder, config)
    if config.dry_run:
        print("dry run: nothing was started")
        return 0

    # The trials' own messages go to Ray's logs; the driver is the one voice.
    quiet = not os.environ.get("BRAINFOUNDRY_DEBUG")
    print(f"joined {connect(log_to_driver=not quiet)}", flush=True)
    held = {one.name: one.card_uri for several in given.values() for one in several}
    options = StudyOptions(
        cohorts=shards, weights={**weights, **held}, submitted=words_of(config), retries=config.retries,
        tracking=config.tracking_uri,
    )  # fmt: skip
    found = run_study(spec, nodes, folder, options)
    measured = calibration_of(nodes, found.records)
    if measured.measured:
        files.write_json(files.join(folder, "calibration.json"), measured.to_dict())
    return summarise(spec, nodes, folder, found, config.tracking_uri)


def cohorts_of(config: StudyConfig, spec: StudySpec) -> dict[str, str]:
    """The shard sets that were named, or the demo's own."""
    named = pairs("--cohorts", config.cohorts)
    if config.study in study_names() and is_demo(spec):
        if not named:
            return demo_cohorts(spec, Path(paths.home()) / "demo", make=not config.dry_run)
        print(
            f"note: study {spec.name} is a demo of a few steps of the nano network, also on your cohorts; "
            "its file has presets of other sizes (--preset paper)",
            flush=True,
        )
    return {name: files.absolute(uri) for name, uri in named.items()}


def words_of(config: StudyConfig) -> tuple[str, ...]:
    """The command line, as far as it says which study it is."""
    preset = ("--preset", config.preset) if config.preset else ()
    return config.study, *preset, *(("--weights", *config.weights) if config.weights else ())


def weights_of(config: StudyConfig, spec: StudySpec) -> dict[str, str]:
    """The files of CT weights that were named.

    Raises:
        ConfigError: no trial starts from such weights, or from such a stage.
        DataError: there is no such file.
    """
    stages = _replaceable(spec)
    known = [*(chain[0] for chain in spec.inits.values() if chain == (CT,)), *stages]
    named = [text for text in config.weights if text.partition("=")[0] not in stages]
    found = pairs("--weights", named)
    for name, uri in found.items():
        if name not in known:
            raise ConfigError(
                f"no trial of study {spec.name} starts from weights {name!r}",
                fix=nearest(name, known, what="name") if known else "leave --weights out",
            )
        if not files.exists(uri):
            raise DataError("there are no such weights", file=uri, fix=f"check --weights {name}=...")
    return found


def given_of(config: StudyConfig, spec: StudySpec) -> dict[str, tuple[Given, ...]]:
    """The pretraining runs that were named, by the stage whose place they take.

    Raises:
        ConfigError: not STAGE=RUN, or two of one size and objective for one stage.
        CheckpointError: there is no such run, or it is no pretraining.
    """
    found: dict[str, tuple[Given, ...]] = {}
    for text in config.weights:
        stage = text.partition("=")[0]
        if stage in _replaceable(spec):
            one = open_given(stage, pairs("--weights", [text])[stage])
            if one.name in [other.name for other in found.get(stage, ())]:
                raise ConfigError(
                    f"--weights gives {stage} twice for {one.card.size}, {one.card.objective}",
                    file=one.uri,
                    fix="name one of them",
                )
            found[stage] = (*found.get(stage, ()), one)
    return found


def _replaceable(spec: StudySpec) -> tuple[str, ...]:
    """The stages whose place a run may take: those that a fine-tuning starts from."""
    return tuple(spec.stages) if spec.finetune is not None else ()


def _whole(only: Sequence[str]) -> list[str]:
    """`share=5,10` in one piece: the command line splits values at commas."""
    found: list[str] = []
    for text in only:
        if "=" in text or not found:
            found.append(text)
        else:
            found[-1] += f",{text}"
    return found


def pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping.

    Raises:
        ConfigError: one is not of that form, or a name is there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            raise ConfigError(
                f"{flag} {text!r} is not NAME=VALUE", fix="name each once, such as brats=/data/b"
            )
        found[name] = value
    return found


def announce(spec: StudySpec, nodes: Sequence[Node], folder: str, config: StudyConfig) -> None:
    """What there is to run, what is done, and what the rest will cost."""
    records = read_records(folder)
    known = read_calibration(config.calibration) if config.calibration else calibration_of(nodes, records)
    cost = estimate_study(nodes, records, known, searched=spec.search.trials if spec.search else 0)
    print(f"{spec.title}\nstudy {spec.name} in {folder}")
    print(cost.text(devices=config.devices), flush=True)


def summarise(
    spec: StudySpec, nodes: Sequence[Node], folder: str, found: Outcome, tracking: str | None
) -> int:
    """A line for each trial, what failed, and where to look."""
    print(f"\nstudy {spec.name}:")
    for node in nodes:
        record = found.records.get(node.id)
        if record is not None and node.role == "trial":
            print(f"  {node.id}: {outcome(record, spec.main_metric)}")
    for name, command in found.external.items():
        print(f"  {name}: not run here, filled by: {command}")
    print(f"  records: {files.join(folder, 'records')}")
    link = view_url(resolve_uri(tracking, str(paths.home())), spec.name)
    if link:
        print(f"  MLflow:  {link}")
    print(f"  tables and figures: python jobs/report_study.py {folder}")
    sys.stdout.flush()
    for name in found.failed:
        print(f"failed: {name}: {found.records[name].error}", file=sys.stderr)
    for name, blocker in found.waiting.items():
        print(f"waits: {name} for {blocker}", file=sys.stderr)
    if found.failed or found.waiting:
        print("submit the study again to try these; what is done stays", file=sys.stderr, flush=True)
        return 1
    return 0
