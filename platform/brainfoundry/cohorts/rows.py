"""One row of a cohort manifest: a subject and session with its verdict and scans, and its Arrow form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from brainfoundry.cohorts.exclusions import REASONS

SPLITS = ("", "train", "val", "test")

_SCAN_TYPE = pa.struct(
    [
        ("modality", pa.string()),
        ("uri", pa.string()),
        ("member", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("spacing", pa.list_(pa.float64())),
        ("orientation", pa.string()),
        ("dtype", pa.string()),
        ("size", pa.int64()),
        ("crc32", pa.int64()),
        ("mtime", pa.float64()),
        ("sha256", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("subject", "session", "cohort", "verdict", "reason", "detail", "split")
        ),
        ("fold", pa.int32()),
        ("age", pa.float64()),
        ("sex", pa.string()),
        ("site", pa.string()),
        ("label", _SCAN_TYPE),
        ("scans", pa.list_(_SCAN_TYPE)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One image of one modality, as its header and its archive's directory describe it.

    Args:
        uri: the zip or the plain file.
        member: path inside the zip; "" for plain files.
        shape: voxels along the stored axes.
        spacing: mm along the stored axes.
        orientation: axis codes of the stored axes, such as "LAS".
        dtype: NumPy name of the stored type.
        size: bytes of the (gzipped) NIfTI file.
        crc32: of the (gzipped) NIfTI file, from the zip directory; None for plain files.
        mtime: seconds since 1970, for plain files only.
        sha256: of the decompressed NIfTI bytes, hexadecimal; None until conversion.
    """

    modality: str
    uri: str
    member: str = ""
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    dtype: str
    size: int
    crc32: int | None = None
    mtime: float | None = None
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and Arrow take them."""
        return {**self.__dict__, "shape": list(self.shape), "spacing": list(self.spacing)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Scan:
        """The inverse of `to_dict`."""
        return Scan(**{**value, "shape": tuple(value["shape"]), "spacing": tuple(value["spacing"])})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject and session: who, the verdict and why, demographics, scans.

    Raises:
        ValueError: a reason without an exclusion or the reverse, or an unknown verdict, reason or split.
    """

    subject: str
    session: str
    cohort: str
    verdict: str = "included"
    reason: str = ""
    detail: str = ""
    split: str = ""
    fold: int | None = None
    age: float | None = None
    sex: str | None = None
    site: str | None = None
    label: Scan | None = None
    scans: tuple[Scan, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in ("included", "excluded") or (self.verdict == "included") != (not self.reason):
            raise ValueError(f"verdict {self.verdict!r} does not go with reason {self.reason!r}")
        if self.reason and self.reason not in REASONS:
            raise ValueError(f"unknown reason {self.reason!r}; known: {', '.join(REASONS)}")
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; known: train, val, test, or empty")

    @property
    def included(self) -> bool:
        """True where the session goes on to training or evaluation."""
        return self.verdict == "included"

    @property
    def key(self) -> tuple[str, str]:
        """(subject, session), which is unique in a manifest."""
        return self.subject, self.session

    def excluded(self, reason: str, detail: str) -> Row:
        """This row, excluded for `reason`; an excluded row is in no split."""
        return replace(self, verdict="excluded", reason=reason, detail=detail, split="", fold=None)

    def with_sha256(self, sha256: Mapping[str, str]) -> Row:
        """This row with the SHA-256 of the decompressed NIfTI of each given modality (or mask) filled in."""

        def filled(scan: Scan) -> Scan:
            return replace(scan, sha256=sha256.get(scan.modality, scan.sha256))

        label = None if self.label is None else filled(self.label)
        return replace(self, scans=tuple(map(filled, self.scans)), label=label)

    def tombstone(self) -> Row:
        """What is left of this row when consent is withdrawn: who, and that; no demographics, no scan."""
        return Row(
            subject=self.subject,
            session=self.session,
            cohort=self.cohort,
            verdict="excluded",
            reason="withdrawn",
            detail=REASONS["withdrawn"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and Arrow take them."""
        label = None if self.label is None else self.label.to_dict()
        return {**self.__dict__, "label": label, "scans": [scan.to_dict() for scan in self.scans]}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict`."""
        label = None if value["label"] is None else Scan.from_dict(value["label"])
        return Row(**{**value, "label": label, "scans": tuple(Scan.from_dict(s) for s in value["scans"])})


def canonical_json(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
