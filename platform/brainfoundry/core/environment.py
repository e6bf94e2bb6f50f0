"""Settings that come from the environment."""

from __future__ import annotations

import math
import os

from brainfoundry.core.errors import ConfigError


def number(name: str, default: float, *, fix: str) -> float:
    """A number of 0 or more from `$name`; the default where that is unset or empty.

    Raises:
        ConfigError: it is no such number.
    """
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {text!r}", fix=fix)
    return value
