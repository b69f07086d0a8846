"""A real browser, run once per picture: pages are looked at as people see them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT, SCALE = 1200, 2400, 2

# Where each character that is no ASCII stands, in CSS pixels, with its element's class.
MEASURE = """<script>addEventListener("load", () => {
  const found = [], range = document.createRange();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (node.parentElement.closest("script, details:not([open])")) continue;
    for (let at = 0; at < node.length; at++) {
      if (node.data.charCodeAt(at) < 128) continue;
      range.setStart(node, at); range.setEnd(node, at + 1);
      const box = range.getBoundingClientRect();
      if (box.width) found.push([node.data[at], box.x, box.y, box.width, box.height]);
    }
  }
  const noted = document.createElement("pre");
  noted.id = "measured"; noted.hidden = true; noted.textContent = JSON.stringify(found);
  document.body.append(noted);
});</script>"""


@dataclass(frozen=True)
class Glyph:
    """One character as it was drawn: ink in 0..1, `[H, W]`, cut to what is not paper."""

    character: str
    ink: NDArray[np.float32]


Look = Callable[..., list[Glyph]]
Drive = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here (one of {', '.join(BROWSERS)})")
    return found


@pytest.fixture
def look(browser: str, tmp_path: Path) -> Look:
    """The glyphs of a page's visible text beyond ASCII; the picture goes to `picture`."""

    def glyphs(
        page: str, picture: Path, environment: Mapping[str, str] | None = None
    ) -> list[Glyph]:
        file = tmp_path / "looked_at.html"
        file.write_text(page.replace("</body>", MEASURE + "</body>"), encoding="utf-8")

        def run(*arguments: str) -> str:
            return _run(browser, file, tmp_path / "profile", arguments, environment)

        dumped = run("--dump-dom")
        measured = re.search(r'<pre id="measured"[^>]*>(.*?)</pre>', dumped, re.DOTALL)
        assert measured is not None, "the page ran no script"
        run(f"--screenshot={picture}")
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("L"), dtype=np.float32) / 255
        places = json.loads(unescape(measured[1]))
        return [
            Glyph(name, _ink(pixels, *place))
            for name, *place in places
            if place[1] + place[3] < HEIGHT
        ]

    return glyphs


@pytest.fixture
def drive(browser: str, tmp_path: Path) -> Drive:
    """What `script`, run in a page `width` CSS pixels wide, returns; browsers have a least window width,
    so the page stands in a frame."""

    def run(page: str, script: str, *, width: int = 390) -> Any:
        inner = f"<script>addEventListener('load', () => {{ top.done((() => {{ {script} }})()); }});</script>"
        framed = escape(page.replace("</body>", inner + "</body>"), quote=True)
        file = tmp_path / "driven.html"
        file.write_text(
            '<!doctype html><meta charset="utf-8"><pre id="said"></pre><script>function done(value)'
            ' { document.getElementById("said").textContent = JSON.stringify(value); }</script>'
            f'<iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{framed}"></iframe>',
            encoding="utf-8",
        )
        dumped = _run(browser, file, tmp_path / "profile", ("--dump-dom",), None)
        said = re.search(r'<pre id="said">(.*?)</pre>', dumped, re.DOTALL)
        assert said is not None
        assert said[1], "the script failed"
        return json.loads(unescape(said[1]))

    return run


@pytest.fixture
def printed(browser: str, tmp_path: Path) -> Callable[[str], str]:
    """The text of a page as it is printed."""
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("pdftotext, which reads what was printed, is not here (Debian: poppler-utils)")

    def text(page: str) -> str:
        file, paper = tmp_path / "printed.html", tmp_path / "printed.pdf"
        file.write_text(page, encoding="utf-8")
        _run(browser, file, tmp_path / "profile", (f"--print-to-pdf={paper}",), None)
        done = subprocess.run(
            [reader, "-layout", str(paper), "-"], capture_output=True, check=True, timeout=60
        )
        return done.stdout.decode("utf-8")

    return text


def _run(
    browser: str,
    file: Path,
    profile: Path,
    arguments: tuple[str, ...],
    environment: Mapping[str, str] | None,
) -> str:
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        f"--user-data-dir={profile}",
        f"--window-size={WIDTH},{HEIGHT}",
        f"--force-device-scale-factor={SCALE}",
        *arguments,
        file.as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    return done.stdout


def _ink(
    pixels: NDArray[np.float32], x: float, y: float, width: float, height: float
) -> NDArray[np.float32]:
    """How much darker each pixel is than the paper behind the character (the page is in its light form)."""
    top, left = round(y * SCALE), round(x * SCALE)
    cell = pixels[top : round((y + height) * SCALE), left : round((x + width) * SCALE)]
    ink = (cell.max() - cell) / max(float(np.ptp(cell)), 1e-6)
    rows, columns = np.flatnonzero((ink > 0.3).any(axis=1)), np.flatnonzero((ink > 0.3).any(axis=0))
    if not len(rows):
        return np.zeros((0, 0), dtype=np.float32)
    return np.asarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], dtype=np.float32)
