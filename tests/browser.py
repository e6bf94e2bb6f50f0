"""A page as a real browser shows it: headless Chromium, its picture, its document, and what it asked for."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--virtual-time-budget=2000", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """What came of a page.

    Args:
        png: picture of the window.
        dom: the document after layout.
        requests: every URL asked for, besides the page itself and data: URLs.
        images: (natural width, natural height, shown width, shown height) of every image, CSS pixels.
        width: CSS pixels the content needs; more than the window's means that it must be scrolled sideways.
    """

    png: Path
    dom: str
    requests: tuple[str, ...]
    images: tuple[tuple[int, int, int, int], ...]
    width: int


def browser() -> str:
    """Path of a Chromium; skips the test with the reason where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(NAMES)})")
    return found


# Runs in a page of its own that shows the page in a frame: the page itself need not allow any script.
_MEASURE = """<!DOCTYPE html><title>measure</title><body style="margin:0">
<iframe id="f" src="%s" style="border:0;width:%dpx;height:%dpx"></iframe>
<script>addEventListener("load",()=>{const d=document.getElementById("f").contentDocument;
const v={width:d.documentElement.scrollWidth,dom:d.documentElement.outerHTML,
images:[...d.images].map(i=>[i.naturalWidth,i.naturalHeight,i.width,i.height])};
document.body.innerHTML="";const p=document.createElement("pre");p.id="out";
p.textContent=JSON.stringify(v);document.body.append(p)})</script>"""


def render(page: Path, png: Path, *, size: tuple[int, int] = (1200, 2400)) -> Rendered:
    """Show a local page in headless Chromium.

    Args:
        page: the HTML file.
        png: where the picture goes.
        size: of the window, CSS pixels.
    """
    program = browser()
    url = page.resolve().as_uri()
    with tempfile.TemporaryDirectory(prefix="chromium-") as scratch:
        measure = Path(scratch) / "measure.html"
        measure.write_text(_MEASURE % (url, *size))
        log = Path(scratch) / "net.json"
        _run(program, scratch, url, f"--screenshot={png}", f"--window-size={size[0]},{size[1]}",
             f"--log-net-log={log}")  # fmt: skip
        flags = ("--dump-dom", "--allow-file-access-from-files")
        told = _run(program, scratch, measure.as_uri(), *flags)
        requests = _requests(log.read_text(), url)
    found = re.search(r'<pre id="out">(.*?)</pre>', told, re.DOTALL)
    assert found, f"the page could not be measured: {told[:500]}"
    value = json.loads(html.unescape(found.group(1)))
    images = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in value["images"])
    return Rendered(png, value["dom"], requests, images, int(value["width"]))


def _run(program: str, scratch: str, url: str, *flags: str) -> str:
    profile = tempfile.mkdtemp(dir=scratch)
    command = [program, *FLAGS, f"--user-data-dir={profile}", *flags, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _requests(log: str, page: str) -> tuple[str, ...]:
    """URLs in Chromium's network log that some part of the page asked for (not the browser for itself)."""
    asked = set()
    for line in log.splitlines():  # one event a line
        who, url = (re.search(rf'"{key}":"([^"]*)"', line) for key in ("initiator", "url"))
        if who and url and who.group(1) != "not an origin":
            asked.add(url.group(1))
    own = (page, "data:", "chrome", "devtools:", "about:", "blob:")
    return tuple(sorted(found for found in asked if not found.startswith(own)))
