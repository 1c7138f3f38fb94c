"""The comparing page in a real browser: it sorts, hides, opens and copies, and runs nothing of a report's."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_robust_plugins.evaluation import Flag
from art_robust_plugins.evaluation.rendering import render_comparison

from .made import make_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

POLICY = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
FLAG = Flag("zero-gradients", "warning", "Seen.", "Look.")


def make_page(hostile: str = "d=\"&_'") -> str:
    """Four networks, of which one has a name of choice."""
    counts = {"a": 10, "b": 30, hostile: 35, "c": 20}
    radii = np.linspace(0, 0.3, 40)
    reports = {
        name: make_report(
            np.arange(40) < count, attacks=[("fgsm", "ball")], flags=[FLAG] * (name == "b"), radii=radii * count
        )
        for name, count in counts.items()
    }
    return render_comparison(reports, histories={"a": [{"loss": 2.0, "seconds": 1.0}, {"loss": 1.0, "seconds": 1.0}]})


def open_page(page: str, script: str, folder: Path) -> Any:
    """What a script finds in the page: the value of ``found`` at its end."""
    assert CHROMIUM is not None
    probe = (
        f"<script>(async () => {{ let found; try {{ {script} }} catch (error) {{ found = String(error); }}"
        "const shown = document.createElement('pre'); shown.id = 'found'; shown.textContent = JSON.stringify(found);"
        "document.body.append(shown); })();</script>"
    )
    path = folder / "page.html"
    path.write_text(re.sub(POLICY, "", page).replace("</body>", f"{probe}</body>"))
    return json.loads(html.unescape(dump(path, folder).split('<pre id="found">')[1].split("</pre>")[0]))


def dump(path: Path, folder: Path) -> str:
    assert CHROMIUM is not None
    given = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    alone = ["--disable-background-networking", "--proxy-server=127.0.0.1:9", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *given, *alone, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_page_sorts_hides_opens_and_copies(tmp_path: Path) -> None:
    script = """
      const all = (selector, root = document) => [...root.querySelectorAll(selector)];
      const board = document.querySelector("table.leaderboard");
      const names = () => all("tbody tr", board).map(row => row.cells[0].textContent);
      const button = name => all("button.sort", board).find(each => each.textContent === name);
      const sorts = () => all("th[aria-sort]", board).map(th => [th.textContent, th.getAttribute("aria-sort")]);
      found = { before: [names(), sorts()] };
      button("worst case").click();
      found.turned = [names(), sorts()];
      button("network").click();
      found.named = [names(), sorts()];
      button("training").click();
      found.training = [names()[0], sorts()];
      const legend = document.querySelector(".legend button");
      const series = () => all(`.series[data-series="${legend.dataset.series}"]`, legend.closest(".figures"));
      legend.click();
      found.hidden = [legend.getAttribute("aria-pressed"), series().map(each => getComputedStyle(each).display)];
      legend.click();
      found.shown = [legend.getAttribute("aria-pressed"), series().map(each => getComputedStyle(each).display)];
      const badge = document.querySelector("details.badge");
      const evidence = badge.querySelector("p");
      found.closed = evidence.checkVisibility({ contentVisibilityAuto: true }) && badge.open;
      badge.querySelector("summary").click();
      found.opened = badge.open && evidence.checkVisibility();
      const chart = document.querySelector("svg.chart");
      const reached = () => all('g[tabindex="0"]', chart).map(each => each.getAttribute("aria-label"));
      found.reached = [reached()];
      chart.querySelector('g[tabindex="0"]').focus();
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
      found.reached.push(reached(), document.activeElement.getAttribute("aria-label"));
      const copied = [];
      Object.defineProperty(navigator, "clipboard", { configurable: true,
        value: { writeText: async text => { copied.push(text); } } });
      for (const each of all(".tools button", board.closest(".table"))) {
        each.click();
        await new Promise(done => setTimeout(done));
      }
      found.copied = copied;
      Object.defineProperty(navigator, "clipboard", { configurable: true, value: undefined });
      all(".tools button", board.closest(".table"))[2].click();
      await new Promise(done => setTimeout(done));
      found.area = board.closest(".table").querySelector("textarea").value === copied[2];
    """
    named = "=d\"&_'"
    found = open_page(make_page(named), script, tmp_path)
    assert isinstance(found, dict), found
    assert found["before"] == [[named, "b", "c", "a"], [["worst case", "descending"]]]
    assert found["turned"] == [["a", "c", "b", named], [["worst case", "ascending"]]]
    assert found["named"] == [[named, "a", "b", "c"], [["network", "ascending"]]]
    assert found["training"][0] == "a"  # the others have no number, and come last
    assert found["hidden"] == ["false", ["none", "none"]]
    assert found["shown"] == ["true", ["inline", "inline"]]
    assert (found["closed"], found["opened"]) == (False, True)
    (first,), (second,), focused = found["reached"]
    assert first != second == focused
    latex, markdown, table = found["copied"]
    assert r"=d\textquotedbl{}\&\_'" in latex
    assert r"87.5\%" in latex
    assert r"| =d" in markdown
    assert '"\'=d""&_\'","87.5%"' in table
    assert found["area"]


@pytest.mark.parametrize("protected", [True, False])
def test_a_hostile_report_runs_nothing(tmp_path: Path, protected: bool) -> None:
    """With the page's policy, and by escaping alone."""
    hostile = (
        "</title></style></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
        "<svg onload=\"document.title='owned'\"><style>body{display:none}</style>"
    )
    page = make_page(hostile)
    if not protected:
        page = re.sub(POLICY, "", page)
    path = tmp_path / "page.html"
    path.write_text(page)
    shown = dump(path, tmp_path)
    title = re.search("<title>(.*?)</title>", shown, re.S)
    assert title is not None
    assert title[1] == "Robustness of 4 networks"
    assert '<div class="tools">' in shown  # our own script ran
    assert "<img" not in re.sub(r'<img alt="[^"]*" src="data:image/png;base64,[^"<>]*">', "", shown)


def test_the_policy_stops_what_escaping_might_miss(tmp_path: Path) -> None:
    evil = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    titles = []
    for page in (make_page(), re.sub(POLICY, "", make_page())):
        path = tmp_path / "page.html"
        path.write_text(page.replace("</main>", f"{evil}</main>"))
        titles.append("<title>owned</title>" in dump(path, tmp_path))
    assert titles == [False, True]
