"""Values of lesion masks: the schemes cohorts use, cleaning, and the refusal of cohorts that mix two schemes.

The same number means different tissue in different years of a challenge, so a scheme is a property of the
whole cohort: it is named once, in the manifest, and every mask is held against it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.core.errors import ConfigError, DataError

SCHEMES: dict[str, tuple[int, ...]] = {
    "brats2021": (1, 2, 4),  # necrotic core, oedema, enhancing tumour (2012 to 2021)
    "brats2023": (1, 2, 3),  # the same three tissues, enhancing tumour renumbered (2023 on)
    "brats2024": (1, 2, 3, 4),  # 2024 on: a fourth label, such as the resection cavity (GLI: 4)
    "binary": (1,),  # lesion (ATLAS v2.0 and most masks)
}
NAMES: dict[str, dict[int, str]] = {
    "brats2021": {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"},
    "brats2023": {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"},
    "brats2024": {1: "necrotic core", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"},
    "binary": {1: "lesion"},
}
"""What the labels of a scheme mean, for legends and look-up tables."""
# Schemes that differ in one number only, so that masks of both get into one folder unnoticed.
_RIVALS = ("brats2021", "brats2023")
TOLERANCE = 1e-3
"""Largest distance from a whole number at which a mask value is still that number (0.99999997 is 1)."""


class LabelValues(ScanError):
    """A mask with values that are no labels."""

    reason = "label_values"


def check_scheme(scheme: str) -> tuple[int, ...]:
    """The labels of a scheme, background excluded.

    Raises:
        ConfigError: no such scheme.
    """
    if scheme not in SCHEMES:
        known = ", ".join(f"{name} ({_shown(values)})" for name, values in SCHEMES.items())
        raise ConfigError(f"unknown label scheme {scheme!r}", fix=f"choose of {known}")
    return SCHEMES[scheme]


def clean_labels(
    values: np.ndarray, scheme: str | None = None, *, file: object = None, subject: str | None = None
) -> np.ndarray:
    """A mask's voxels as uint8: whole numbers from 0 to 255, and of the scheme where one is named.

    Args:
        values: numbers of any dtype and shape, after the file's scl_slope and scl_inter.

    Raises:
        LabelValues: voxels that are NaN, no whole numbers within `TOLERANCE`, or no labels of the scheme.
    """
    values = np.asarray(values)
    if values.dtype.kind in "biu":
        whole = values
    else:
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(values - whole) <= TOLERANCE)  # "not within", so that NaN and inf are wrong too
        if wrong.any():
            which = "not a number" if np.isnan(values[wrong][0]) else f"{float(values[wrong][0]):.6g}"
            problem = f"{int(wrong.sum()):,} mask voxels are no whole numbers, for example {which}"
            fix = "resample masks by nearest neighbour, or threshold this one at 0.5"
            raise LabelValues(problem, file=file, subject=subject, fix=fix)
    if whole.size and (whole.min() < 0 or whole.max() > 255):
        problem = f"mask values reach from {int(whole.min())} to {int(whole.max())}"
        raise LabelValues(problem, file=file, subject=subject, fix="number the labels from 0 to 255")
    labels = whole.astype(np.uint8)
    if scheme is not None:
        check_values(label_values(labels), scheme, file=file, subject=subject)
    return labels


def label_values(labels: np.ndarray) -> tuple[int, ...]:
    """The labels that occur in a cleaned (uint8) mask, ascending, without the background."""
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=1))
    return tuple(int(value) for value in found if value)


def check_values(
    values: Iterable[int], scheme: str, *, file: object = None, subject: str | None = None
) -> None:
    """Hold the labels of one mask against a scheme.

    Raises:
        LabelValues: naming the labels that are not of the scheme, and the scheme they would be of.
        ConfigError: no such scheme.
    """
    allowed = check_scheme(scheme)
    values = set(values) - {0}
    wrong = sorted(values - set(allowed))
    if not wrong:
        return
    fits = [name for name, others in SCHEMES.items() if values <= set(others)]
    fix = f"its values are those of {fits[0]}" if fits else "renumber its labels, or leave it out"
    if scheme == "binary" and not fits and len(values) == 1:
        fix = f"write 1 instead of {wrong[0]}"
    problem = f"mask holds {_shown(wrong)}, which {scheme} ({_shown(allowed)}) does not have"
    raise LabelValues(problem, file=file, subject=subject, fix=fix)


def require_one_scheme(
    found: Iterable[tuple[str, Iterable[int]]], scheme: str, *, file: object = None
) -> None:
    """Refuse a cohort whose masks are of two schemes, or all of another one than is named.

    Only masks that tell the schemes apart (label 3 or 4) have a say; one that fits no scheme has none.

    Args:
        found: (subject, labels in its mask) of every session, also of those excluded for their labels.
        scheme: what the manifest names.

    Raises:
        DataError: naming one subject of each scheme, or one of the other scheme.
        ConfigError: no such scheme.
    """
    check_scheme(scheme)
    if scheme not in _RIVALS:
        return
    witness: dict[str, tuple[str, set[int]]] = {}
    for subject, values in found:
        labels = set(values) - {0}
        fits = [name for name in _RIVALS if labels <= set(SCHEMES[name])]
        if len(fits) == 1:
            witness.setdefault(fits[0], (subject, labels))
    if len(witness) > 1:
        (one, (a, of_a)), (two, (b, of_b)) = witness.items()
        raise DataError(
            f"label schemes are mixed: subject {a} has labels {_shown(of_a)} ({one}), "
            f"subject {b} has {_shown(of_b)} ({two})",
            file=file,
            fix="keep the two in cohorts of their own, or renumber enhancing tumour in one of them; "
            "where label 4 is the cavity of BraTS 2024: --scheme brats2024",
        )
    for name, (subject, labels) in witness.items():
        if name != scheme:
            problem = f"masks are of {name} (labels {_shown(labels)}), the cohort was read as {scheme}"
            raise DataError(problem, file=file, subject=subject, fix=f"prepare it with --scheme {name}")


def _shown(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
