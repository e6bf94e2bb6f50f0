"""Which case and which modality a file of an unknown folder is, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from brainfoundry.core.errors import ConfigError

USUAL: Mapping[str, str] = {
    "flair": "FLAIR", "t2f": "FLAIR", "t2flair": "FLAIR", "t2_flair": "FLAIR",
    "t1": "T1w", "t1w": "T1w", "t1n": "T1w",
    "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce", "t1post": "T1ce", "t1wpost": "T1ce",
    "t2": "T2w", "t2w": "T2w",
}  # fmt: skip
"""The end of a file's name, in any letter case -> its modality."""

NNUNET = re.compile(r"_\d{4}")
_PLACE = re.compile(r"\{(\w*)\}|\*")
_PLACES = ("subject", "session", "modality")


@dataclass(frozen=True)
class Named:
    """What a file is: of whom, and which modality."""

    subject: str
    session: str
    modality: str


class Namer:
    """Reads file names: by a pattern, or by the usual ends (`case_flair`, `case-t1ce`, `case/t2`).

    Args:
        wanted: modalities that the network takes; their own names are always understood.
        pattern: as `PredictConfig.pattern` describes; "" for the usual names.
        channels: texts such as "0000=FLAIR".

    Raises:
        ConfigError: a pattern or a channel that makes no sense.

    Attributes:
        by_path: whether the pattern says what the folders above a file mean.
    """

    def __init__(self, wanted: Sequence[str], pattern: str = "", channels: Iterable[str] = ()) -> None:
        self._kinds = {**USUAL, **{name.lower(): name for name in wanted}, **_read_channels(channels)}
        self._only = wanted[0] if len(set(wanted)) == 1 else ""
        self.by_path = "/" in pattern
        # Longest first: t2_flair ends in flair, and t1ce begins with t1.
        kinds = "|".join(map(re.escape, sorted(self._kinds, key=len, reverse=True)))
        self._pattern = _compile(pattern, kinds, self._only) if pattern else None
        self._ends = re.compile(rf"(?:(.+?)[_.-])?({kinds})", re.IGNORECASE)

    def read(self, parts: Sequence[str]) -> Named | None:
        """What the file at this path (in parts, below the folder) is; None where its name does not tell."""
        stem = _stem(parts[-1])
        if self._pattern is None:
            match = self._ends.fullmatch(stem)
            subject = (match[1] or (parts[-2] if len(parts) > 1 else "")) if match else ""
            return Named(subject, "", self._kinds[match[2].lower()]) if match and subject else None
        match = self._pattern.fullmatch("/".join([*parts[:-1], stem]) if self.by_path else stem)
        if match is None:
            return None
        found = match.groupdict()
        modality = self._kinds[found["modality"].lower()] if "modality" in found else self._only
        return Named(found["subject"], found.get("session") or "", modality)


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def _read_channels(texts: Iterable[str]) -> dict[str, str]:
    channels: dict[str, str] = {}
    for text in texts:
        kind, _, modality = text.partition("=")
        if not kind or not modality:
            raise ConfigError(f"no channel: {text!r}", fix="write --channels 0000=FLAIR 0001=T1ce and so on")
        channels[kind.lower()] = modality
    return channels


def _compile(pattern: str, kinds: str, only: str) -> re.Pattern[str]:
    """The pattern as a regular expression; a place that is named again must hold the same text again."""
    fix = 'write it as in "{subject}_{modality}.nii.gz"'
    text, at, seen = "", 0, set[str]()
    stem = _stem(pattern)
    for match in _PLACE.finditer(stem):
        text, at = text + re.escape(stem[at : match.start()]), match.end()
        name = match[1]
        if name is None:
            text += "[^/]*"
        elif name not in _PLACES:
            known = ", ".join(f"{{{place}}}" for place in _PLACES)
            raise ConfigError(f"--pattern has {{{name}}}, known are {known}", fix=fix)
        else:
            text += (
                f"(?P={name})" if name in seen else f"(?P<{name}>{kinds if name == 'modality' else '[^/]+?'})"
            )
            seen.add(name)
    if "subject" not in seen or not ("modality" in seen or only):
        raise ConfigError(f"--pattern {pattern!r} does not say where subject and modality stand", fix=fix)
    return re.compile(text + re.escape(stem[at:]), re.IGNORECASE)
