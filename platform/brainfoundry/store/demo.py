"""The demo's shard set, made when somebody pretrains without data of their own."""

from __future__ import annotations

from pathlib import Path

from brainfoundry.cohorts.demo import make_demo_cohort
from brainfoundry.cohorts.ukb import UKBRules, read_ukb, require_eligible
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import meta_uri
from brainfoundry.store.shard_task import ConvertSpec

DEMO_SPEC = ConvertSpec(spacing_mm=2.0, n_val=2, rows_per_shard=4)
"""2 mm voxels, because the nano network's 64x32x32 crop should see a good part of the brain."""


def ensure_demo_shards(folder: Path, *, make: bool = True) -> str:
    """URI of the demo's shard set below `folder`, after making cohort and shards if they are not there.

    Args:
        folder: such as `$BRAINFOUNDRY_HOME/demo`; the cohort goes to `ukb/`, the shards to `shards/`.
        make: False only looks.

    Raises:
        DataError: there is none and `make` is False.
    """
    shards = str(folder / "shards")
    if files.exists(meta_uri(shards)):
        return shards
    if not make:
        raise DataError(
            "there is no demo shard set yet", file=shards, fix="make demo, or name one with --data.shards"
        )
    print(f"no shard set was named: making the demo cohort in {folder} first (about two minutes)", flush=True)
    make_demo_cohort(str(folder / "ukb"))
    intake = read_ukb(str(folder / "ukb"), str(folder / "intake.parquet"), UKBRules())
    require_eligible(intake)
    convert(intake, shards, DEMO_SPEC, executor=inline)
    return shards
