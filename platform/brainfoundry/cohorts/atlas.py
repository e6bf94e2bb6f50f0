"""The ATLAS v2.0 reader: T1w scans of stroke patients with lesion masks, as a BIDS derivative by site.

`R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz` and, beside it,
`..._label-L_desc-T1lesion_mask.nii.gz`. The site is the folder R001, or the r001 of the id without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from brainfoundry.cohorts.folder import Folder
from brainfoundry.cohorts.intake import LABEL, Found, Gathering, IntakeRules, judge_cohort, left_alone
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta
from brainfoundry.cohorts.people import People, Person
from brainfoundry.core.errors import ConfigError, DataError

MODALITIES = ("T1w",)
SPACE = "MNI152NLin2009aSym"

_NAME = re.compile(
    rf"(?P<subject>sub-(?P<site>r\d+)s\d+)_ses-(?P<session>[A-Za-z0-9]+)_space-{SPACE}"
    r"_(?:(?P<image>T1w)|(?:label-[A-Za-z]+_)?(?:desc-)?T1lesion_mask)\.nii(?:\.gz)?"
)
_SITE = re.compile(r"R\d+")


def read_atlas(
    root: str,
    manifest_uri: str,
    rules: IntakeRules | None = None,
    *,
    metadata: str | None = None,
    left_out: LeftOut | None = None,
    threads: int = 16,
) -> Manifest:
    """Judge every session below `root` by its headers and write the intake manifest.

    Args:
        root: folder (any storage), with or without folders of sites, in any nesting.
        manifest_uri: where the manifest goes.
        metadata: optional table with the subject's id and any of age, sex and site.
        left_out: the user's lists.

    Raises:
        DataError: no such folder or table, or nothing of ATLAS in it. One bad file only costs its row.
        ConfigError: a modality other than T1w.
    """
    rules = rules or IntakeRules(modalities=MODALITIES)
    if rules.modalities != MODALITIES:
        raise ConfigError(f"ATLAS has no modalities {', '.join(rules.modalities)}", fix="choose T1w")
    folder = Folder(root, "the sites' folders R001, R002 and so on")
    sessions, sites, others = _sessions(folder)
    people = People.read(metadata) if metadata else None
    found = list(_with_people(sessions.found(), sites, people))
    notes = people.notes({f.subject for f in found}) if people else []
    meta = ManifestMeta(
        cohort="atlas",
        modalities=rules.modalities,
        template_space=SPACE,
        skull_stripped=False,
        source=folder.uri,
        labels="" if rules.labels == "ignore" else "binary",
        notes=(*left_alone(folder, others, "ATLAS"), *notes),
    )
    return judge_cohort(found, manifest_uri, meta, rules, left_out=left_out, threads=threads)


def _sessions(folder: Folder) -> tuple[Gathering, dict[str, str], int]:
    """Sessions, the site of each subject, and the number of images that have other names."""
    found, sites, others = Gathering(), dict[str, str](), 0
    for parts in folder.images():
        match = _NAME.fullmatch(parts[-1])
        if match is None:
            others += 1
            continue
        name = "T1w" if match["image"] else LABEL
        found.add(match["subject"], match["session"], name, folder.uri_of(parts))
        sites[match["subject"]] = _site(parts[:-1]) or match["site"].upper()
    if not found:
        raise DataError(
            "no ATLAS session found",
            file=folder.uri,
            fix=f"give the folder that holds R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-{SPACE}_"
            "T1w.nii.gz and so on (other BIDS datasets: jobs/prepare_bids.py)",
        )
    return found, sites, others


def _site(folders: Sequence[str]) -> str:
    return next((name for name in reversed(folders) if _SITE.fullmatch(name)), "")


def _with_people(found: Iterable[Found], sites: dict[str, str], people: People | None) -> Iterator[Found]:
    for session in found:
        known = people.of(session.subject) if people else Person()
        yield replace(session, site=sites[session.subject], age=known.age, sex=known.sex)
