"""Freed memory is kept where that was asked for."""

import subprocess
import sys

import pytest

HELD = """
import sys, psutil, torch
from brainfoundry.core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = psutil.Process().memory_info().rss
tensor = torch.ones(50_000_000)  # 200 MB
del tensor
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_with_the_process_only_where_asked() -> None:
    held = {}
    for how in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, check=True)
        held[how] = int(done.stdout)
    assert held["keep"] > 150e6
    assert held["default"] < 50e6
