"""What a prediction job prints: what it found and will do, and in the end what became of it."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.checks import check_claims, choose_scans
from brainfoundry.prediction.predictor import Job, count_windows, load
from brainfoundry.prediction.run import Result
from brainfoundry.prediction.sources import Source
from brainfoundry.quality.template import SPACES
from brainfoundry.training.volumes import load_segmenter

SHOWN = 10
"""Lines of failed cases on the console; all are in predictions.jsonl."""
LOOKED_INTO = 5
"""Cases that a dry run opens: their voxels are checked, and their windows counted."""


def announce(job: Job, source: Source) -> None:
    """Input, networks and options, in plain lines."""
    card, o = job.models[0].card, job.options
    spacing = "as scanned" if card.spacing_mm is None else f"{card.spacing_mm:g} mm"
    template = card.space or "scanner"
    window = "x".join(map(str, o.window))
    rows = [("input", f"{source.kind}, {len(source.cases):,} cases: {source.uri}")]
    cards = [(m.card, m.uri) for m in job.models]
    rows += [("network", f"{c.label}, run {c.run}, step {c.step}: {uri}") for c, uri in cards]
    rows += [
        ("task", f"{card.task['name']} ({card.task['scheme']}): {', '.join(card.task['regions'])}"),
        ("scans", f"{', '.join(card.modalities)}; voxels {spacing}; {template} space; "
                  f"{'skull-stripped' if card.skull_stripped else 'whole heads'}; {card.intensity}"),
        ("windows", f"{window}, overlap {o.overlap:g}, {o.weights} weights, {o.mode}"
                    f"{', 8 flips' if o.flips else ''}; threshold {o.threshold:g}"),
        ("output", job.out),
    ]  # fmt: skip
    for label, text in rows:
        print(f"{label + ':':<10} {text}")
    notes = list(source.notes)
    if card.space and card.space not in SPACES:
        notes.append(f"no template of {card.space} is at hand: whether scans lie in it is not checked")
    for note in notes:
        print(f"{'note:':<10} {note}", flush=True)


def rehearse(job: Job, cases: Sequence[Case]) -> None:
    """The dry run: every case's scans and claims, a few cases opened, windows and time estimated."""
    space = job.space
    problems: list[str] = []
    sound = []
    for case in cases:
        try:
            choose_scans(case, space)
            if not job.options.preprocess:
                check_claims(case, space, job.allow)
            sound.append(case)
        except DataError as error:
            problems.append(error.line())
    windows = []
    for case in sound[:LOOKED_INTO]:
        with tempfile.TemporaryDirectory(prefix="predict-") as scratch:
            try:
                loaded = load(case, job, Path(scratch))
            except BrainFoundryError as error:
                problems.append(error.line())
                continue
        windows.append(count_windows(loaded.volume, job.window_spec()))
        shape = "x".join(map(str, loaded.volume.x_CDHW.shape[1:]))
        print(f"{case.name}: {shape} voxels, {windows[-1]} windows" + "".join(f"; {n}" for n in loaded.notes))
    _show(problems)
    opened = f"the voxels of {len(windows):,} of them were checked" if windows else "none could be opened"
    print(f"{len(sound):,} of {len(cases):,} cases have what the network wants; {opened}")
    if windows:
        passes = len(job.models) * (8 if job.options.flips else 1)
        mean = sum(windows) / len(windows) * passes
        each = _seconds_a_window(job)
        print(
            f"about {mean:,.0f} windows a case, {each:.3g} s each (measured on this machine's CPU, fp32): "
            f"{mean * each * len(sound) / 3600:,.2f} hours for {len(sound):,} cases on one worker like it"
        )
    print("dry run: nothing was predicted or written")


def _seconds_a_window(job: Job) -> float:
    network, card = load_segmenter(job.models[0].uri)
    x_NCDHW = torch.zeros((1, len(card.modalities), *job.options.window))
    with torch.inference_mode():
        network(x_NCDHW)  # the first pass also sets things up
        began = time.perf_counter()
        network(x_NCDHW)
    return time.perf_counter() - began


def summarise(job: Job, result: Result) -> None:
    """The table at the end, and the first failures."""
    _show([outcome.error for outcome in result.failed])
    noted = Counter(bool(o.record and o.record["notes"]) for o in result.outcomes)[True]
    table = Table(title="Prediction", title_justify="left")
    for name in ("cases", "predicted", "done before", "failed", "with notes", "s a case"):
        table.add_column(name, justify="right")
    seconds = f"{result.seconds / result.predicted:.1f}" if result.predicted else "-"
    numbers = (len(result.outcomes), result.predicted, result.before, len(result.failed), noted)
    table.add_row(*(f"{n:,}" for n in numbers), seconds)
    Console(width=100).print(table)
    for label, name in (("masks", ""), ("lesions", "lesions.tsv"), ("each case", "predictions.jsonl")):
        print(f"{label + ':':<10} {files.join(job.out, name) if name else job.out}")


def _show(lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        print(f"failed: {line}")
    if len(lines) > SHOWN:
        print(f"... and {len(lines) - SHOWN:,} more")
