"""Where things go when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder for demo data, runs and the local tracking database.

    `$BRAINFOUNDRY_HOME` if set; `runs/` of the checkout this package is installed from (editable
    install), so that a job that Ray unpacked somewhere under /tmp still finds it; else `~/brainfoundry`.
    """
    if os.environ.get("BRAINFOUNDRY_HOME"):
        return Path(os.environ["BRAINFOUNDRY_HOME"]).expanduser().resolve()
    root = Path(__file__).resolve().parents[3]
    if (root / "pyproject.toml").exists() and os.access(root, os.W_OK):
        return root / "runs"
    return Path.home() / "brainfoundry"
