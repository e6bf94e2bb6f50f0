"""Benchmark `infer`: a whole tumour case through a SwinUNETR, ours against MONAI's sliding-window inferer.

    python jobs/benchmark.py infer --case CASE_FOLDER --json infer.json      # about 20 minutes of CPU
    python jobs/benchmark.py infer --size nano --window 64 --repeats 2       # a quick look, on a demo case

Both sides have the same weights and windows (overlap 0.5, Gaussian weights), in float32, on one thread
unless told otherwise. MONAI's side has MONAI's attention and its grid over the whole volume; ours attends by
segments, over the same grid (`exact`) or over that of the brain's box (`box`).

A whole volume takes MONAI about ten minutes, so what is repeated is 8 windows in the middle of the brain:
sides interleaved, process CPU seconds, compared pair by pair, times the number of windows that each side
really runs over the whole volume (a counting network tells). `whole` runs both over the whole volume, once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from brainfoundry.cohorts.brats import MODALITIES
from brainfoundry.cohorts.demo_brats import SUFFIX, BratsSpec, make_brats_cohort
from brainfoundry.core.errors import DataError
from brainfoundry.inference import WindowSpec, load_case, predict_probabilities, sliding_window
from brainfoundry.inference.geometry import Space
from brainfoundry.inference.volume import Box
from brainfoundry.models import EncoderSpec, build_segmenter
from brainfoundry.prediction.models import space_of
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.overlap import dice
from brainfoundry.training.initialise import find_checkpoint
from brainfoundry.training.volumes import VolumeReader, load_segmenter, sessions_of

REGIONS = 3
"""Maps of a tumour network."""
LARGEST_DIFFERENCE = 1e-4
"""Of both sides' logits, relative to the largest logit: float32 rounding through the whole network."""
SPACE = Space(
    modalities=MODALITIES,
    intensity="zscore_nonzero",
    spacing_mm=None,
    template="SRI24",
    skull_stripped=True,
)
"""What the compared network is fed."""

Network = Callable[[torch.Tensor], torch.Tensor]
Volume = tuple[torch.Tensor, Box]
"""What a network is fed, (C, D, H, W), and the brain's box in it."""


def find_scans(folder: Path) -> dict[str, str]:
    """Path by modality of the four scans in a BraTS case's folder.

    Raises:
        DataError: one of them is missing, or there are several.
    """
    found = {}
    for modality in MODALITIES:
        name = f"*_{SUFFIX[modality]}.nii.gz"
        scans = sorted(folder.glob(name))
        if len(scans) != 1:
            problem = f"{len(scans)} files are called {name}, not one"
            raise DataError(problem, file=str(folder), fix="name the folder of one BraTS case")
        found[modality] = str(scans[0])
    return found


def demo_case(folder: Path) -> Path:
    """The folder of a generated case below `folder`, made at the first call."""
    spec = BratsSpec(n_cases=1, n_no_t1ce=0)
    root = folder / "brats"
    make_brats_cohort(str(root), spec)
    return root / next(spec.cases()).name


class Counter:
    """A network that costs nothing and counts its windows."""

    def __init__(self) -> None:
        self.windows = 0

    def __call__(self, x_NCDHW: torch.Tensor) -> torch.Tensor:
        self.windows += len(x_NCDHW)
        return x_NCDHW[:, :1]


@dataclass(frozen=True)
class Sides:
    """MONAI's inferer and ours, each with its network of the same weights."""

    theirs: nn.Module
    ours: nn.Module
    spec: WindowSpec

    @classmethod
    def build(cls, size: str, spec: WindowSpec) -> Sides:
        """Both networks, freshly initialised."""
        torch.manual_seed(0)
        encoder = EncoderSpec(size=size, in_channels=len(MODALITIES))
        theirs = build_segmenter(encoder, REGIONS).eval()
        ours = build_segmenter(replace(encoder, attention="segments"), REGIONS).eval()
        ours.load_state_dict(theirs.state_dict())
        return cls(theirs, ours, replace(spec, mode="exact"))

    def monai(self, x_1CDHW: torch.Tensor, network: Network | None = None) -> torch.Tensor:
        """Logits of a whole volume, MONAI's way."""
        inferer = SlidingWindowInferer(
            roi_size=self.spec.window, sw_batch_size=self.spec.batch, overlap=self.spec.overlap,
            mode=self.spec.weights,
        )  # fmt: skip
        with torch.inference_mode():
            logits = inferer(x_1CDHW, network or self.theirs)
        assert isinstance(logits, torch.Tensor)
        return logits

    def exact(self, x_1CDHW: torch.Tensor, network: Network | None = None) -> torch.Tensor:
        """Logits of a whole volume, ours."""
        with torch.inference_mode():
            return sliding_window(network or self.ours, x_1CDHW, self.spec)

    def box(self, volume: Volume, network: Network | None = None) -> np.ndarray:
        """Probabilities of a whole volume, ours, of which only the brain's box is computed."""
        spec = replace(self.spec, mode="box")
        return predict_probabilities([network or self.ours], *volume, spec, device="cpu")

    def windows(self, volume: Volume) -> dict[str, int]:
        """How many windows each side runs over a whole volume."""
        x_1CDHW = volume[0][None]
        counters = {name: Counter() for name in ("monai", "exact", "box")}
        self.monai(x_1CDHW, counters["monai"])
        self.exact(x_1CDHW, counters["exact"])
        self.box(volume, counters["box"])
        return {name: counter.windows for name, counter in counters.items()}


