"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def bulk(tmp_path) -> Path:
    """An empty folder for bulk files."""
    folder = tmp_path / "bulk"
    folder.mkdir()
    return folder
