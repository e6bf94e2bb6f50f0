"""Benchmark `step`: our training step against a plain MONAI loop, on equal weights and equal augmented crops.

    python -m brainfoundry.benchmarks.step --json step.json     # tiny, 96^3: about 15 minutes of CPU
    python -m brainfoundry.benchmarks.step --crop 64            # a quick look

A step is forward, the three losses, backward and AdamW, on 2 crops x 2 views of 1 channel in float32, on one
thread unless told otherwise. Ours runs both views in one forward pass, the other runs one a view. The runs
are interleaved, and CPU seconds of the process are compared, pair by pair. Augmentation is left out on both
sides: the crops are cut out beforehand. Memory is the peak resident size of a fresh process that takes one
step.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from brainfoundry.benchmarks.peer_ssl import PeerNetwork, peer_loss
from brainfoundry.core.rng import hash64_torch
from brainfoundry.models import SIZES, EncoderSpec, SSLNetwork
from brainfoundry.models.sizes import Merging
from brainfoundry.pretext.inpaint_rotate_contrast import Objective, Views

CROPS = 2
"""Crops a step, one group."""
DEAD = tuple(f"conv.{layer}.bias" for layer in (0, 4, 8, 12, 16))
"""Biases whose true gradient is zero, because an instance norm follows: only rounding is left to compare."""

Losses = dict[str, torch.Tensor]


def make_views(crop: Sequence[int], seed: int = 0) -> Views:
    """Both augmented views of the benchmark's crops, which are noise: a step's work depends on no values."""
    generator = torch.Generator().manual_seed(seed)
    x_NCDHW = torch.randn(CROPS, 1, *crop, generator=generator)
    return Objective().views(x_NCDHW, hash64_torch(torch.arange(CROPS), seed), CROPS)


def our_losses(network: nn.Module, views: Views) -> Losses:
    """Our side: both views in one forward pass."""
    return Objective().losses(network(views.cut), views, CROPS)


def peer_losses(network: nn.Module, views: Views) -> Losses:
    """The other side: one forward pass a view."""
    cut, target, turns = ((t[:CROPS], t[CROPS:]) for t in (views.cut, views.target, views.turns))
    total, parts = peer_loss(network, cut, target, turns)
    return {"total": total, **parts}


SIDES: dict[str, tuple[type[nn.Module], Callable[[nn.Module, Views], Losses]]] = {
    "ours": (SSLNetwork, our_losses),
    "monai": (PeerNetwork, peer_losses),
}
"""How each side builds its network and computes its losses."""


class Stepper:
    """One side's network and optimizer."""

    def __init__(self, side: str, spec: EncoderSpec, weights: dict[str, torch.Tensor] | None = None) -> None:
        build, self.losses = SIDES[side]
        torch.manual_seed(0)
        self.network = build(spec)
        if weights is not None:
            self.network.load_state_dict(weights)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.1)

    def gradients(self, views: Views) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """The losses and every parameter's gradient, without a step."""
        self.optimizer.zero_grad()
        losses = self.losses(self.network, views)
        losses["total"].backward()
        grads = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        return {name: float(value.detach()) for name, value in losses.items()}, grads

    def step(self, views: Views) -> float:
        """Takes one step and returns the CPU seconds that it took."""
        start = time.process_time()
        self.optimizer.zero_grad()
        self.losses(self.network, views)["total"].backward()
        self.optimizer.step()
        return time.process_time() - start


def largest_relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest ||g - g'|| / ||g'|| over tensors, dead biases aside; the names must be the same."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    return max(
        float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours if name not in DEAD
    )