def middle(volume: Volume, spec: WindowSpec) -> torch.Tensor:
    """(1, C, D, H, W): two windows along each axis about the middle of the brain's box, 8 in all."""
    x_CDHW, (lo, hi) = volume
    places = []
    for first, last, side, window in zip(lo, hi, x_CDHW.shape[1:], spec.window, strict=True):
        length = min(window + max(int(window * (1 - spec.overlap)), 1), side)
        start = min(max((first + last - length) // 2, 0), side - length)
        places.append(slice(start, start + length))
    return x_CDHW[(slice(None), *places)][None].contiguous()


def ratios(seconds: Sequence[tuple[float, float]], windows: Mapping[str, int]) -> dict[str, float]:
    """Figures from pairs of CPU seconds, ours and MONAI's, for the same windows.

    Args:
        windows: over the whole volume, by way: monai, exact, box.
    """
    figures: dict[str, float] = {}
    for way in ("box", "exact"):
        found = [theirs * windows["monai"] / (ours * windows[way]) for ours, theirs in seconds]
        name = f"infer_{way}_vs_monai"
        figures |= {name: statistics.median(found), f"{name}_min": min(found), f"{name}_max": max(found)}
    return figures


def check_equal(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of logits, relative to the largest logit.

    Raises:
        DataError: it is more than rounding.
    """
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    if not worst <= LARGEST_DIFFERENCE:
        raise DataError(
            f"ours computes other logits than MONAI's: relative difference {worst:.3g}",
            fix="compare models.segment_attention and inference.windows with their tests",
        )
    return worst


def run(
    case: Path,
    *,
    size: str = "tiny",
    window: int | Sequence[int] = 96,
    overlap: float = 0.5,
    repeats: int = 5,
    threads: int = 1,
    whole: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures, and returns one flat dictionary of named figures.

    Args:
        case: folder of a BraTS case.
        window: side, or sides, in voxels.
        repeats: pairs of runs over the 8 windows; an unmeasured pair goes first and is held equal.
        whole: also run each side over the whole volume, once, ours in mode box.
        report: receives a line of progress.

    Returns:
        infer_box_vs_monai and infer_exact_vs_monai (MONAI's / ours in CPU time a volume, median over pairs,
        with _min and _max: more is faster), both from 8 windows times their number; infer_whole_box_vs_monai
        (the same from whole volumes, with `whole`); the seconds and counts behind them, and the settings.

    Raises:
        DataError: the two sides compute different logits.
    """
    sides = (window,) * 3 if isinstance(window, int) else tuple(window)
    spec = WindowSpec(window=sides, overlap=overlap)  # type: ignore[arg-type]  # checked there
    loaded = load_case(find_scans(case), SPACE, subject=case.name)
    volume = (loaded.x_CDHW, loaded.box)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        figures = _measure(Sides.build(size, spec), volume, repeats, whole, report)
    finally:
        torch.set_num_threads(before)
    return figures | {
        "infer_case": case.name,
        "infer_shape": "x".join(map(str, loaded.x_CDHW.shape[1:])),
        "infer_box": "x".join(str(last - first) for first, last in zip(*loaded.box, strict=True)),
        "infer_size": size,
        "infer_window": "x".join(map(str, spec.window)),
        "infer_overlap": overlap,
        "infer_threads": threads,
        "infer_repeats": repeats,
        "infer_torch": torch.__version__,
    }


def _measure(
    sides: Sides, volume: Volume, repeats: int, whole: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    part = middle(volume, sides.spec)
    counter = Counter()
    sides.exact(part, counter)
    windows = sides.windows(volume)
    worst = check_equal(sides.exact(part), sides.monai(part))
    report(f"windows over the whole volume: {windows}; largest relative difference {worst:.2g}")
    seconds: list[tuple[float, float]] = []
    for pair in range(repeats):
        # Whoever goes second finds warmer caches, so the sides take turns.
        taken = {}
        for way in (sides.exact, sides.monai) if pair % 2 == 0 else (sides.monai, sides.exact):
            taken[way.__name__] = _cpu_seconds(way, part)
        seconds.append((taken["exact"], taken["monai"]))
        a, b = seconds[-1]
        report(f"pair {pair + 1} of {repeats}: {counter.windows} windows, ours {a:.2f} s, MONAI {b:.2f} s")
    figures: dict[str, Any] = ratios(seconds, windows) | {
        "infer_how": f"{counter.windows} windows x window count",
        "infer_window_cpu_s": statistics.median(ours for ours, _ in seconds) / counter.windows,
        "infer_monai_window_cpu_s": statistics.median(theirs for _, theirs in seconds) / counter.windows,
        "infer_max_rel_diff": worst,
    }
    figures |= {f"infer_windows_{way}": count for way, count in windows.items()}
    if whole:
        ours_s = _cpu_seconds(sides.box, volume)
        report(f"whole volume: ours, box {ours_s:.1f} s")
        theirs_s = _cpu_seconds(lambda x: sides.monai(x).sigmoid(), volume[0][None])
        report(f"whole volume: MONAI {theirs_s:.1f} s, {theirs_s / ours_s:.2f} times ours")
        figures |= {
            "infer_whole_box_vs_monai": theirs_s / ours_s,
            "infer_whole_box_cpu_s": ours_s,
            "infer_whole_monai_cpu_s": theirs_s,
        }
    return figures


def _cpu_seconds(action: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    action(*arguments)
    return time.process_time() - start


# ---------------------------------------------------------------------------------------------------------
# What the box changes


def box_against_exact(
    networks: Sequence[Network], volumes: Iterable[Volume], spec: WindowSpec
) -> Iterator[list[tuple[float, bool]]]:
    """For every volume and region: Dice of the masks of modes box and exact, and whether both have voxels."""
    for volume in volumes:
        box, exact = (
            predict_probabilities(networks, *volume, replace(spec, mode=mode), device="cpu") > 0.5
            for mode in ("box", "exact")
        )
        yield [(dice(e, b), bool(e.any() and b.any())) for e, b in zip(exact, box, strict=True)]


def stored_volumes(shards: ShardSet, space: Space, split: str) -> Iterator[Volume]:
    """Volumes of a split's subjects with a mask, as a network of `space` is fed them.

    Raises:
        DataError: the shard set lacks a modality.
    """
    missing = sorted(set(space.sources) - set(shards.meta.modalities))
    if missing:
        raise DataError(
            f"no scans of {', '.join(missing)}", file=shards.uri,
            fix="name the shard set that the checkpoint was fine-tuned on",
        )  # fmt: skip
    channels = [list(shards.meta.modalities).index(name) for name in space.sources]
    read = VolumeReader(shards, channels, None, space.intensity)
    for session in sessions_of(shards, split=split):
        x_CDHW, box, _ = read(session)
        yield x_CDHW, box


def box_dice(
    checkpoint: str,
    shards: str,
    *,
    subjects: int = 3,
    split: str = "test",
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Figures of a fine-tuned network's masks in mode box against mode exact.

    Args:
        checkpoint: a step-... folder, or a run's folder.
        subjects: with voxels of every region in both modes; others are passed over, their Dice says nothing.

    Returns:
        infer_box_dice (mean over the subjects, of the lowest region), infer_box_dice_lowest (of any subject
        and region), infer_box_subjects.

    Raises:
        DataError, CheckpointError: what is named does not serve.
    """
    network, card = load_segmenter(find_checkpoint(checkpoint))
    volumes = stored_volumes(ShardSet.open(shards), space_of(card), split)
    found: list[list[float]] = []
    for regions in box_against_exact([network], volumes, WindowSpec(window=card.crop)):
        if all(there for _, there in regions):
            found.append([value for value, _ in regions])
            report(f"subject {len(found)} of {subjects}: Dice {', '.join(f'{v:.4f}' for v in found[-1])}")
        if len(found) == subjects:
            break
    if len(found) < subjects:
        raise DataError(
            f"{len(found)} subjects of split {split} have voxels of every region, {subjects} are asked for",
            file=shards, fix="train the network longer, or name another split",
        )  # fmt: skip
    return {
        "infer_box_dice": float(np.mean(found, axis=0).min()),
        "infer_box_dice_lowest": float(np.min(found)),
        "infer_box_subjects": subjects,
    }
