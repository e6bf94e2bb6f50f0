"""Which weights of a study came from which, whom they have seen, and what leaked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import pyarrow.compute as pc

from brainfoundry.core.errors import BrainFoundryError
from brainfoundry.experiments.axes import REPEATED
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report.figures_lineage import Box
from brainfoundry.experiments.report.results import Study, Trial
from brainfoundry.experiments.report.tables_grid import arms_of
from brainfoundry.training.leak_gate import leak_note
from brainfoundry.training.seen import load_seen

START = "start"


@cache
def _seen(checkpoint: str) -> tuple[tuple[str, int], ...] | None:
    """Run -> subjects of its train split; None where the checkpoint's table is gone."""
    try:
        table = load_seen(checkpoint)
    except (BrainFoundryError, OSError):
        return None
    table = table.filter(pc.equal(table["split"], "train"))
    runs: dict[str, set[str]] = defaultdict(set)
    for run, subject in zip(table["run"].to_pylist(), table["subject"].to_pylist(), strict=True):
        runs[run].add(subject)
    return tuple((run, len(subjects)) for run, subjects in runs.items())


def seen_subjects(record: TrialRecord) -> int | None:
    """Subjects that the run itself was trained on; None where nobody knows any more."""
    found = _seen(record.checkpoint) if record.checkpoint else None
    return None if found is None else dict(found).get(record.run_dir.rpartition("/")[2])


def boxes(study: Study) -> list[Box]:
    """The picture of a study: its start, the pretraining by stage, the trials by arm, the test sets."""
    groups = _groups(study)
    group_of = {record.id: name for name, records in groups.items() for record in records}
    column: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in column:
            column[name] = 1 + max((depth(parent) for parent in _parents(groups[name], group_of)), default=0)
        return column[name]

    found = [
        Box(
            id=name,
            kind="pretrain",
            column=depth(name),
            name=name,
            lines=_lines(records),
            leak=_leak(records),
            parents=_parents(records, group_of) or (START,),
        )
        for name, records in groups.items()
    ]
    last = max([0, *column.values()]) + 1
    arms = _arms(study, last, group_of)
    return [Box(id=START, kind="start", column=0, name="random weights"), *found, *arms, *_tests(study, arms)]


def _groups(study: Study) -> dict[str, list[TrialRecord]]:
    """Pretraining runs by what they are; those that differ in fold, draw or seed alone are one group."""
    records = study.pretraining
    axes = [
        axis
        for axis in ("init", "size", "objective", "modalities")
        if axis in ("init", "size") or len({str(record.point.get(axis)) for record in records}) > 1
    ]
    found: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        found[", ".join(str(record.point.get(axis)) for axis in axes)].append(record)
    return dict(found)


def _parents(records: Sequence[TrialRecord], group_of: dict[str, str]) -> tuple[str, ...]:
    """The groups that these runs began with the weights of."""
    own = {group_of.get(record.id) for record in records}
    found = [
        group_of[record.parents[-1]]
        for record in records
        if record.parents and record.parents[-1] in group_of
    ]
    return tuple(name for name in dict.fromkeys(found) if name not in own)


def _lines(records: Sequence[TrialRecord]) -> tuple[str, ...]:
    failed = sum(record.state == "failed" for record in records)
    told = [
        f"{len(records):,} runs" if len(records) > 1 else "",
        f"{failed} failed" if failed else "",
        "trained before the study" if any(record.kind == "given" for record in records) else "",
        _subjects(records),
    ]
    steps = {record.steps for record in records if record.state == "finished"}
    return tuple(text for text in (*told, f"{max(steps):,} steps" if steps else "") if text)


def _subjects(records: Sequence[TrialRecord]) -> str:
    sizes = sorted({n for record in records if (n := seen_subjects(record)) is not None})
    if not sizes:
        return "training subjects not known" if records else ""
    return f"{sizes[0]:,}{f' to {sizes[-1]:,}' if len(sizes) > 1 else ''} training subjects"


def _arms(study: Study, column: int, group_of: dict[str, str]) -> list[Box]:
    if study.spec.finetune is None:
        return []
    found = []
    for arm in arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, "fold", "share")]):
        trials = study.select(arm.where)
        records = [trial.record for trial in trials if trial.record is not None]
        # Of an arm that has not begun, nobody knows yet; it stands alone.
        parents = _parents(records, group_of) or ((START,) if not trials[0].pretrained else ())
        found.append(
            Box(
                id=f"arm: {arm.name}",
                kind="finetune",
                column=column,
                name=arm.name,
                lines=_arm_lines(trials, records),
                leak=_leak(records),
                parents=parents,
            )
        )
    return found


def _arm_lines(trials: Sequence[Trial], records: Sequence[TrialRecord]) -> tuple[str, ...]:
    done = sum(trial.scored for trial in trials)
    all_done = f"{done} trial{'s' if done > 1 else ''}"
    lines = [f"{done} of {len(trials)} trials done" if done < len(trials) else all_done]
    failed = sum(record.state == "failed" for record in records)
    if failed:
        lines.append(f"{failed} failed")
    return tuple(text for text in (*lines, _subjects(records)) if text)


def _tests(study: Study, arms: Sequence[Box]) -> list[Box]:
    """The test sets, each behind the arms that were scored on it."""
    tested: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for box, arm in zip(
        arms,
        arms_of(study, [a for a in study.varying if a not in (*REPEATED, "fold", "share")]),
        strict=bool(arms),
    ):
        for trial in study.scored(arm.where):
            test = (trial.record.test if trial.record else None) or {}
            held_out = test.get("fold") is not None
            name = "held-out folds" if held_out else f"split {test.get('split', 'test')}"
            sizes[name] = max(sizes.get(name, 0), int(test.get("subjects", 0)))
            if box.id not in tested[name]:
                tested[name].append(box.id)
    column = arms[0].column + 1 if arms else 0
    return [
        Box(id=f"test: {name}", kind="test", column=column, name=name, parents=tuple(parents),
            lines=(f"{sizes[name]:,} subjects" + (" or fewer in each" if name == "held-out folds" else ""),))
        for name, parents in tested.items()
    ]  # fmt: skip


def _leak(records: Sequence[TrialRecord]) -> str:
    """The first leak of these runs in words, and how many more there are."""
    found = list(dict.fromkeys(leak_note(leak) for record in records for leak in record.leaks))
    if not found:
        return ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0].removeprefix("LEAK: ") + more
