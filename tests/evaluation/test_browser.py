"""The pages in a real browser: they render offline, on a screen, a phone and paper, with all their figures."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, save_comparison

from .builders import Data, custom, step, wrap

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def browser(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Chromium without a network or a profile of its own."""
    assert CHROMIUM is not None
    given = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
    offline = ["--proxy-server=127.0.0.1:9", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *given, *offline, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def pages(network: nn.Module, data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    evaluator = Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=custom(step, name="step"), verbose=False)
    report: EvaluationReport = evaluator.evaluate(*data)
    compared = save_comparison({"one run": report, "another": report}, folder / "compared")
    return {"report": report.save(folder / "report"), "comparison": compared}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_fits_the_screen_and_shows_its_figures(
    name: str, width: int, pages: dict[str, Path], tmp_path: Path
) -> None:
    # The page tells what it measured, in its title; a frame has the phone's width, which windows cannot have.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[name].read_text())
    probe = (
        "<script>window.onload = () => { const d = document.documentElement; document.title = JSON.stringify("
        "[innerWidth, d.scrollWidth, [...document.images].filter(i => !i.closest('.explorer'))"
        ".map(i => [i.complete, i.naturalWidth, i.clientWidth]),"
        "[...document.querySelectorAll('svg.chart')].map(i => i.getBoundingClientRect().width)]);"
        "parent.postMessage(document.title, '*') }</script>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{probe}</body>"))
    frame = (
        f'<!doctype html><body style="margin:0"><iframe src="page.html" style="border:0;width:{width}px;height:5000px">'
        "</iframe><pre id=o></pre><script>onmessage = e => o.textContent = e.data</script></body>"
    )
    (tmp_path / "frame.html").write_text(frame)
    shown = browser(tmp_path, "--dump-dom", "--virtual-time-budget=5000", (tmp_path / "frame.html").as_uri())
    found = re.search(r'<pre id="o">\[(\d+),(\d+),(\[.*\]),\[([\d.,]*)\]\]</pre>', shown.stdout)
    assert found is not None
    inner, scroll = int(found[1]), int(found[2])
    assert inner == width
    assert scroll <= width, "the page is wider than the screen"
    images = re.findall(r"\[(true|false),(\d+),(\d+)\]", found[3])
    assert len(images) == page.count("<img") == (1 if name == "report" else 0)
    drawings = [float(each) for each in found[4].split(",")]
    assert len(drawings) == page.count('<svg class="chart') >= 1
    assert all(200 < drawn <= width for drawn in drawings)
    for complete, natural, drawn in images:
        assert complete == "true"
        assert int(natural) > 300
        assert 200 < int(drawn) <= width


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_screenshot_has_ink_where_the_figures_are(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r'src="data:[^"]*"|<svg class="chart.*?</svg>', "", pages[name].read_text(), flags=re.S))
    coloured = {}
    for page in (pages[name], bare):
        picture = tmp_path / f"{page.stem}.png"
        browser(tmp_path, "--window-size=1200,3000", f"--screenshot={picture}", page.as_uri())
        pixels = imread(picture)[..., :3]
        assert pixels.shape[:2] == (3000, 1200)
        coloured[page] = int((np.ptp(pixels, axis=2) > 0.15).sum())  # text is grey, lines and bars are not
    assert coloured[pages[name]] > coloured[bare] + 1000


@pytest.mark.slow
def test_a_page_prints(pages: dict[str, Path], tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    browser(tmp_path, f"--print-to-pdf={paper}", pages["report"].as_uri())
    text = paper.read_bytes()
    assert text.startswith(b"%PDF-")
    assert text.count(b"/Subtype /Image") >= 1
