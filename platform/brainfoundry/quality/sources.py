"""A folder of scans as something to verify: read by its cohort's reader, headers first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.quality.verify import Inspection, of_intake, of_shard_set

Cohort = Literal["ukb", "brats", "atlas", "bids"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of a folder is meant, as the prepare jobs take it.

    Args:
        optional: modalities that sessions may lack.
        scheme: label scheme of the masks; "": the cohort's own.
        run, entities, masks: BIDS only; see `cohorts.bids.BidsChoice`.
    """

    optional: tuple[str, ...] = ()
    scheme: str = ""
    run: int | None = None
    entities: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()


def inspection_of(
    *,
    manifest: str | None = None,
    shards: str | None = None,
    source: str | None = None,
    cohort: Cohort | None = None,
    modalities: tuple[str, ...] = (),
    min_slices: int | None = None,
    choice: Choice | None = None,
) -> Inspection:
    """What to verify, named in one of three ways.

    Args:
        modalities: what to read of a folder; default: what its cohort has (T1w for BIDS).
        min_slices: fewest axial slices; default: the manifest's own rule, 100 for a folder.
        choice: of a folder, which files and which label scheme.

    Raises:
        ConfigError: none or several of them, or a folder without its cohort.
        DataError: nothing of the kind there.
    """
    given = [
        name for name, value in (("manifest", manifest), ("shards", shards), ("source", source)) if value
    ]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join('--' + name for name in given) or 'nothing'} to verify",
            fix="give one of --manifest FILE, --shards FOLDER, or --source FOLDER with --cohort",
        )
    if manifest:
        return of_intake(read_manifest(manifest), files.absolute(manifest), min_slices=min_slices)
    if shards:
        return of_shard_set(shards, min_slices=min_slices)
    assert source is not None
    if cohort is None:
        raise ConfigError("--source without --cohort", fix="add --cohort ukb, brats, atlas or bids")
    with tempfile.TemporaryDirectory() as scratch:
        slices = 100 if min_slices is None else min_slices
        reader = _reader(cohort, modalities, slices, choice or Choice())
        read = reader(source, f"{scratch}/intake.parquet")
    return of_intake(read, files.absolute(source), min_slices=min_slices, fresh=True)


def _reader(
    cohort: Cohort, modalities: tuple[str, ...], min_slices: int, choice: Choice
) -> Callable[[str, str], Manifest]:
    """(folder, where the manifest goes) -> manifest. Imported when asked for: a job reads one cohort."""
    if cohort == "ukb":
        from brainfoundry.cohorts.ukb import UKBRules, read_ukb

        # Every imaging visit: verification is about what was delivered, not about what will be trained on.
        bulk = UKBRules(instances=(2, 3), min_slices=min_slices, optional=choice.optional)
        bulk = replace(bulk, modalities=modalities or bulk.modalities)
        return lambda folder, uri: read_ukb(folder, uri, bulk)

    def rules(usual: tuple[str, ...]) -> IntakeRules:
        # A case without its mask is still looked at; that the mask is missing is told (`verify.of_intake`).
        return IntakeRules(
            modalities=modalities or usual, optional=choice.optional, labels="optional", min_slices=min_slices
        )

    if cohort == "brats":
        from brainfoundry.cohorts import brats

        of_brats = rules(brats.MODALITIES)
        return lambda folder, uri: brats.read_brats(folder, uri, of_brats, scheme=choice.scheme)
    if cohort == "atlas":
        from brainfoundry.cohorts import atlas

        return lambda folder, uri: atlas.read_atlas(folder, uri, rules(atlas.MODALITIES))
    from brainfoundry.cohorts import bids

    wanted = bids.BidsChoice(
        masks=choice.masks or bids.MASK_PATTERNS,
        entities=bids.entities_of(choice.entities, choice.run),
        scheme=choice.scheme or "binary",
    )
    return lambda folder, uri: bids.read_bids(folder, uri, rules(("T1w",)), wanted)
