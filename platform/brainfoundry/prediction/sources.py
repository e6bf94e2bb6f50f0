"""Where the scans to predict come from: the kind of input is found out, and its sessions become cases.

A folder, a BIDS dataset and the trees of BraTS and ATLAS go through the cohort readers, whose intake reads
every header; a cohort manifest and a shard set bring theirs along.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from brainfoundry.cohorts import atlas, bids, brats
from brainfoundry.cohorts.folder import Folder
from brainfoundry.cohorts.intake import Gathering, IntakeRules, judge_cohort, left_alone
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta, read_manifest
from brainfoundry.cohorts.rows import Scan
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.prediction.cases import Case
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.names import NNUNET, Namer
from brainfoundry.store.meta import LABEL
from brainfoundry.store.reader import ShardSet

_BRATS = re.compile(
    r"(BraTS2021_\d+_(?:flair|t1ce|t1|t2)|BraTS-[A-Za-z]+-\d+(?:-\d+)?-(?:t2f|t1c|t1n|t2w))\.nii(?:\.gz)?"
)
_ATLAS = re.compile(rf"sub-r\d+s\d+_ses-\w+_space-{atlas.SPACE}_T1w\.nii(?:\.gz)?")
_LOOKED_AT = 10_000
"""Files by whose names a folder is told from the trees of BraTS and ATLAS."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found.

    Args:
        kind: in words.
        cases: by subject and session.
        notes: sentences on files left alone.
    """

    kind: str
    uri: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()


def find_cases(config: PredictConfig, wanted: Sequence[str]) -> Source:
    """The cases of `config.input`, whatever kind it is.

    Args:
        wanted: modalities that the network may be fed.

    Raises:
        ConfigError: no input, or options of another kind of input.
        DataError: there is nothing to predict.
    """
    if not config.input:
        raise ConfigError("no input was named", fix="give scans with --input")
    uri = files.absolute(config.input)
    if uri.endswith(".parquet"):
        source = _of_manifest(uri, config)
    elif files.exists(files.join(uri, "shardset.json")):
        source = _of_shards(uri, config)
    elif uri.endswith((".nii", ".nii.gz")):
        raise ConfigError("the input is a single file", file=uri, fix="give the folder that holds it")
    elif config.split:
        raise ConfigError("--split needs splits", fix="give a cohort manifest or a shard set as --input")
    else:
        source = _of_folder(uri, config, wanted)
    if not source.cases:
        raise DataError("no session to predict", file=uri, fix="check --input and --split")
    return replace(source, cases=source.cases[: config.limit])


def _of_manifest(uri: str, config: PredictConfig) -> Source:
    manifest = read_manifest(uri)
    rows = [row for row in manifest.rows(included_only=True) if config.split in ("", row.split)]
    meta = manifest.meta
    cases = tuple(Case.of(row, meta.template_space, meta.skull_stripped) for row in rows)
    return Source(kind=f"cohort manifest of {meta.cohort}", uri=uri, cases=cases)


def _of_shards(uri: str, config: PredictConfig) -> Source:
    shards = ShardSet.open(uri)
    meta = shards.meta
    if meta.spacing_mm is not None:
        raise DataError(
            f"shard set was resampled to {meta.spacing_mm} mm: the scans' own grids are gone", file=uri,
            fix="give its intake.parquet as --input, which names the files",
        )  # fmt: skip
    columns = shards.index.select(
        ["subject", "session", "split", "shard", "row", "shape", "spacing", "scans", "length", "head_crc"]
    )
    cases = []
    for row in columns.to_pylist():
        if config.split not in ("", row["split"]):
            continue
        stored = (uri, row["shard"], row["row"])
        scans = tuple(
            Scan(
                modality=scan["modality"], uri=f"{uri}/shards/shard-{row['shard']:05d}.arrow",
                size=row["length"], crc32=row["head_crc"], shape=tuple(row["shape"]),
                spacing=tuple(row["spacing"]), orientation="RAS", dtype=scan["code_dtype"],
            )
            for scan in row["scans"]
            if scan["modality"] != LABEL and scan["present"] is not False
        )  # fmt: skip
        case = Case(
            subject=row["subject"], session=row["session"], scans=scans, stored=stored, space=meta.space,
            skull_stripped=meta.skull_stripped,
        )  # fmt: skip
        cases.append(case)
    cases.sort(key=lambda case: (case.subject, case.session))
    return Source(kind=f"shard set of {meta.cohort}", uri=uri, cases=tuple(cases))


def _of_folder(uri: str, config: PredictConfig, wanted: Sequence[str]) -> Source:
    folder = Folder(uri, "the scans")
    chosen = bool(config.pattern or config.channels)
    names = [parts[-1] for parts in islice(folder.images(), 0 if chosen else _LOOKED_AT)]
    space = ""
    stripped: bool | None = None  # what the layout says of its scans
    with tempfile.TemporaryDirectory() as scratch:
        intake = f"{scratch}/intake.parquet"
        if any(map(_ATLAS.fullmatch, names)):
            kind, space, stripped = "ATLAS tree", atlas.SPACE, False
            manifest = atlas.read_atlas(uri, intake, _rules(atlas.MODALITIES))
        elif any(map(_BRATS.fullmatch, names)):
            manifest = brats.read_brats(uri, intake, _rules(brats.MODALITIES))
            kind, space, stripped = "BraTS tree", manifest.meta.template_space, True
        elif not chosen and files.exists(files.join(uri, "dataset_description.json")):
            choice = bids.BidsChoice(entities=bids.entities_of(config.entities, config.run))
            manifest = bids.read_bids(uri, intake, _rules(bids.MODALITIES), choice)
            kind, space = "BIDS dataset", manifest.meta.template_space
        else:
            kind = "folder"
            manifest = _read_folder(folder, intake, Namer(wanted, config.pattern, config.channels))
    cases = tuple(Case.of(row, space, stripped) for row in manifest.rows())
    notes = tuple(note for note in manifest.meta.notes if "left alone" in note)
    return Source(kind=kind, uri=uri, cases=cases, notes=notes)


def _rules(modalities: tuple[str, ...]) -> IntakeRules:
    """Everything is read and nothing required: what the network wants is asked of each case."""
    return IntakeRules(modalities=modalities, optional=modalities, labels="ignore", min_slices=0)


def _read_folder(folder: Folder, intake: str, namer: Namer) -> Manifest:
    """The intake of a folder whose files are told by their names."""
    found, others, numbered = Gathering(), 0, False
    modalities: set[str] = set()
    homes: dict[tuple[str, str], tuple[str, ...]] = {}
    for parts in folder.images():
        named = namer.read(parts)
        if named is None:
            others += 1
            numbered |= NNUNET.search(parts[-1]) is not None
            continue
        home = homes.setdefault((named.subject, named.session), parts[:-1])
        if home != parts[:-1] and not namer.by_path:  # scans of two people might become one case
            one, two = sorted("/".join(where) or "." for where in (home, parts[:-1]))
            raise DataError(
                f"scans of '{named.subject}' lie in two folders, {one} and {two}: one case, or two?",
                file=folder.uri,
                fix='say which part of the path is the case: --pattern "{subject}/*_{modality}.nii.gz"',
            )
        found.add(named.subject, named.session, named.modality, folder.uri_of(parts))
        modalities.add(named.modality)
    if not found:
        fix = (
            "name them case_flair.nii.gz, case_t1.nii.gz and so on, or say how they are named with --pattern"
        )
        if numbered:
            fix = "for nnU-Net's names say what its channels are: --channels 0000=FLAIR 0001=T1ce and so on"
        raise DataError(f"no scan of a known modality among {others:,} images", file=folder.uri, fix=fix)
    names = tuple(sorted(modalities))
    meta = ManifestMeta(
        cohort="folder", modalities=names, template_space="", skull_stripped=False, source=folder.uri,
        notes=left_alone(folder, others, "a known modality"),
    )  # fmt: skip
    return judge_cohort(found.found(), intake, meta, _rules(names))
