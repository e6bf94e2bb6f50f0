"""The axes of a study's grid: their defaults, their values, and how a run shows them in its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from brainfoundry.core.errors import ConfigError
from brainfoundry.models.sizes import SIZES
from brainfoundry.tasks.segmentation import SWINUNETR

SCRATCH, BASE, ALL = "scratch", "base", "all"
"""Defaults of `init`, `variant` and `modalities`."""

DEFAULTS: Mapping[str, Any] = {
    "size": "tiny",
    "init": SCRATCH,
    "objective": "inpaint_rotate_contrast",
    "fold": None,
    "share": 100,
    "draw": 0,
    "modalities": ALL,
    "family": SWINUNETR,
    "variant": BASE,
    "seed": 0,
    "pretrain_seed": 0,
}
"""Every axis and its default. `share` is per cent of the training subjects, `seed` of the fine-tuning, and
`modalities` the input channels: `all`, or names joined by + of which each may be fed by another scan
(`T1w+FLAIR=T1w`: two channels, both shown the T1w)."""

REPEATED = ("draw", "seed", "pretrain_seed")
"""Axes whose values are the same thing tried again; so are folds."""

_CHANNEL = re.compile(r"[A-Za-z0-9_-]+(=[A-Za-z0-9_-]+)?")
_UNSAFE = re.compile(r"[^A-Za-z0-9+._-]")

Point = Mapping[str, Any]
"""A value on every axis."""


def nearest(name: Any, known: Iterable[Any], *, what: str = "choose one of") -> str:
    """What to do about a name that is not there: the closest of those that are, else all of them."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"{what} {', '.join(names)}"


def check_axis(name: str) -> None:
    """Refuse (ConfigError) an axis that does not exist."""
    if name not in DEFAULTS:
        raise ConfigError(f"unknown axis {name!r}", fix=nearest(name, DEFAULTS, what="the axes are"))


def axis_value(axis: str, value: Any, known: Mapping[str, Collection[str]]) -> Any:
    """A value of an axis in its one form: 5.0 per cent as 5, "none" as None.

    Args:
        known: the names there are on the axes `init`, `objective`, `family` and `variant`.

    Raises:
        ConfigError: unknown axis or value; names the nearest.
    """
    check_axis(axis)
    if axis == "size":
        known = {"size": SIZES}
    if axis in known:
        if value not in tuple(known[axis]):
            raise ConfigError(f"unknown {axis} {value!r}", fix=nearest(value, known[axis]))
        return value
    if axis == "fold":
        return None if value in (None, "none") else _whole(axis, value, "or none")
    if axis == "share":
        return _share(value)
    if axis == "modalities":
        return _modalities(value)
    return _whole(axis, value)


def _whole(axis: str, value: Any, other: str = "") -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal():
        raise ConfigError(f"{axis} is {value!r}", fix=f"give 0, 1, 2, ... {other}".rstrip())
    return int(text)


def _share(value: Any) -> int | float:
    try:
        share = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        share = float("nan")
    if not 0 < share <= 100:
        raise ConfigError(f"share is {value!r}", fix="give per cent above 0, up to 100")
    return int(share) if share.is_integer() else share


def _modalities(value: Any) -> str:
    if value == ALL:
        return ALL
    parts = str(value).split("+")
    names = [part.partition("=")[0] for part in parts]
    if not all(_CHANNEL.fullmatch(part) for part in parts) or len(set(names)) < len(names):
        raise ConfigError(
            f"modalities {value!r} name no channels",
            fix="write all, or each channel once, as T1w, T1w+FLAIR, or T1w+FLAIR=T1w (both show the T1w)",
        )
    return str(value)


def channels(modalities: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`--data.modalities` and `--data.feed` of a value of the axis `modalities`."""
    if modalities == ALL:
        return (), ()
    parts = modalities.split("+")
    return tuple(part.partition("=")[0] for part in parts), tuple(part for part in parts if "=" in part)


def named(point: Point, stage: str = "") -> str:
    """The point as the readable part of a run's name: size, start, and what is not at its default.

    Args:
        stage: of a pretraining run, which begins its name.
    """
    words = [stage, str(point["size"])] if stage else ["ft"]
    if not stage:
        ours = point["family"] == SWINUNETR
        words += [str(point["size"]), str(point["init"])] if ours else [str(point["family"])]
    few = point["share"] != 100
    for axis in ("objective", "fold", "share", "draw", "modalities", "variant", "seed", "pretrain_seed"):
        value = point[axis]
        if value == DEFAULTS[axis] and not (axis == "draw" and few):
            continue
        text = f"{value:g}" if axis == "share" else str(value)
        words.append(text if axis in ("objective", "modalities", "variant") else f"{axis}{text}")
    return safe("-".join(words))


def safe(text: str) -> str:
    """The text as part of a file name."""
    return _UNSAFE.sub(".", text)


def matches(point: Point, only: Mapping[str, Collection[Any]]) -> bool:
    """Whether the point has one of the values asked for, on every axis that is asked about."""
    return all(point[axis] in values for axis, values in only.items())


def parse_only(texts: Sequence[str], points: Sequence[Point]) -> dict[str, set[Any]]:
    """`axis=value` texts (values separated by commas; an axis named twice has all of them) as values by axis.

    Args:
        points: of the study.

    Raises:
        ConfigError: unknown axis, or a value that no trial of the study has.
    """
    wanted: dict[str, set[Any]] = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        if not equals:
            raise ConfigError(f"--only {text!r} is not axis=value", fix="write it as share=5,10")
        check_axis(axis)
        there = {_shown(point[axis]): point[axis] for point in points}
        for value in values.split(","):
            if value not in there:
                raise ConfigError(
                    f"--only {text}: no trial of the study has {axis} {value!r}", fix=nearest(value, there)
                )
            wanted.setdefault(axis, set()).add(there[value])
    return wanted


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
