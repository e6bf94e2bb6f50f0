"""What the files of a package offer under one name: an objective, a task or a family in one file each."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from brainfoundry.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plugins(Generic[T]):
    """The files of a package that have a certain attribute.

    Args:
        package: dotted name; a new file in it joins by being there.
        attribute: such as `TASK`.
        what: what each is, for messages.
        accepts: whether a file's attribute is one.
    """

    package: str
    attribute: str
    what: str
    accepts: Callable[[Any], bool]

    def names(self) -> list[str]:
        """Those that are there, in order."""
        folder = importlib.import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(folder) if self._in(m.name) is not None)

    def load(self, name: str) -> T:
        """The attribute of the file `name`.

        Raises:
            ConfigError: there is no such file, or nothing in it; the message lists those that are there.
        """
        spec = importlib.util.find_spec(f"{self.package}.{name}") if name.isidentifier() else None
        found = self._in(name) if spec is not None else None
        if found is None:
            raise ConfigError(
                f"{self.what} '{name}' does not exist", fix=f"choose one of {', '.join(self.names())}"
            )
        return found

    def _in(self, name: str) -> T | None:
        found = getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute, None)
        return found if self.accepts(found) else None
