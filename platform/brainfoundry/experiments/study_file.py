"""Study files as text: where they lie, their presets, and messages that say where in them a mistake is."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any, TypeVar

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.axes import nearest

T = TypeVar("T")


def study_names() -> tuple[str, ...]:
    """Studies that are shipped."""
    folder = resources.files("brainfoundry.experiments") / "studies"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def study_text(name_or_path: str) -> tuple[str, bytes]:
    """Where a study's file is, and what it says.

    Raises:
        ConfigError: no such study or file.
    """
    if PurePath(name_or_path).suffix in (".yaml", ".yml"):
        try:
            return name_or_path, files.read_bytes(name_or_path)
        except (OSError, DataError) as error:
            raise ConfigError("no such study file", file=name_or_path, fix="check the path") from error
    if name_or_path not in study_names():
        fix = nearest(name_or_path, study_names())
        raise ConfigError(
            f"unknown study {name_or_path!r}", fix=f"{fix.rstrip('?')}, or give the path of a .yaml file"
        )
    where = resources.files("brainfoundry.experiments") / "studies" / f"{name_or_path}.yaml"
    return str(where), where.read_bytes()


@dataclass(frozen=True)
class Place:
    """A place in a study file."""

    file: str | None
    key: str = ""

    def below(self, key: object) -> Place:
        return Place(self.file, f"{self.key}.{key}" if self.key else str(key))

    def error(self, problem: str, fix: str | None) -> ConfigError:
        return ConfigError(f"{self.key}: {problem}" if self.key else problem, file=self.file, fix=fix)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Mistakes found within are told with file and key."""
        try:
            yield
        except ConfigError as error:
            raise self.error(error.problem, error.fix) from None

    def mapping(self, value: Any, known: Collection[str] | None = None) -> dict[str, Any]:
        """Named values; of those names alone, where `known` lists some."""
        if not isinstance(value, dict):
            raise self.error("named values are expected here", "write `name: value`")
        for key in value:
            if not isinstance(key, str) or (known is not None and key not in known):
                fix = nearest(key, known, what="the keys are") if known else "write names as text"
                raise self.error(f"unknown key {key!r}", fix)
        return value

    def one_of(self, value: Any, known: Collection[T]) -> T:
        for one in known:
            if one == value:
                return one
        fix = nearest(value, known) if known else "leave it out: there is none to name"
        raise self.error(f"unknown value {value!r}", fix)

    def number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self.error(f"{value!r} is no number", "write a number") from None


def with_preset(at: Place, body: dict[str, Any], preset: str, keys: Sequence[str]) -> dict[str, Any]:
    """The file's keys with those that the preset names replaced."""
    presets = at.below("presets").mapping(body.get("presets") or {})
    body = {key: value for key, value in body.items() if key != "presets"}
    if not preset:
        return body
    if preset not in presets:
        fix = nearest(preset, presets) if presets else "leave the preset out"
        raise at.error(f"the study has no preset {preset!r}", fix)
    there = at.below(f"presets.{preset}")
    changed = there.mapping(presets[preset] or {}, [k for k in keys if k not in ("version", "presets")])
    if changed:
        changed = {"name": f"{body.get('name')}-{preset}", **changed}
    return {**body, **changed}


def several(value: Any) -> list[Any]:
    """The values of a list, or the one that stands alone."""
    return value if isinstance(value, list) else [value]
