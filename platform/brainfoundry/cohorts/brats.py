"""The BraTS reader: folders of one patient's four modalities and segmentation, of either way of naming.

Until 2021 a case is `BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz` with labels 1, 2, 4; from
2023 on it is `BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz` with labels 1, 2, 3, the
last part a visit of the same patient. The two mean different things by their labels, so one root holds one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from brainfoundry.cohorts.folder import Folder
from brainfoundry.cohorts.intake import LABEL, Gathering, IntakeRules, judge_cohort, left_alone
from brainfoundry.cohorts.labels import check_scheme
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta
from brainfoundry.core.errors import ConfigError, DataError

MODALITIES = ("FLAIR", "T1ce", "T1w", "T2w")
"""In the order of the published SwinUNETR baseline (its folds file lists flair, t1ce, t1, t2)."""


@dataclass(frozen=True)
class _Naming:
    """One way of naming files: group 1 is the subject, group 2 the session (if any), the last the kind."""

    scheme: str
    pattern: re.Pattern[str]
    kinds: dict[str, str]


_NAMINGS = (
    _Naming(
        "brats2021",
        re.compile(r"(BraTS2021_\d+)()_([a-z0-9]+)\.nii(?:\.gz)?"),
        {"flair": "FLAIR", "t1ce": "T1ce", "t1": "T1w", "t2": "T2w", "seg": LABEL},
    ),
    _Naming(
        "brats2023",
        re.compile(r"(BraTS-[A-Za-z]+-\d+)(?:-(\d+))?-([a-z0-9]+)\.nii(?:\.gz)?"),
        {"t2f": "FLAIR", "t1c": "T1ce", "t1n": "T1w", "t2w": "T2w", "seg": LABEL},
    ),
)


def read_brats(
    root: str,
    manifest_uri: str,
    rules: IntakeRules | None = None,
    *,
    scheme: str = "",
    left_out: LeftOut | None = None,
    threads: int = 16,
) -> Manifest:
    """Judge every case below `root` by its headers and write the intake manifest.

    Args:
        root: folder (any storage) with case folders, in any nesting; .nii.gz or .nii.
        manifest_uri: where the manifest goes.
        scheme: label scheme (`labels.SCHEMES`), where it is not the one that goes with the names.
        left_out: the user's lists.

    Raises:
        DataError: no such folder, no case in it, or cases of both namings. One bad file only costs its row.
        ConfigError: a modality BraTS does not have, or an unknown scheme.
    """
    rules = rules or IntakeRules(modalities=MODALITIES)
    _check_modalities(rules.modalities)
    if scheme:
        check_scheme(scheme)
    folder = Folder(root, "case folders such as BraTS2021_00000")
    naming, sessions, others = _sessions(folder)
    meta = ManifestMeta(
        cohort="brats",
        modalities=rules.modalities,
        template_space="SRI24",
        skull_stripped=True,
        source=folder.uri,
        labels="" if rules.labels == "ignore" else scheme or naming.scheme,
        notes=left_alone(folder, others, "BraTS"),
    )
    return judge_cohort(sessions.found(), manifest_uri, meta, rules, left_out=left_out, threads=threads)


def _check_modalities(names: Sequence[str]) -> None:
    for name in names:
        if name not in MODALITIES:
            raise ConfigError(f"unknown modality {name!r}", fix=f"choose of {', '.join(MODALITIES)}")


def _sessions(folder: Folder) -> tuple[_Naming, Gathering, int]:
    """The naming of all cases, the cases, and the number of images that have other names."""
    found, others = Gathering(), 0
    examples: dict[str, str] = {}
    namings: dict[str, _Naming] = {}
    for parts in folder.images():
        matches = ((naming, naming.pattern.fullmatch(parts[-1])) for naming in _NAMINGS)
        known = next(((n, m) for n, m in matches if m and m[3] in n.kinds), None)
        if known is None:
            others += 1
            continue
        naming, match = known
        examples.setdefault(naming.scheme, match[1])
        namings[naming.scheme] = naming
        found.add(match[1], match[2] or "", naming.kinds[match[3]], folder.uri_of(parts))
    if not found:
        raise DataError(
            "no BraTS case found",
            file=folder.uri,
            fix="give the folder that holds BraTS2021_00000/BraTS2021_00000_flair.nii.gz and so on "
            "(2023 on: BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz)",
        )
    if len(namings) > 1:
        raise DataError(
            "label schemes are mixed: the folder holds cases named as until 2021 (labels 1, 2, 4), such as "
            f"{examples['brats2021']}, and as from 2023 on (labels 1, 2, 3), such as {examples['brats2023']}",
            file=folder.uri,
            fix="give each its own folder, and prepare them as two cohorts",
        )
    return next(iter(namings.values())), found, others
