"""What a manifest or a shard set claims of its scans, to be held against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brainfoundry.cohorts.intake import optional_of
from brainfoundry.cohorts.manifest import ManifestMeta
from brainfoundry.store.meta import ShardSetMeta


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What every scan is held against.

    Args:
        modalities: names in order.
        space: claimed template space; "" for scanner space.
        skull_stripped: the claim.
        labels: scheme of the masks (`cohorts.labels`); "" without.
        min_slices: fewest axial slices with brain.
        optional: of the modalities, those a session may lack.
        resampled: voxels are no longer those of the files (shard sets with `spacing_mm`).
    """

    modalities: tuple[str, ...]
    space: str
    skull_stripped: bool
    labels: str
    min_slices: int
    optional: tuple[str, ...] = ()
    resampled: bool = False


def of_manifest(meta: ManifestMeta, min_slices: int | None = None) -> Expectation:
    """The claims of a cohort manifest; its own slice rule, else 100 slices (paper Fig. 3)."""
    return Expectation(
        modalities=tuple(meta.modalities),
        space=meta.template_space,
        skull_stripped=meta.skull_stripped,
        labels=meta.labels,
        min_slices=_rule(meta.rules) if min_slices is None else min_slices,
        optional=optional_of(meta),
    )


def of_shards(meta: ShardSetMeta, min_slices: int | None = None) -> Expectation:
    """The claims of a shard set."""
    # After resampling slices are of another thickness: the rule was applied to the files, before.
    known = 0 if meta.spacing_mm is not None else int(meta.spec.get("min_slices", 100))
    return Expectation(
        modalities=tuple(meta.modalities),
        space=meta.space,
        skull_stripped=meta.skull_stripped,
        labels=meta.labels,
        min_slices=known if min_slices is None else min_slices,
        resampled=meta.spacing_mm is not None,
    )


def _rule(rules: Mapping[str, Any]) -> int:
    conversion = rules.get("conversion") or {}
    for value in (conversion.get("min_slices"), rules.get("min_slices"), rules.get("min_slices_header")):
        if value is not None:
            return int(value)
    return 100