def peak_memory_gb(side: str, spec: EncoderSpec, crop: Sequence[int], threads: int) -> float:
    """Peak resident memory, 10^9 bytes, of a fresh process that takes one step of `side`."""
    command = [sys.executable, "-m", "brainfoundry.benchmarks.step", "--memory-of", side, "--size", spec.size]
    command += ["--crop", *map(str, crop), "--merging", spec.merging, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def _own_peak_gb() -> float:
    # VmHWM belongs to this program's memory map; getrusage's figure survives an exec and may be the parent's.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("this system does not report the peak memory of a process in /proc/self/status")
    return int(found.group(1)) * 1024 / 1e9


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    json_path: str | Path | None = None,
    repeats: int = 5,
    *,
    size: str = "tiny",
    crop: Sequence[int] = (96, 96, 96),
    merging: Merging = "current",
    threads: int = 1,
    memory: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures, and returns one flat dictionary of named figures, which is also written to `json_path`.

    Args:
        json_path: where to write the figures.
        repeats: pairs of runs; an unmeasured pair goes first and gives the differences of losses and
            gradients.
        size: nano, tiny, small or big.
        crop: sides in voxels.
        merging: patch merging of both sides.
        threads: torch threads.
        memory: whether to measure peak memory too, in two further processes.
        report: receives a line of progress.

    Returns:
        step_vs_monai (theirs / ours in CPU time, median over pairs, with _min and _max: more is faster),
        step_cpu_s and step_monai_cpu_s (medians), step_max_rel_diff_loss and step_max_rel_diff_grad,
        step_peak_memory_vs_monai (ours / theirs: less is leaner) with both in GB, and the settings.
    """
    spec = EncoderSpec(size=size, in_channels=1, merging=merging)
    figures: dict[str, Any] = {}
    if memory:  # first, while this process is still small
        peaks = {side: peak_memory_gb(side, spec, crop, threads) for side in SIDES}
        figures |= {
            "step_peak_memory_vs_monai": peaks["ours"] / peaks["monai"],
            "step_peak_memory_gb": peaks["ours"],
            "step_monai_peak_memory_gb": peaks["monai"],
        }
        report(f"peak memory: ours {peaks['ours']:.2f} GB, MONAI {peaks['monai']:.2f} GB")
    with _threads(threads):
        views = make_views(crop)
        ours = Stepper("ours", spec)
        theirs = Stepper("monai", spec, ours.network.state_dict())
        our_values, our_grads = ours.gradients(views)
        their_values, their_grads = theirs.gradients(views)
        figures["step_max_rel_diff_loss"] = max(
            abs(our_values[name] - their_values[name]) / abs(their_values[name]) for name in their_values
        )
        figures["step_max_rel_diff_grad"] = largest_relative_difference(our_grads, their_grads)
        report(
            f"largest relative differences: losses {figures['step_max_rel_diff_loss']:.2g}, "
            f"gradients {figures['step_max_rel_diff_grad']:.2g}"
        )
        del our_grads, their_grads
        seconds: list[tuple[float, float]] = []
        for pair in range(repeats):
            # Whoever goes second finds warmer caches, so the sides take turns.
            first, second = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
            a, b = first.step(views), second.step(views)
            seconds.append((a, b) if first is ours else (b, a))
            report(f"pair {pair + 1} of {repeats}: ours {seconds[-1][0]:.2f} s, MONAI {seconds[-1][1]:.2f} s")
    ratios = [their_s / our_s for our_s, their_s in seconds]
    figures |= {
        "step_vs_monai": statistics.median(ratios),
        "step_vs_monai_min": min(ratios),
        "step_vs_monai_max": max(ratios),
        "step_cpu_s": statistics.median(our_s for our_s, _ in seconds),
        "step_monai_cpu_s": statistics.median(their_s for _, their_s in seconds),
    }
    figures |= {
        "step_size": size,
        "step_crop": "x".join(map(str, crop)),
        "step_merging": merging,
        "step_threads": threads,
        "step_repeats": repeats,
        "step_torch": torch.__version__,
    }
    if json_path is not None:
        Path(json_path).write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Our training step against a plain MONAI loop.")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved pairs of runs (default 5)")
    parser.add_argument(
        "--size", choices=list(SIZES), default="tiny", help="size of the network (default tiny)"
    )
    parser.add_argument(
        "--crop", type=int, nargs="+", default=[96], help="side, or three sides, in voxels (default 96)"
    )
    parser.add_argument(
        "--merging", choices=get_args(Merging), default="current", help="patch merging of both sides"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the two further processes")
    parser.add_argument("--memory-of", choices=list(SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    crop = given.crop * 3 if len(given.crop) == 1 else given.crop
    if given.memory_of:
        with _threads(given.threads):
            Stepper(given.memory_of, EncoderSpec(size=given.size, merging=given.merging)).step(
                make_views(crop)
            )
        sys.stdout.write(f"{_own_peak_gb()}\n")
        return
    figures = run(
        given.json,
        given.repeats,
        size=given.size,
        crop=crop,
        merging=given.merging,
        threads=given.threads,
        memory=not given.no_memory,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
