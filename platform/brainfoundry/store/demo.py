"""The demo's shard sets, made when somebody trains without data of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brainfoundry.cohorts import atlas, brats
from brainfoundry.cohorts.demo import make_demo_cohort
from brainfoundry.cohorts.demo_atlas import make_atlas_cohort
from brainfoundry.cohorts.demo_brats import make_brats_cohort
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb, require_eligible
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import meta_uri
from brainfoundry.store.shard_task import ConvertSpec

DEMO_SPEC = ConvertSpec(spacing_mm=2.0, n_val=2, rows_per_shard=4)
"""2 mm voxels, because the nano network's 64x32x32 crop should see a good part of the brain."""


@dataclass(frozen=True)
class _Demo:
    """How one demo shard set comes to be."""

    source: str
    """Folder of the cohort, below the demo's."""
    shards: str
    make: Callable[[str], object]
    read: Callable[[str, str], Manifest]


def _read_brats(source: str, manifest: str) -> Manifest:
    return brats.read_brats(source, manifest, IntakeRules(modalities=brats.MODALITIES))


def _read_atlas(source: str, manifest: str) -> Manifest:
    return atlas.read_atlas(source, manifest, IntakeRules(modalities=atlas.MODALITIES))


def _read_ukb(source: str, manifest: str) -> Manifest:
    return read_ukb(source, manifest, UKBRules())


def ensure_demo_shards(folder: Path, *, make: bool = True) -> str:
    """URI of the healthy demo's shard set below `folder`; cohort and shards are made if they are not there.

    Args:
        folder: such as `$BRAINFOUNDRY_HOME/demo`; the cohort goes to `ukb/`, the shards to `shards/`.
        make: False only looks.

    Raises:
        DataError: there is none and `make` is False.
    """
    return _ensure(_Demo("ukb", "shards", make_demo_cohort, _read_ukb), folder, make)


def ensure_demo_brats(folder: Path, *, make: bool = True) -> str:
    """The same for the tumour demo: `brats/`, `brats-shards/`."""
    return _ensure(_Demo("brats", "brats-shards", make_brats_cohort, _read_brats), folder, make)


def ensure_demo_atlas(folder: Path, *, make: bool = True) -> str:
    """The same for the stroke demo: `atlas/`, `atlas-shards/`."""
    return _ensure(_Demo("atlas", "atlas-shards", make_atlas_cohort, _read_atlas), folder, make)


def _ensure(demo: _Demo, folder: Path, make: bool) -> str:
    shards = str(folder / demo.shards)
    if files.exists(meta_uri(shards)):
        return shards
    if not make:
        raise DataError(
            "there is no demo shard set yet", file=shards, fix="make demo, or name one with --data.shards"
        )
    print(f"no shard set was named: making the demo cohort in {folder} first (about two minutes)", flush=True)
    source = str(folder / demo.source)
    demo.make(source)
    intake = demo.read(source, str(folder / f"{demo.source}-intake.parquet"))
    require_eligible(intake)
    convert(intake, shards, DEMO_SPEC, executor=inline)
    return shards
