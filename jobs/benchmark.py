#!/usr/bin/env python
"""Measure ours against the peer, interleaved, and print ratios.

    python jobs/benchmark.py data --json data.json     # a crop: MONAI, other libraries, ours, ours over Ray
    python jobs/benchmark.py convert --json convert.json  # conversion, and opening 41,400 subjects
    python jobs/benchmark.py convert --quick           # the same, smaller and quicker
    python jobs/benchmark.py step --json step.json     # a training step: plain MONAI loop, ours
    python jobs/benchmark.py step --crop 64 --repeats 3  # the same, smaller and quicker
    python jobs/benchmark.py infer --json infer.json   # a tumour case: MONAI's sliding windows, ours
    python jobs/benchmark.py infer --size nano --window 64 --repeats 3  # the same, smaller and quicker
    python jobs/benchmark.py threshold --shards S --scores scores.csv  # a network, the best FLAIR threshold

Figures are medians over interleaved repeats; times are process CPU time, because machines are shared (except
those of several cores and of opening, which are wall-clock).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brainfoundry.benchmarks import convert, data, infer, step, threshold
from brainfoundry.core import paths
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job


@dataclass(frozen=True, kw_only=True)
class DataBenchmark:
    json: Path | None = None
    """File for the figures, one flat JSON object."""
    folder: Path = paths.home() / "bench"
    """Where the generated subjects and what each side stores of them are kept between calls (about 3 GB)."""
    scans: Path | None = None
    """Folder with real scans, ms-patient19_{T1w,FLAIR}.nii.gz, to be added as a ninth subject; None: none."""
    repeats: int = 5
    """Interleaved repeats of each side."""
    crops: int = 1024
    """N of crop_ray_cpu_ms = (CPU(2N) - CPU(N)) / N over the whole process tree."""
    ray: bool = True
    """Also measure our store through Ray Data and a Train worker, and the pipeline's row rate (minutes)."""
    quick: bool = False
    """Two generated subjects and one repeat, to see that it works."""


@dataclass(frozen=True, kw_only=True)
class ConvertBenchmark:
    json: Path | None = None
    """File for the figures, one flat JSON object."""
    folder: Path = paths.home() / "bench"
    """Where the generated subjects are kept between calls, shared with `data`."""
    scans: Path | None = None
    """Folder with real scans, ms-patient19_{T1w,FLAIR}.nii.gz, to be added as a ninth subject; None: none."""
    repeats: int = 5
    """Interleaved repeats of each side."""
    subjects: int = 40
    """Subjects of convert_2_cores_vs_1: hard links of the few there are."""
    total: int = convert.SUBJECTS_41400
    """Subjects of the simulated shard set of open_41400_s."""
    quick: bool = False
    """Two generated subjects, four converted over Ray, 1,000 opened, one repeat, to see that it works."""


@dataclass(frozen=True, kw_only=True)
class StepBenchmark:
    json: Path | None = None
    """File for the figures, one flat JSON object."""
    size: str = "tiny"
    """Size of the network (Table 2)."""
    crop: int = 96
    """Side of the crop in voxels; 64 is a quick look."""
    repeats: int = 5
    """Interleaved repeats of each side, after one warm-up."""
    threads: int = 1
    """torch threads."""


@dataclass(frozen=True, kw_only=True)
class InferBenchmark:
    json: Path | None = None
    """File for the figures, one flat JSON object."""
    case: Path | None = None
    """Folder of a BraTS case with *_{flair,t1ce,t1,t2}.nii.gz; None: a generated one."""
    folder: Path = paths.home() / "bench"
    """Where the generated case is kept between calls."""
    size: str = "tiny"
    """Size of the network (Table 2)."""
    window: int = 96
    """Side of the windows in voxels; 64 is a quick look."""
    repeats: int = 5
    """Interleaved repeats of 8 windows on each side, after one warm-up; 0: no comparison with MONAI."""
    threads: int = 1
    """torch threads."""
    whole: bool = False
    """Also run each side over the whole volume once, ours in mode box (about ten minutes)."""
    checkpoint: str = ""
    """Fine-tuned checkpoint whose masks of modes box and exact are compared; empty: none."""
    shards: str = ""
    """Shard set with the subjects for that."""
    split: str = "test"
    """Split that they are taken from."""
    subjects: int = 3
    """How many."""

    def __post_init__(self) -> None:
        if bool(self.checkpoint) != bool(self.shards):
            raise ConfigError(
                "only one of --checkpoint and --shards is given", fix="give both, or neither to leave it out"
            )


def run_data(config: DataBenchmark) -> None:
    if config.quick:
        config = replace(config, repeats=1, folder=config.folder / "quick", ray=False)
    few = 2 if config.quick else data.GENERATED
    figures = data.run(config.folder, config.scans, repeats=config.repeats, generated=few)
    if config.ray:
        from brainfoundry.benchmarks import pipeline

        figures |= pipeline.run_all(
            str(config.folder / "shards"),
            crops=config.crops,
            direct_ms=figures["crop_direct_cpu_ms"],
            repeats=config.repeats,
        )
    data.write(figures, config.json)


def run_convert(config: ConvertBenchmark) -> None:
    if config.quick:
        folder = config.folder / "quick"
        config = replace(config, repeats=1, subjects=4, total=1_000, folder=folder)
    figures = convert.run(
        config.folder, config.scans, repeats=config.repeats, subjects=config.subjects, total=config.total,
        generated=2 if config.quick else data.GENERATED,
    )  # fmt: skip
    data.write(figures, config.json)


def run_step(config: StepBenchmark) -> None:
    crop = (config.crop,) * 3
    figures = step.run(
        size=config.size, crop=crop, repeats=config.repeats, threads=config.threads, report=print
    )
    data.write(figures, config.json)


def run_infer(config: InferBenchmark) -> None:
    figures: dict[str, Any] = {}
    if config.repeats:
        case = config.case or infer.demo_case(config.folder)
        print(f"case: {case}" if config.case else f"case: {case}, generated, because --case names none")
        figures |= infer.run(
            case, size=config.size, window=config.window, repeats=config.repeats, threads=config.threads,
            whole=config.whole, report=print,
        )  # fmt: skip
    if config.checkpoint:
        figures |= infer.box_dice(
            config.checkpoint, config.shards, subjects=config.subjects, split=config.split, report=print
        )
    data.write(figures, config.json)


@dataclass(frozen=True, kw_only=True)
class ThresholdBenchmark:
    json: Path | None = None
    """File for the figures, one flat JSON object."""
    shards: str = ""
    """Shard set of BraTS-like cases; the threshold is tuned on its train split."""
    scores: str = ""
    """scores.csv of a network on the split (jobs/evaluate.py)."""
    split: str = "test"
    """Split on which both are scored."""


def run_threshold(config: ThresholdBenchmark) -> None:
    if not config.shards or not config.scores:
        raise ConfigError("--shards and --scores are needed", fix="name both; see --help")
    data.write(threshold.run(config.shards, config.scores, split=config.split), config.json)


KINDS = {
    "data": (DataBenchmark, run_data),
    "convert": (ConvertBenchmark, run_convert),
    "step": (StepBenchmark, run_step),
    "infer": (InferBenchmark, run_infer),
    "threshold": (ThresholdBenchmark, run_threshold),
}


def main() -> None:
    name, *argv = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in KINDS:
        line = ConfigError(f"no benchmark {name!r}", fix=f"say which: {', '.join(KINDS)}").line()
        sys.exit(f"error: {line}")
    kind, run = KINDS[name]
    run_job(kind, run, description=__doc__, argv=argv)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
